"""CRR (DI 2025): a decoder that reconstructs normal images and repairs synthetic anomalies, then a network that segments the rest.

Importing this folder imports no torch. Published for Real-IAD multi-class alone: every other constant here is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from inpbench.harness.api import MethodInfo, Size
from inpbench.methods.noisy_params import NoisyParams
from inpbench.methods.reconstruction_params import DEMO, FAST, SMOKE, encoder_weights


@dataclass(frozen=True, kw_only=True)
class CrrParams(NoisyParams):
    """Defaults are those of the official Real-IAD scripts; what they do not have is marked.

    mask_at_test: the original masks features at test time too, with new random numbers at each forward. `official` keeps the masks,
        because the segmentation network was trained behind them, but draws one for all images, so that a map depends on its
        image alone. `expected` multiplies by 1 - mask_share instead, `off` leaves the features whole (not what was trained).
    fusion: of the cosine map and the segmentation. `weighted` is the test script's, `sum` the evaluation between the training
        steps of stage II, `max` and `min` are unused there; `cosine` is stage I alone: no segmentation network is trained.
    texture_folder: images that anomalies are cut from. The original reads the 5640 of DTD; none: textures drawn by the bench.
    foreground_folder: grey maps under the paths of the training images, any extension. The original has maps that nobody
        published; none: anomalies may be everywhere. Of both folders the content, not the place, is part of a record's identity.
    """

    NAME: ClassVar[str] = "crr"
    AT_LEAST: ClassVar[dict[str, float]] = {
        "mask_share": 0.0,
        "mask_seed": 0,
        "segmentation_steps": 1,
        "segmentation_batch": 1,
        "segmentation_lr": 0.0,
        "segmentation_width": 1,
        "cosine_weight": 0.0,
    }
    # Where `steps` and `segmentation_steps` are none. single_class: our choice, in Dinomaly's proportion.
    PAPER_STEPS: ClassVar[Mapping[str, int]] = {"multi_class": 50_000, "single_class": 5_000}
    SEGMENTATION_STEPS: ClassVar[Mapping[str, int]] = {"multi_class": 8_000, "single_class": 800}

    dropout: float = 0.4  # share dropped in the bottleneck, after the mask
    mask_share: float = 0.4  # share of the bottleneck's input that is set to 0; the rest is not scaled
    mask_at_test: Literal["official", "expected", "off"] = "official"  # one mask for all images; times 1 - mask_share; no mask
    mask_seed: int = 1  # seed of the mask at test time with `official`; the test script's
    texture_folder: str | None = None  # with images that anomalies are cut from, e.g. DTD; none: drawn textures (our choice)
    foreground_folder: str | None = None  # with grey maps of where anomalies may lie; none: everywhere (our choice)
    segmentation_steps: int | None = None  # optimiser steps of stage II; none: the paper's
    segmentation_batch: int = 8  # images a step of stage II
    segmentation_lr: float = 1e-4  # learning rate, constant: the official schedule drops it at steps that are never reached
    segmentation_width: int | None = None  # w: its widest layers have 8 w channels; none: its input's (192 for ViT-B)
    segmentation_size: Size = (256, 256)  # the segmentation network's output, pixels
    map_size: Size = (256, 256)  # at which both maps are fused: the size of the metrics
    fusion: Literal["weighted", "sum", "max", "min", "cosine"] = "weighted"  # how both maps become one; cosine: stage I alone
    cosine_weight: float = 0.7  # share of the cosine map with `weighted`; the segmentation has the rest

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together."""
        super().check()
        if self.mask_share >= 1.0:
            self._refuse("mask_share", "below 1", self.mask_share)
        if self.cosine_weight > 1.0:
            self._refuse("cosine_weight", "at most 1", self.cosine_weight)
        for name in ("segmentation_size", "map_size"):
            if min(getattr(self, name)) < 1:
                self._refuse(name, "at least 1x1", getattr(self, name))
        channels = self.entry.dim * len(self.encoder_groups)
        if self.fusion != "cosine" and self.segmentation_width is None and channels < 8:
            self._refuse("segmentation_width", f"a number, because the input has {channels} channels", None)


INFO = MethodInfo(
    name="crr",
    version=1,
    title="CRR: collaborative reconstruction and repair",
    target="inpbench.methods.crr.method:Crr",
    params=CrrParams,
    settings=frozenset({"multi_class", "single_class", "super_multi_class"}),
    presets={
        "paper": {},
        # Our choice: no constants are published for these data sets. Dinomaly's steps and dropout, stage II in proportion.
        "mvtec_visa": {"steps": 10_000, "segmentation_steps": 1_600, "dropout": 0.2},
        "fast": {**FAST, "segmentation_steps": 400},
        "demo": {
            **DEMO,
            "lr": 4e-3,
            "final_lr": 4e-4,
            "mining_ramp": 100,
            "dropout": 0.2,
            "segmentation_steps": 80,
            "segmentation_lr": 2e-3,
            "segmentation_width": 4,
            "segmentation_size": (128, 128),
        },
        "smoke": {**SMOKE, "mining_ramp": 4, "segmentation_steps": 4, "segmentation_width": 2, "segmentation_size": (64, 64)},
    },
    weights=encoder_weights,
    folders=frozenset({"texture_folder", "foreground_folder"}),
    paper="Collaborative Reconstruction and Repair for Multi-class Industrial Anomaly Detection, DI 2025",
)
