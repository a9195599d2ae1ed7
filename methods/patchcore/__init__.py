"""PatchCore (CVPR 2022): no training, a memory of normal patches, and the distance of each test patch from the nearest of them.

Importing this folder imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from inpbench.harness.api import MethodInfo, Preprocess, Size, WeightSpec
from inpbench.harness.errors import UsageError, did_you_mean
from inpbench.methods.encoder_table import CONVNETS, ENCODERS

VIT_LAYERS = (5, 9)  # of 12 blocks: the ends of the two groups that the reconstruction methods compare
LARGE_LAYERS = (10, 18)  # of 24


@dataclass(frozen=True, kw_only=True)
class PatchCoreParams:
    """Defaults are the paper's for MVTec AD with a tenth of the patches kept."""

    encoder: str = "wide_resnet50_2"  # any name of `bench list encoders`
    input_size: Size = (256, 256)  # resize, bilinear, aspect ratio not kept
    crop_size: Size = (224, 224)  # centre crop
    layers: tuple[int, ...] | None = None  # stages of a convolutional encoder (none: 2,3), blocks of a ViT (none: 5,9)
    neighbourhood: int = 3  # side of the square of patches that one vector is the mean of; odd
    coreset: float = 0.1  # share of the training patches that is kept
    projection: int = 128  # dimensions in which the coreset is chosen, by a sparse random projection; 0: all
    reweight: int = 9  # bank neighbours that the image score is weighted with (equation 7; the paper names no number); 0: none

    @property
    def preprocess(self) -> Preprocess:
        """Resize and centre crop, ImageNet normalisation."""
        return Preprocess(resize=self.input_size, crop=self.crop_size)

    @property
    def used_layers(self) -> tuple[int, ...]:
        """The stages or blocks whose outputs are concatenated."""
        if self.layers is not None:
            return self.layers
        if self.encoder in CONVNETS:
            return CONVNETS[self.encoder].layers
        return VIT_LAYERS if ENCODERS[self.encoder].depth == 12 else LARGE_LAYERS

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together."""
        if self.encoder not in CONVNETS and self.encoder not in ENCODERS:
            raise UsageError(
                f"Unknown encoder '{self.encoder}'. {did_you_mean(self.encoder, [*CONVNETS, *ENCODERS])}",
                "Type for example: --encoder wide_resnet50_2",
            )
        if any(crop > side for crop, side in zip(self.crop_size, self.input_size, strict=True)):
            self._refuse("crop_size", f"at most input_size {self.input_size[0]}x{self.input_size[1]}", self.crop_size)
        if self.encoder in CONVNETS:
            if min(self.crop_size) < 32:
                self._refuse("crop_size", "at least 32x32", self.crop_size)
            known = range(1, 5)
        else:
            known = range(ENCODERS[self.encoder].depth)
            try:
                ENCODERS[self.encoder].grid(self.crop_size)
            except UsageError as error:
                raise UsageError(error.message, error.hint.replace("METHOD", "patchcore")) from None
        layers = self.used_layers
        if not layers or len(set(layers)) != len(layers) or not all(layer in known for layer in layers):
            self._refuse("layers", f"different numbers from {known[0]} to {known[-1]}", layers)
        if self.neighbourhood < 1 or self.neighbourhood % 2 == 0:
            self._refuse("neighbourhood", "an odd number", self.neighbourhood)
        if not 0.0 < self.coreset <= 1.0:
            self._refuse("coreset", "a share above 0, at most 1", self.coreset)
        if self.projection < 0:
            self._refuse("projection", "at least 0", self.projection)
        if self.reweight < 0 or self.reweight == 1:
            self._refuse("reweight", "0 (none) or at least 2", self.reweight)

    def _refuse(self, name: str, expected: str, found: object) -> None:
        raise UsageError(f"patchcore.{name}: expected {expected}, found {found}.", f"Type: --set patchcore.{name}=VALUE")


def weights_of(params: PatchCoreParams) -> tuple[WeightSpec, ...]:
    """The weight file of a parameter set: its encoder's."""
    convnet = CONVNETS.get(params.encoder)
    return (ENCODERS[params.encoder].weights if convnet is None else convnet.weights,)


INFO = MethodInfo(
    name="patchcore",
    version=1,
    title="PatchCore: distance from a coreset of normal patch features; one bank for all that a model is trained on",
    target="inpbench.methods.patchcore.method:PatchCore",
    params=PatchCoreParams,
    settings=frozenset({"multi_class", "single_class", "few_shot", "zero_shot", "super_multi_class", "cross_class"}),
    presets={
        "paper": {},
        "paper_1_percent": {"coreset": 0.01},
        "fast": {"coreset": 0.01},
        "demo": {"input_size": (224, 224), "crop_size": (196, 196), "coreset": 0.05, "projection": 64},
        "smoke": {"input_size": (128, 128), "crop_size": (112, 112), "coreset": 0.05, "projection": 16},
    },
    weights=weights_of,
    paper="Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022",
)
