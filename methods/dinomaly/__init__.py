"""Dinomaly (CVPR 2025): a noisy bottleneck and a decoder with linear attention that cannot copy what it has not seen.

Importing this folder imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from inpbench.harness.api import MethodInfo
from inpbench.methods.reconstruction_params import DEMO, FAST, SMOKE, ReconstructionParams, encoder_weights


@dataclass(frozen=True, kw_only=True)
class DinomalyParams(ReconstructionParams):
    """Defaults are those of the official multi-class scripts for MVTec AD and VisA.

    Scripts that differ: Real-IAD multi-class has 50,000 steps and dropout 0.4 (preset `paper_real_iad`); the single-class ones of
    MVTec AD, VisA and MPDD have eps 1e-8 (preset `paper_single_class`). Its authors have
    no few-shot recipe: in few_shot it trains on the support images as they are, with the steps of multi_class.
    """

    NAME: ClassVar[str] = "dinomaly"
    AT_LEAST: ClassVar[dict[str, float]] = {
        "dropout": 0.0,
        "mining_share": 0.0,
        "mining_ramp": 0,
        "mining_factor": 0.0,
        "attention_eps": 0.0,
    }
    # Steps where `steps` is none: a model for each category gets half of what one model for all gets.
    PAPER_STEPS: ClassVar[Mapping[str, int]] = {"multi_class": 10_000, "single_class": 5_000}

    lr: float = 2e-3
    final_lr: float = 2e-4
    dropout: float = 0.2  # of the bottleneck: input, hidden, output
    mining_share: float = 0.9  # share of easy points whose gradient is shrunk, at the end of the ramp
    mining_ramp: int = 1000  # steps over which the share grows from 0; 0: the full share from the start
    mining_factor: float = 0.1  # what the gradient of easy points is multiplied by
    attention: Literal["linear", "explicit_linear", "softmax"] = "linear"  # of the decoder
    attention_eps: float = 0.0  # added to the linear attention's denominator; the authors advise 1e-6 against NaN
    remove_class_token: bool = False  # drop class and register tokens before the bottleneck

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together."""
        super().check()
        if self.dropout >= 1.0:
            self._refuse("dropout", "below 1", self.dropout)
        if self.mining_share > 1.0:
            self._refuse("mining_share", "at most 1", self.mining_share)


INFO = MethodInfo(
    name="dinomaly",
    version=1,
    title="Dinomaly: the less-is-more reconstruction of frozen features",
    target="inpbench.methods.dinomaly.method:Dinomaly",
    params=DinomalyParams,
    settings=frozenset({"multi_class", "single_class", "few_shot", "super_multi_class", "cross_class"}),
    presets={
        "paper": {},
        "paper_real_iad": {"steps": 50_000, "dropout": 0.4},
        "paper_single_class": {"steps": 5_000, "eps": 1e-8},
        "fast": FAST,
        "demo": {**DEMO, "lr": 4e-3, "final_lr": 4e-4, "mining_ramp": 100},
        "smoke": {**SMOKE, "mining_ramp": 4},
    },
    weights=encoder_weights,
    paper="Guo et al., Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection, CVPR 2025",
)
