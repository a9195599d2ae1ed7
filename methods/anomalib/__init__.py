"""The models of anomalib under the bench's protocol: `anomalib.padim`, `anomalib.efficient_ad`, ... or any class by its name.

Ours: images, categories, settings, seeds, metrics. anomalib's: network, loss, optimiser, training loop (Lightning). Parameters that
are not the adapter's own go to the model's constructor: --set anomalib.padim.n_features=50. anomalib names no training length for
most models (Lightning would train 1000 epochs): the table gives the paper's where it is known, else 100 epochs.
Importing this folder imports neither torch nor anomalib.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar, NamedTuple

from inpbench.harness.api import MethodFamily, MethodInfo, Preprocess, Size, WeightSpec
from inpbench.harness.errors import PrerequisiteError, UsageError, did_you_mean

INSTALL = "Type: pip install 'inpbench[anomalib]'"
EPOCHS = 100  # of models for which neither anomalib nor the table names a number


class Entry(NamedTuple):
    """What must be known of a model before anomalib is imported; numbers are the defaults of anomalib 2.7."""

    model: str  # class in anomalib.models
    encoder: str = ""  # pretrained network it fetches by itself; "": none
    resize: int = 256
    crop: int = 0  # 0: no crop
    epochs: int | None = EPOCHS
    steps: int | None = None
    batch: int = 32


_WIDE = "wide_resnet50_2"
_DINOV2 = "vit_base_patch14_reg4_dinov2"

# Lengths of training: the papers' as far as remembered, not checked against them; 100 epochs where none is known.
MODELS: Mapping[str, Entry] = {
    "anomaly_dino": Entry("AnomalyDINO", "vit_small_patch14_dinov2", 252, epochs=1),
    "cfa": Entry("Cfa", _WIDE, epochs=30),
    "cflow": Entry("Cflow", _WIDE, epochs=50),
    "csflow": Entry("Csflow", "efficientnet_b5", epochs=240),
    "dfkde": Entry("Dfkde", "resnet18", epochs=1),
    "dfm": Entry("Dfm", "resnet50", epochs=1),
    "dinomaly": Entry("Dinomaly", _DINOV2, 448, 392, epochs=None, steps=10_000, batch=16),
    "draem": Entry("Draem", epochs=700, batch=8),
    "dsr": Entry("Dsr", "its own vq model"),
    "efficient_ad": Entry("EfficientAd", "its own teacher", epochs=None, steps=70_000, batch=1),
    "fastflow": Entry("Fastflow", "resnet18", epochs=500),
    "foundad": Entry("FoundAD", "dinov2_vit_base_14", 518),
    "fre": Entry("Fre", "resnet50"),
    "ganomaly": Entry("Ganomaly"),
    "general_ad": Entry("GeneralAD", "vit_large_patch14_dinov2", 518, epochs=160),
    "glass": Entry("Glass", _WIDE, 288, epochs=640),
    "inp_former": Entry("InpFormer", _DINOV2, 448, 392, epochs=200, batch=16),
    "l2bt": Entry("L2BT", "vit_base_patch8_224.dino", 224),
    "mh_patchcore": Entry("MHPatchcore", "wide_resnet50_2.tv2_in1k", 256, 224, epochs=3),
    "padim": Entry("Padim", "resnet18", epochs=1),
    "patchcore": Entry("Patchcore", _WIDE, epochs=1),
    "patchflow": Entry("Patchflow", "tf_efficientnet_b5", 768),
    "rad": Entry("Rad", "vit_base_patch16_dinov3", 512, 448, epochs=1),
    "reverse_distillation": Entry("ReverseDistillation", _WIDE, epochs=200, batch=16),
    "stfpm": Entry("Stfpm", "resnet18", epochs=100),
    "super_add": Entry("SuperADD", "vit_huge_plus_patch16_dinov3", 448, epochs=1),
    "supersimplenet": Entry("Supersimplenet", "wide_resnet50_2.tv_in1k", epochs=300),
    "uflow": Entry("Uflow", "mcait", 448, epochs=200),
    "uninet": Entry("UniNet", _WIDE),
}


def installed() -> str:
    """The version of the installed anomalib, or an empty string; nothing is imported."""
    try:
        return version("anomalib")
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True, kw_only=True)
class AnomalibParams:
    """What the adapter decides; each model has a subclass with its own defaults (`params_of`)."""

    OPEN: ClassVar[str] = "arguments"  # the field that takes every other key: see `harness.params.build`

    model: str  # class in anomalib.models
    version: str = field(default_factory=installed)  # of anomalib: its code is part of what is measured
    input_size: Size = (256, 256)  # resize by the bench, aspect ratio not kept
    crop_size: Size = (256, 256)  # centre crop by the bench: what the model sees
    batch_size: int = 32  # of training
    max_epochs: int | None = EPOCHS  # none: max_steps ends the training
    max_steps: int | None = None  # optimiser steps; none: max_epochs ends the training
    arguments: tuple[str, ...] = ()  # KEY=VALUE for the model's constructor, sorted

    @property
    def preprocess(self) -> Preprocess:
        """Pixels from 0 to 1: what a model normalises with is its own pre-processor's business."""
        return Preprocess(resize=self.input_size, crop=self.crop_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    @property
    def given(self) -> dict[str, str]:
        """The constructor's arguments by name, as texts."""
        return dict(text.split("=", 1) for text in self.arguments)

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together, `PrerequisiteError` for parameters of another anomalib."""
        if any(crop > side for crop, side in zip(self.crop_size, self.input_size, strict=True)):
            raise UsageError(f"{self.model}: crop_size {self.crop_size} is larger than input_size {self.input_size}.", _SET)
        if self.batch_size < 1 or not any(value is not None and value >= 1 for value in (self.max_epochs, self.max_steps)):
            raise UsageError(f"{self.model}: batch_size and max_epochs or max_steps must be at least 1.", _SET)
        if self.version != installed():
            raise PrerequisiteError(
                f"{self.model} is asked for with anomalib {self.version or '(none)'}, installed is {installed() or 'none'}.",
                f"Type: pip install anomalib=={self.version}" if self.version else INSTALL,
            )


_SET = "Type: --set anomalib.MODEL.KEY=VALUE"


@lru_cache(maxsize=64)
def params_of(entry: Entry) -> type[AnomalibParams]:
    """`AnomalibParams` with the defaults of one model."""
    side, crop = entry.resize, entry.crop or entry.resize
    defaults = {
        "model": ("str", entry.model),
        "input_size": ("Size", (side, side)),
        "crop_size": ("Size", (crop, crop)),
        "batch_size": ("int", entry.batch),
        "max_epochs": ("int | None", entry.epochs),
        "max_steps": ("int | None", entry.steps),
    }
    hints = {"Size": Size, "int | None": int | None, "str": str, "int": int}
    return dataclasses.make_dataclass(
        f"{entry.model}Params",
        [(name, hints[kind], field(default=value)) for name, (kind, value) in defaults.items()],
        bases=(AnomalibParams,),
        frozen=True,
        kw_only=True,
    )


def weights_of(params: AnomalibParams, *, encoder: str) -> tuple[WeightSpec, ...]:
    """The network that anomalib fetches by itself; raises `PrerequisiteError` where anomalib is not installed."""
    if not params.version:
        raise PrerequisiteError(f"anomalib.{params.model} needs the package anomalib, which is not installed.", INSTALL)
    name = params.given.get("backbone") or params.given.get("encoder_name") or encoder
    return (WeightSpec(name=name, file=f"anomalib-{params.version}", source="package"),) if name else ()


def member(name: str) -> MethodInfo:
    """The info of `anomalib.<name>`: a name of the table, or a class of anomalib.models (first letter a capital)."""
    if name in MODELS:
        entry = MODELS[name]
    elif name[:1].isupper() and name.isidentifier():
        entry = next((known for known in MODELS.values() if known.model == name), Entry(name, "its own weights"))
    else:
        raise UsageError(
            f"Unknown method 'anomalib.{name}'. {did_you_mean(name, MODELS)}",
            "Type: bench list methods --params anomalib.padim, or name a class of anomalib.models: anomalib.Padim",
        )
    short = entry.epochs is not None and entry.epochs <= 3  # a memory bank: as many epochs as it needs
    return MethodInfo(
        name=f"anomalib.{name}",
        version=1,
        title=f"{entry.model} of anomalib {installed()}".rstrip(),
        target="inpbench.methods.anomalib.method:AnomalibModel",
        params=params_of(entry),
        settings=frozenset({"multi_class", "single_class", "few_shot", "zero_shot", "super_multi_class", "cross_class"}),
        presets={
            "paper": {},
            "fast": {} if short else {"max_epochs": 20, "max_steps": None},
            "demo": {} if short else {"max_epochs": 5, "max_steps": None},
            "smoke": {"batch_size": min(4, entry.batch)} | ({} if short else {"max_epochs": 2, "max_steps": None}),
        },
        weights=partial(weights_of, encoder=entry.encoder),
        extra="anomalib",
    )


FAMILY = MethodFamily(
    name="anomalib",
    title="any model of anomalib, fitted and scored here",
    package="anomalib",
    install=INSTALL.removeprefix("Type: "),
    members=tuple(MODELS),
    member=member,
)
