"""INP-Former (CVPR 2025): a decoder that may only use the prototypes of normality it finds in the image itself.

Importing this folder imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from inpbench.harness.api import LATER, MethodInfo
from inpbench.methods.reconstruction_params import DEMO, FAST, SMOKE, ReconstructionParams, encoder_weights


@dataclass(frozen=True, kw_only=True)
class InpFormerParams(ReconstructionParams):
    """Defaults are those of the official training scripts, the same for every setting."""

    NAME: ClassVar[str] = "inp_former"
    AT_LEAST: ClassVar[dict[str, float]] = {"inp_num": 1, "epochs": 1, "mining_power": 0.0, "gather_weight": 0.0}

    inp_num: int = 6  # M, prototypes an image
    epochs: int = 200  # where `steps` is none
    mining_power: float = 3.0  # exponent of the soft mining; 0: off
    gather_weight: float = 0.2  # weight of the coherence loss
    remove_class_token: bool = field(default=True, metadata=LATER)  # False: class and register tokens pass through the head, too


INFO = MethodInfo(
    name="inp_former",
    version=1,
    title="INP-Former: intrinsic normal prototypes within a single image",
    target="inpbench.methods.inp_former.method:InpFormer",
    params=InpFormerParams,
    settings=frozenset({"multi_class", "single_class", "few_shot", "zero_shot", "super_multi_class", "cross_class"}),
    presets={
        "paper": {},
        "fast": FAST,
        "demo": {**DEMO, "lr": 6e-3, "final_lr": 6e-4, "inp_num": 12},
        "smoke": SMOKE,
    },
    weights=encoder_weights,
    parallel=True,
    paper="Luo et al., Exploring Intrinsic Normal Prototypes within a Single Image for Universal Anomaly Detection, CVPR 2025",
)
