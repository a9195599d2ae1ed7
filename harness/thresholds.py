"""From scores of images to the threshold above which an image is called anomalous.

`quantile=Q`: the smallest normal score that at least the share Q of the normal scores does not exceed; at most 1 - Q of those
normal images are false alarms, whatever the defects look like. `f1`: the cut with the highest F1 on labelled scores, half-way
to the next score below; of several, the highest. A number stands for itself. The verdict is always `score > threshold`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inpbench.harness.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORMS = "Type: --threshold quantile=0.995, f1, none, or a number"


@dataclass(frozen=True)
class Rule:
    """How a threshold is found: `kind` is none, f1, quantile or value."""

    kind: str
    number: float = math.nan  # the quantile, or the threshold itself


@dataclass(frozen=True)
class Threshold:
    """A threshold and where it comes from, for the files of results."""

    value: float
    rule: str
    source: str
    normal_images: int = 0
    false_alarms: int = 0  # of those normal images


def parse_rule(text: str) -> Rule:
    """`f1`, `quantile=0.995`, `none` or a number; raises `UsageError` for anything else."""
    name, equals, value = text.strip().partition("=")
    if name in ("f1", "none") and not equals:
        return Rule(name)
    try:
        number = float(value if equals else name)
    except ValueError:
        raise UsageError(f"--threshold: '{text}' is no rule.", _FORMS) from None
    if equals and (name != "quantile" or not 0 < number <= 1):
        raise UsageError(f"--threshold: '{text}': expected quantile=Q with 0 < Q <= 1.", _FORMS)
    if not math.isfinite(number):
        raise UsageError(f"--threshold: '{text}' is not finite.", _FORMS)
    return Rule("quantile" if equals else "value", number)


def quantile_threshold(normal: NDArray[Any] | Sequence[float], share: float) -> float:
    """normal: (N,) scores of normal images, N >= 1."""
    ordered = np.sort(np.asarray(normal, dtype=np.float64))
    if not len(ordered):
        raise UsageError("A quantile needs scores of normal images, found none.", "Type: --normal DIR")
    rank = math.ceil(round(share * len(ordered), 9))  # rounded: 0.995 * 200 is 199.00000000000003
    return float(ordered[max(rank, 1) - 1])


def f1_threshold(scores: NDArray[Any] | Sequence[float], labels: NDArray[Any] | Sequence[int]) -> float:
    """scores, labels: (N,), label 1 is anomalous; needs both labels."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranked, hits = np.asarray(scores, dtype=np.float64)[order], np.asarray(labels)[order] == 1
    if hits.all() or not hits.any():
        raise UsageError("--threshold f1 needs scores of normal and of anomalous images.", "Type: --threshold quantile=0.995")
    flagged = np.arange(1, len(ranked) + 1)
    f1 = 2 * hits.cumsum() / (flagged + hits.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # equal scores are never parted
    cut = int(f1.argmax())
    below = ranked[cut + 1] if cut + 1 < len(ranked) else ranked[cut] - 1.0
    middle = (ranked[cut] + below) / 2
    return float(middle if middle < ranked[cut] else below)  # neighbouring floats have no middle
