"""The CLIP networks by name and the parameters that CLIP methods share; importing this file imports no torch.

`ViT-B-16-plus-240` is the only network of the originals. WinCLIP's numbers are of its weights after epoch 31 of LAION-400M,
InCTRL's after epoch 32: two files, never to be exchanged (open_clip's table of hubs has the first one under both names).
`tiny` has no published weights: it is there to try a command out in seconds, with `--weights random`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from inpbench.harness.api import Preprocess, WeightSpec
from inpbench.harness.errors import UsageError, did_you_mean

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_RELEASE = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights"

Tag = Literal["laion400m_e31", "laion400m_e32"]


@dataclass(frozen=True, kw_only=True)
class ClipArchitecture:
    """The sizes of both towers."""

    name: str
    embed: int  # E, of the joint space
    image: int  # side of the square input, pixels
    patch: int  # pixels
    width: int  # W, of the image tower
    head_width: int
    layers: int  # blocks of the image tower
    text_width: int
    text_heads: int
    text_layers: int
    context: int = 77  # tokens of a prompt
    vocabulary: int = 49408

    @property
    def side(self) -> int:
        """Patches along one side of the grid."""
        return self.image // self.patch


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        ClipArchitecture(
            name="ViT-B-16-plus-240",
            embed=640,
            image=240,
            patch=16,
            width=896,
            head_width=64,
            layers=12,
            text_width=640,
            text_heads=10,
            text_layers=12,
        ),
        ClipArchitecture(
            name="tiny",
            embed=32,
            image=96,
            patch=16,
            width=32,
            head_width=16,
            layers=12,
            text_width=32,
            text_heads=2,
            text_layers=2,
        ),
    )
}
_FILES = {
    ("ViT-B-16-plus-240", "laion400m_e31"): "vit_b_16_plus_240-laion400m_e31-8fb26589.pt",
    ("ViT-B-16-plus-240", "laion400m_e32"): "vit_b_16_plus_240-laion400m_e32-699c4b84.pt",
}


def get_architecture(name: str) -> ClipArchitecture:
    """The network of this name; unknown names raise `UsageError` with the closest known ones."""
    if name not in ARCHITECTURES:
        raise UsageError(f"Unknown CLIP network '{name}'. {did_you_mean(name, ARCHITECTURES)}", "Type: bench list methods")
    return ARCHITECTURES[name]


def clip_weight_spec(model: str, tag: Tag) -> WeightSpec:
    """The published file of a network."""
    file = _FILES.get((model, tag))
    without = "or try the command out with --weights random, which marks its numbers"
    if file is None:
        return WeightSpec(name=f"clip {model}", file=f"{model}-{tag}.pt", without=without)
    return WeightSpec(name=f"clip {model} {tag}", file=file, url=f"{_RELEASE}/{file}", without=without)


@dataclass(frozen=True, kw_only=True)
class ClipParams:
    """See the module docstring."""

    NAME: ClassVar[str] = "METHOD"  # of the method, for messages

    model: str = "ViT-B-16-plus-240"  # CLIP's network; tiny has no published weights and is for trials with --weights random
    pretrained: Tag = "laion400m_e31"  # which published weights

    @property
    def architecture(self) -> ClipArchitecture:
        """The sizes of the network."""
        return get_architecture(self.model)

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together."""
        get_architecture(self.model)

    def at_least(self, **lowest: float) -> None:
        """Raise `UsageError` naming the first parameter that is below its lowest value."""
        for name, low in lowest.items():
            value = getattr(self, name)
            if value < low:
                raise UsageError(
                    f"{self.NAME}.{name}: expected at least {low:g}, found {value}.", f"Type: --set {self.NAME}.{name}={low:g}"
                )


def clip_weights(params: ClipParams) -> tuple[WeightSpec, ...]:
    """What `MethodInfo.weights` asks for."""
    return (clip_weight_spec(params.model, params.pretrained),)


def clip_preprocess(architecture: ClipArchitecture, *, squash: bool, own_mode: bool) -> Preprocess:
    """Bicubic, CLIP's normalisation.

    squash: both sides are resized to the network's, aspect ratio not kept; else the shorter one is, and the longer one is cut.
    """
    side = architecture.image
    return Preprocess(
        resize=(side, side),
        crop=(side, side),
        shorter_side=not squash,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        interpolation="bicubic",
        own_mode=own_mode,
    )
