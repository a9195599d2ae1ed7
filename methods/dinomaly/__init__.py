"""Dinomaly (CVPR 2025): a noisy bottleneck and a decoder with linear attention that cannot copy what it has not seen.

Importing this folder imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from inpbench.harness.api import MethodInfo
from inpbench.methods.noisy_params import NoisyParams
from inpbench.methods.reconstruction_params import DEMO, FAST, SMOKE, encoder_weights


@dataclass(frozen=True, kw_only=True)
class DinomalyParams(NoisyParams):
    """Defaults are those of the official multi-class scripts for MVTec AD and VisA.

    Scripts that differ: Real-IAD multi-class has 50,000 steps and dropout 0.4 (preset `paper_real_iad`); the single-class ones of
    MVTec AD, VisA and MPDD have eps 1e-8 (preset `paper_single_class`). Its authors have
    no few-shot recipe: in few_shot it trains on the support images as they are, with the steps of multi_class.
    """

    NAME: ClassVar[str] = "dinomaly"
    # Where `steps` is none: a model for each category gets half of what one model for all gets.
    PAPER_STEPS: ClassVar[Mapping[str, int]] = {"multi_class": 10_000, "single_class": 5_000}


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
    parallel=True,
    paper="Guo et al., Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection, CVPR 2025",
)
