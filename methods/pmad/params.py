"""PMAD's parameters and the files they ask for; importing this file imports no torch.

DALL-E's published `encoder.pkl` is a pickled program and is never loaded. Who trusts it converts it once, where OpenAI's package
dall_e is installed: import torch; torch.save(torch.load("encoder.pkl", weights_only=False).state_dict(), "dalle_encoder.pth")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from inpbench.harness.api import Preprocess, WeightSpec
from inpbench.harness.errors import UsageError
from inpbench.methods.encoder_table import get_encoder

SIDE = 14  # patches a side, of 16 x 16 pixels
PATCH = 16
SIZE = SIDE * PATCH
_UNILM = "https://github.com/microsoft/unilm/tree/master"

_WITHOUT = "or train a variant that needs none: --set pmad.tokenizer=kmeans"

EFFICIENTNET = WeightSpec(
    name="tf_efficientnet_b6",
    file="tf_efficientnet_b6_aa-80ba17e4.pth",
    url="https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/tf_efficientnet_b6_aa-80ba17e4.pth",
    timm="tf_efficientnet_b6.aa_in1k",
)
BEIT = WeightSpec(name="beit_base_16_pt22k", file="beit_base_patch16_224_pt22k.pth", url=f"{_UNILM}/beit (pretraining, pt22k)")
BEIT_LARGE = WeightSpec(name="beit_large_16_pt22k", file="beit_large_patch16_224_pt22k.pth", url=f"{_UNILM}/beit (pretraining)")
VQKD = WeightSpec(
    name="vqkd_clip",
    file="vqkd_encoder_base_decoder_1x768x12_clip-d93179da.pth",
    url=f"{_UNILM}/beit2 (VQ-KD tokenizer, CLIP)",
    in_checkpoint=False,
    without=_WITHOUT,
)
DALLE = WeightSpec(
    name="dalle_encoder",
    file="dalle_encoder.pth",
    url="https://cdn.openai.com/dall-e/encoder.pkl (convert it as methods/pmad/params.py says)",
    in_checkpoint=False,
    without=_WITHOUT,
)

Tokenizer = Literal["vqkd", "dalle", "kmeans"]
Start = Literal["beit", "scratch"]


@dataclass(frozen=True, kw_only=True)
class PmadParams:
    """Defaults are those of the official training script (not of its command line, which the script overrides)."""

    AT_LEAST: ClassVar[dict[str, float]] = {
        "dim": 1,
        "depth": 1,
        "heads": 1,
        "layer_scale": 0.0,
        "codes": 2,
        "flow_blocks": 1,
        "flow_lr": 0.0,
        "flow_epochs": 1,
        "flow_passes": 1,
        "flow_batch": 1,
        "position_dim": 4,
        "dynamic_from": 0,
        "block_cap": 4,
        "epochs": 1,
        "batch_size": 1,
        "lr": 0.0,
        "final_lr": 0.0,
        "warmup_epochs": 0,
        "weight_decay": 0.0,
    }

    encoder: str = "tf_efficientnet_b6"  # what the prototypes are made of: this one or builtin
    tokenizer: Tokenizer | None = None  # none: vqkd; with the built-in encoder kmeans
    token_encoder: str | None = None  # encoder of kmeans, by name; none: beit_vit_base_16, or builtin with it
    codes: int = 1024  # visual words of kmeans; the other tokenizers have 8192
    start: Start | None = None  # weights that training starts from; none: beit (22k, self-supervised), scratch with builtin
    dim: int = 768  # width of the reconstruction model
    depth: int = 12  # its transformer blocks
    heads: int = 12  # attention heads of each; they divide dim
    layer_scale: float = 0.1  # start value; 0: none
    drop_path: float = 0.1  # stochastic depth of the last block, in training only (the originals leave it on at test, too)

    scoring: Literal["full", "flow", "nearest"] = "full"  # flow: abnormality alone; nearest: distance to the prototypes alone
    oracle: bool = False  # the originals' evaluation, tuned on the test labels: parity only, never ranked
    ratio: float = 0.3  # share of patches hidden at test
    gate: bool = False  # hide random patches where the abnormality stays below the held-out quantile
    quantile: float = 0.95  # quantile of the held-out images' scores that is the gate's threshold
    held_out: float = 0.2  # share of a category's normal images that its constants come from, not its prototypes
    fine: Literal[14, 28] = 28  # patch vectors a side; 14 is a coarser and cheaper built-in encoder
    coreset: float = 0.01  # share of patch vectors that become prototypes
    projected: bool = True  # choose them after a random projection to as many dimensions

    flow_blocks: int = 4  # the originals train 4 and test with 8, half of them random
    position_dim: int = 128  # length of the position code, a multiple of 4
    flow_lr: float = 2e-4  # highest learning rate of the flow: two meta epochs of warm-up, then a cosine
    flow_epochs: int = 25  # meta epochs of the flow's training
    flow_passes: int = 8  # passes over the images of a meta epoch
    flow_batch: int = 32  # images a step of the flow
    flow_augment: bool = True  # random resized crops and flips; without them features are computed once

    hide: float = 0.3  # share of patches hidden in training
    hide_by: Literal["hide", "mvtec_ad"] = "hide"  # mvtec_ad: the authors' share for each of its categories, `hide` for others
    frequency: Literal["official", "patch"] = "official"  # weights of frequency masks
    dynamic_from: int = 100  # first epoch whose masks and losses follow the running errors
    block_cap: int = 58  # patches of the largest block

    epochs: int = 300  # passes of the reconstruction model over the training images
    batch_size: int = 1  # images a step; the last, smaller batch of an epoch is dropped
    lr: float = 1.5e-3  # highest learning rate
    final_lr: float = 1e-5  # learning rate at the end of the cosine
    warmup_epochs: int = 10  # linear, from 0
    weight_decay: float = 0.05  # not on biases and other vectors
    clip_norm: float = 3.0  # largest L2 norm of all gradients

    @property
    def preprocess(self) -> Preprocess:
        """Shorter side to 224 (Lanczos), centre crop, ImageNet normalisation; tokenizers get the same pixels, not normalised."""
        return Preprocess(resize=(SIZE, SIZE), crop=(SIZE, SIZE), shorter_side=True, interpolation="lanczos")

    @property
    def selection(self) -> str:
        """`oracle` where the test labels are looked at."""
        return "oracle" if self.oracle else "last"

    @property
    def builtin(self) -> bool:
        """Whether everything comes from the built-in encoder unless it is said otherwise."""
        return self.encoder == "builtin"

    @property
    def tokens(self) -> Tokenizer:
        """The tokenizer in use."""
        return self.tokenizer or ("kmeans" if self.builtin else "vqkd")

    @property
    def tokens_of(self) -> str:
        """The encoder that k-means tokens are made of."""
        return self.token_encoder or ("builtin" if self.builtin else "beit_vit_base_16")

    @property
    def begins(self) -> Start:
        """Where the reconstruction model starts."""
        return self.start or ("scratch" if self.builtin else "beit")

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together."""
        for name, least in self.AT_LEAST.items():
            if getattr(self, name) < least:
                self._refuse(name, f"at least {least:g}", getattr(self, name))
        for name in ("drop_path", "held_out", "quantile"):
            if not 0.0 <= getattr(self, name) < 1.0:
                self._refuse(name, "0 or more and below 1", getattr(self, name))
        for name in ("ratio", "hide", "coreset"):
            if not 0.0 < getattr(self, name) <= 1.0:
                self._refuse(name, "above 0 and at most 1", getattr(self, name))
        if min(self.ratio, self.hide) * SIDE**2 < 1.0:
            self._refuse(
                "ratio" if self.ratio < self.hide else "hide", f"at least one of {SIDE**2} patches", min(self.ratio, self.hide)
            )
        if self.clip_norm <= 0.0:
            self._refuse("clip_norm", "above 0", self.clip_norm)
        if self.encoder not in (EFFICIENTNET.name, "builtin"):
            self._refuse("encoder", f"{EFFICIENTNET.name} or builtin (its prototypes come from this CNN)", self.encoder)
        if self.fine != 28 and not self.builtin:
            self._refuse("fine", f"28, the grid of {self.encoder}", self.fine)
        if self.dim % self.heads:
            self._refuse("dim", f"a multiple of heads ({self.heads})", self.dim)
        if self.position_dim % 4:
            self._refuse("position_dim", "a multiple of 4", self.position_dim)
        if self.oracle and self.scoring != "full":
            self._refuse("oracle", "scoring=full", f"scoring={self.scoring}")
        if self.scoring == "full" and self.begins == "beit" and (self.dim, self.depth, self.heads) not in _BEIT_SIZES:
            self._refuse(
                "start", "scratch for an architecture of which BEiT has no file (base: 768/12/12, large: 1024/24/16)", "beit"
            )
        get_encoder(self.tokens_of)

    def _refuse(self, name: str, expected: str, found: object) -> None:
        raise UsageError(f"pmad.{name}: expected {expected}, found {found}.", f"Type: --set pmad.{name}=VALUE")


_BEIT_SIZES = {(768, 12, 12): BEIT, (1024, 24, 16): BEIT_LARGE}


def beit_file(params: PmadParams) -> WeightSpec:
    """The pretraining file of the reconstruction model's architecture."""
    return _BEIT_SIZES[params.dim, params.depth, params.heads]


def weights(params: PmadParams) -> tuple[WeightSpec, ...]:
    """The weight files of a parameter set: features, tokenizer, start of the reconstruction model."""
    found = [get_encoder("builtin").weights if params.builtin else EFFICIENTNET]
    if params.scoring == "full":
        if params.tokens == "kmeans":
            found.append(get_encoder(params.tokens_of).weights)
        else:
            found.append(VQKD if params.tokens == "vqkd" else DALLE)
        if params.begins == "beit":
            found.append(beit_file(params))
    return tuple(dict.fromkeys(found))


# For small data sets and the built-in encoder: two CPU cores and a minute or two.
DEMO: dict[str, Any] = {
    "tokenizer": "kmeans",
    "token_encoder": "builtin",
    "start": "scratch",
    "codes": 128,
    "dim": 64,
    "depth": 3,
    "heads": 4,
    "drop_path": 0.0,
    "flow_epochs": 3,
    "flow_passes": 1,
    "flow_batch": 2,
    "flow_augment": False,
    "flow_lr": 1e-3,
    "position_dim": 32,
    "projected": False,
    "epochs": 10,
    "batch_size": 8,
    "warmup_epochs": 1,
    "dynamic_from": 4,
}
SMOKE: dict[str, Any] = {
    **DEMO,
    "encoder": "builtin",
    "fine": 14,
    "codes": 16,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "flow_epochs": 1,
    "flow_passes": 1,
    "flow_batch": 4,
    "flow_blocks": 2,
    "epochs": 2,
    "batch_size": 4,
    "warmup_epochs": 1,
    "dynamic_from": 1,
}
# A GPU and an evening: images in batches, a third of the epochs.
FAST: dict[str, Any] = {
    "batch_size": 16,
    "epochs": 100,
    "warmup_epochs": 5,
    "dynamic_from": 34,
    "flow_epochs": 8,
}
