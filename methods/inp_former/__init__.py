"""INP-Former (CVPR 2025): a decoder that may only use the prototypes of normality it finds in the image itself.

Importing this folder imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from inpbench.harness.api import MethodInfo
from inpbench.methods.reconstruction_params import ReconstructionParams, encoder_weights


@dataclass(frozen=True, kw_only=True)
class InpFormerParams(ReconstructionParams):
    """Defaults are those of the official training scripts, the same for every setting."""

    NAME: ClassVar[str] = "inp_former"
    AT_LEAST: ClassVar[dict[str, float]] = {"inp_num": 1, "epochs": 1, "mining_power": 0.0, "gather_weight": 0.0}

    inp_num: int = 6  # M, prototypes an image
    epochs: int = 200  # where `steps` is none
    mining_power: float = 3.0  # exponent of the soft mining; 0: off
    gather_weight: float = 0.2  # weight of the coherence loss


INFO = MethodInfo(
    name="inp_former",
    version=1,
    title="INP-Former: intrinsic normal prototypes within a single image",
    target="inpbench.methods.inp_former.method:InpFormer",
    params=InpFormerParams,
    settings=frozenset({"multi_class", "single_class"}),
    presets={
        "paper": {},
        "fast": {"steps": 2000},
        # For small data sets and the built-in encoder, two CPU cores and a minute: half the decoder, small crops, a steep schedule.
        "demo": {
            "steps": 300,
            "batch_size": 8,
            "input_size": (224, 224),
            "crop_size": (196, 196),
            "decoder_depth": 4,
            "decoder_groups": ((0, 1), (2, 3)),
            "lr": 6e-3,
            "final_lr": 6e-4,
            "warmup": 20,
            "inp_num": 12,
        },
        "smoke": {"steps": 6, "batch_size": 4, "input_size": (128, 128), "crop_size": (112, 112), "warmup": 2},
    },
    weights=encoder_weights,
    paper="Luo et al., Exploring Intrinsic Normal Prototypes within a Single Image for Universal Anomaly Detection, CVPR 2025",
)
