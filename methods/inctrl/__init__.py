"""InCTRL (CVPR 2024): one model for all data sets, which learns what a residual to a few normal images means.

Importing this folder imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from inpbench.harness.api import MethodInfo, Preprocess
from inpbench.harness.errors import UsageError
from inpbench.methods.clip_params import ClipParams, Tag, clip_preprocess, clip_weights


@dataclass(frozen=True, kw_only=True)
class InCtrlParams(ClipParams):
    """Defaults are those of the official training and test scripts."""

    NAME: ClassVar[str] = "inctrl"

    pretrained: Tag = "laion400m_e32"  # which published weights of CLIP
    layers: tuple[int, ...] = (6, 8, 10)  # blocks whose tokens are compared, 0-based
    # Which images a row of a batch is compared with. per_image: its own prompts. official: the reshape of the original, which mixes
    # layers, images and prompts of a batch. Its checkpoints were trained so, and tested so until 2024-09.
    train_residuals: Literal["per_image", "official"] = "official"  # per_image: with its own prompts; official mixes the batch
    test_residuals: Literal["per_image", "official"] = "per_image"  # official: scores depend on --eval-batch
    epochs: int = 10  # the paper's numbers are those after 6, its authors say (issue 26): epochs=6 ends there, with the same steps
    steps_per_epoch: int = 100  # optimiser steps of an epoch
    batch_size: int = 16  # the first half normal, the other anomalous
    lr: float = 1e-3  # learning rate, constant
    weight_decay: float = 0.01  # on every trained tensor
    gamma: float = 2.0  # exponent of the focal loss

    @property
    def preprocess(self) -> Preprocess:
        """The shorter side to the network's, centre crop, then RGB."""
        return clip_preprocess(self.architecture, squash=False, own_mode=True)

    @property
    def batch_dependent(self) -> bool:
        """Whether a score depends on the images of its batch: then --eval-batch is a part of the record's identity."""
        return self.test_residuals == "official"

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together."""
        super().check()
        self.at_least(epochs=1, steps_per_epoch=1, batch_size=2, lr=0.0, weight_decay=0.0, gamma=0.0)
        if not self.layers or any(not 0 <= layer < self.architecture.layers for layer in self.layers):
            raise UsageError(
                f"inctrl.layers: expected blocks from 0 to {self.architecture.layers - 1}, found {self.layers}.",
                "Type: --set inctrl.layers=6,8,10",
            )


INFO = MethodInfo(
    name="inctrl",
    version=1,
    title="InCTRL: in-context residuals to a few normal images, over CLIP",
    target="inpbench.methods.inctrl.method:InCtrl",
    params=InCtrlParams,
    settings=frozenset({"generalist"}),
    presets={
        "paper": {},
        "fast": {"epochs": 6},
        "demo": {"model": "tiny", "epochs": 3, "steps_per_epoch": 20},
        "smoke": {"model": "tiny", "epochs": 1, "steps_per_epoch": 3, "batch_size": 4},
    },
    weights=clip_weights,
    paper="Zhu and Pang, Toward Generalist Anomaly Detection via In-context Residual Learning with Few-shot Sample Prompts, "
    "CVPR 2024",
    told_category=True,
)
