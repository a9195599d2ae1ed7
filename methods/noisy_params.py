"""The parameters that Dinomaly and CRR share; importing this file imports no torch. Defaults are Dinomaly's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from inpbench.methods.reconstruction_params import ReconstructionParams


@dataclass(frozen=True, kw_only=True)
class NoisyParams(ReconstructionParams):
    """Of a reconstruction with a noisy bottleneck, linear attention and a loss that spares the easy points."""

    AT_LEAST: ClassVar[dict[str, float]] = {
        "dropout": 0.0,
        "mining_share": 0.0,
        "mining_ramp": 0,
        "mining_factor": 0.0,
        "attention_eps": 0.0,
    }
    PAPER_STEPS: ClassVar[Mapping[str, int]] = {}  # where `steps` is none, by setting; `multi_class` stands for those not named

    lr: float = 2e-3  # highest learning rate
    final_lr: float = 2e-4  # learning rate at the end of the cosine
    dropout: float = 0.2  # share dropped in the bottleneck: input, hidden, output
    mining_share: float = 0.9  # share of easy points whose gradient is shrunk, at the end of the ramp
    mining_ramp: int = 1000  # steps over which the share grows from 0; 0: the full share from the start
    mining_factor: float = 0.1  # what the gradient of easy points is multiplied by
    attention: Literal["linear", "explicit_linear", "softmax"] = "linear"  # attention of the decoder
    attention_eps: float = 0.0  # added to the linear attention's denominator; Dinomaly's authors advise 1e-6 against NaN
    remove_class_token: bool = False  # drop class and register tokens before the bottleneck

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together."""
        super().check()
        if self.dropout >= 1.0:
            self._refuse("dropout", "below 1", self.dropout)
        if self.mining_share > 1.0:
            self._refuse("mining_share", "at most 1", self.mining_share)
