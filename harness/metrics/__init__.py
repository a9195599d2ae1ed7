"""The seven metrics of the field: names, definitions and variants. Importing this file imports no torch.

`inpbench.harness.metrics.category.CategoryMetrics` computes all of them in one pass. The mean over categories is the plain mean of
the categories that have a value. A change of a definition raises SUITE_VERSION, which is part of every identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

SUITE_VERSION = 1
AUPRO_LIMIT = 0.3  # false-positive rate up to which AUPRO integrates

Variant = Literal["exact", "paper", "dinomaly", "crr"]

VARIANTS: Mapping[str, str] = {
    "exact": "every threshold, ties right, no constants added (default)",
    "paper": "INP-Former's evaluation: pixel metrics on 201 edges of 200 strips between the smallest and the largest score of the "
    "category, pixels equal to the largest counted twice (adeval 1.1.0); F1 with 1e-7 in the denominator; image metrics exact",
    "dinomaly": "Dinomaly's evaluation: exact but for F1 with 1e-7 in the denominator and AUPRO on 200 thresholds, false-positive "
    "rates below 0.3 divided by the largest of them, no interpolation at the limit",
    "crr": "CRR's evaluation: as `paper`, with 1,000 strips",
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column of every table."""

    name: str  # in records and on the command line
    title: str  # in tables
    level: Literal["image", "pixel"]
    definition: str  # of the exact variant
    higher_is_better: bool = True


_AUROC = "area under the ROC curve: the share of (anomalous, normal) pairs ranked right, a tied pair counts one half"
_AP = "average precision, step-wise: sum over thresholds of the gain in recall times the precision"
# The papers divide by (P + R + 1e-7): a perfect score is then 0.99999995, and every other changes in the seventh digit.
_F1 = "largest 2 P R / (P + R) over all thresholds, P precision and R recall"

_ALL = (
    Metric(name="i_auroc", title="I-AUROC", level="image", definition=f"{_AUROC}; over the images of a category"),
    Metric(name="i_ap", title="I-AP", level="image", definition=f"{_AP}; over the images of a category"),
    Metric(name="i_f1max", title="I-F1max", level="image", definition=f"{_F1}; over the images of a category"),
    Metric(name="p_auroc", title="P-AUROC", level="pixel", definition=f"{_AUROC}; over the pixels of a category"),
    Metric(name="p_ap", title="P-AP", level="pixel", definition=f"{_AP}; over the pixels of a category"),
    Metric(name="p_f1max", title="P-F1max", level="pixel", definition=f"{_F1}; over the pixels of a category"),
    Metric(
        name="aupro",
        title="AUPRO",
        level="pixel",
        definition="per-region overlap: the covered share of each 8-connected region of the masks, averaged over the regions of a "
        "category, as a function of the false-positive rate over its normal pixels; area up to 0.3, linearly interpolated "
        "there, / 0.3",
    ),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
IMAGE_METRICS = tuple(metric.name for metric in _ALL if metric.level == "image")
PIXEL_METRICS = tuple(metric.name for metric in _ALL if metric.level == "pixel")


@dataclass(frozen=True)
class MetricValues:
    """What a set of metrics came to.

    values: metric to fraction, None where it is undefined. undefined: metric to the reason, for exactly those.
    bounds: metric to the largest possible distance from the value of the variant's definition, for the others.
    """

    values: dict[str, float | None] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def without(cls, names: tuple[str, ...], reason: str) -> MetricValues:
        """No metric of `names` has a value, all for one reason."""
        return cls(dict.fromkeys(names), dict.fromkeys(names, reason), {})

    def merged(self, other: MetricValues) -> MetricValues:
        """The metrics of both, in the order of METRICS."""
        values = {**self.values, **other.values}
        return MetricValues(
            {name: values[name] for name in METRICS if name in values},
            {**self.undefined, **other.undefined},
            {**self.bounds, **other.bounds},
        )
