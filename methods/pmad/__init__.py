"""PMAD (AAAI 2023): hide what a flow over prototype residuals finds suspicious, and ask a BEiT which tokens should be there.

It is told the category of each test image and needs normal images of it (prototypes), also of categories never trained on.
Importing this folder imports no torch.
"""

from __future__ import annotations

from inpbench.harness.api import MethodInfo
from inpbench.methods.pmad.params import DEMO, FAST, SMOKE, PmadParams, weights

INFO = MethodInfo(
    name="pmad",
    version=1,
    title="PMAD: proposal masked cross-class anomaly detection",
    target="inpbench.methods.pmad.method:Pmad",
    params=PmadParams,
    settings=frozenset({"multi_class", "single_class", "cross_class"}),
    presets={
        "paper": {},
        "paper_mvtec_ad": {"hide_by": "mvtec_ad"},
        "fast": FAST,
        "demo": DEMO,
        "smoke": SMOKE,
    },
    weights=weights,
    paper="Yao et al., One-for-All: Proposal Masked Cross-Class Anomaly Detection, AAAI 2023",
    told_category=True,
)
