"""The pixel metrics of official evaluations that look at some thresholds instead of all; kept to reproduce their numbers.

paper (INP-Former, adeval 1.1.0): 200 equal strips between the smallest and the largest score, bin trunc((v - lo) * 200 / (hi - lo))
in float32; at edge j everything in strip j or above is anomalous. Pixels equal to the largest score lie in the last strip and in an
overflow strip: they count twice. Areas are trapezoids over the 201 edges without end points; precision is 1 where nothing is found.
crr: the same with 1000 strips.

dinomaly: thresholds from the smallest score in steps of (largest - smallest) / 200, strictly above is anomalous; false-positive
rates below 0.3 are kept and divided by the largest of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics import AUPRO_LIMIT
from inpbench.harness.metrics.curve import ROUNDING, Area, Counts
from inpbench.harness.metrics.keys import Ints, keys_of, values_of

STRIPS = 200
STRIPS_OF: Mapping[str, int] = {"paper": STRIPS, "crr": 1000}  # variants on strips
_CONSTANT = "every pixel has the same score, and the {} evaluation divides by the range"


def strip_keys(low: float, high: float, strips: int = STRIPS) -> Ints:
    """Keys (strips + 1,) of the smallest float32 scores of each strip and of the overflow strip.

    Raises `MetricError` where all scores are equal: the official code stops there.
    """
    lo, hi = np.float32(low), np.float32(high)
    if not lo < hi:
        raise MetricError(_CONSTANT.format("official"), "Use the exact variant.")
    ends = keys_of(np.array([lo, hi]))
    wanted = np.arange(1, strips)
    least, most = np.full(wanted.size, ends[0]), np.full(wanted.size, ends[1])  # strip(least) < wanted <= strip(most)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = hi - lo
        while np.any(most - least > 1):
            middle = least + (most - least) // 2
            strip = np.trunc((values_of(middle, np.float32) - lo) * np.float32(strips) / scale)
            reached = ~(strip < wanted)
            most, least = np.where(reached, middle, most), np.where(reached, least, middle)
    return np.concatenate((ends[:1], most, ends[1:]))


def strip_areas(counts: Counts) -> dict[str, Area | str]:
    """P-AUROC, P-AP and AUPRO of a variant on strips from counts at `strip_keys`; a text is the reason why there is no value."""
    fp, tp, share = (_twice(part) for part in (counts.normal, counts.anomalous, counts.share))
    fpr, tpr, pro = fp / fp[0], tp / tp[0], share / share[0]
    found = tp + fp
    precision = np.divide(tp, found, out=np.ones(found.size), where=found > 0)
    # How far a histogram bin cut by an edge can move each point; 0 where pixels are kept. All pixels above `hi` count twice.
    d_fpr, d_tpr = _slack(counts.split_normal, fp[0]), _slack(counts.split_anomalous, tp[0])
    d_precision = float(np.max((_doubled(counts.split_normal + counts.split_anomalous)) / np.maximum(found, 1)))
    bend = 1.0 + float(np.sum(np.abs(np.diff(precision))))
    areas: dict[str, Area | str] = {
        "p_auroc": Area(_trapezoid(fpr[::-1], tpr[::-1]), d_fpr + d_tpr + ROUNDING),
        "p_ap": Area(_trapezoid(tpr[::-1], precision[::-1]), d_precision + 2 * d_tpr * bend + ROUNDING),
    }
    if fpr[-1] > AUPRO_LIMIT:
        areas["aupro"] = f"no strip edge has a false-positive rate of at most {AUPRO_LIMIT}"
        return areas
    slack = (2 * d_fpr + _slack(counts.split_share, share[0])) / AUPRO_LIMIT
    x, y = fpr[::-1], pro[::-1]  # ascending
    inside = x <= AUPRO_LIMIT
    x, y = np.append(x[inside], AUPRO_LIMIT), np.append(y[inside], np.interp(AUPRO_LIMIT, x, y))
    areas["aupro"] = Area(_trapezoid(x, y) / AUPRO_LIMIT, slack + ROUNDING)
    return areas


def threshold_keys(low: float, high: float, dtype: Any) -> Ints:
    """Keys of the smallest scores of `dtype` strictly above each of Dinomaly's thresholds.

    Raises `MetricError` where all scores are equal: the official code divides by zero there.
    """
    lo, hi = np.dtype(dtype).type(low), np.dtype(dtype).type(high)
    if not lo < hi:
        raise MetricError(_CONSTANT.format("Dinomaly"), "Use the exact variant.")
    thresholds = np.arange(lo, hi, (hi - lo) / STRIPS, dtype=dtype)
    keys = keys_of(thresholds) + 1  # the next larger score
    clipped: Ints = np.minimum(keys, keys_of(np.array([hi], dtype=dtype))[0])
    return clipped


def threshold_aupro(counts: Counts, normal: int, regions: int) -> Area | str:
    """AUPRO of the `dinomaly` variant from counts at `threshold_keys`; a text is the reason why there is no value."""
    fpr, pro = counts.normal / normal, counts.share / regions
    kept = fpr < AUPRO_LIMIT
    fpr, pro = fpr[kept], pro[kept]
    if fpr.size < 2 or fpr.max() == 0:
        return f"fewer than two of the {STRIPS} thresholds have a false-positive rate in (0, {AUPRO_LIMIT})"
    slack = 4 * _slack(counts.split_normal[kept], normal * fpr.max()) + _slack(counts.split_share, regions)
    order = np.argsort(fpr, kind="stable")
    return Area(_trapezoid(fpr[order] / fpr.max(), pro[order]), slack + ROUNDING)


def _twice(at_keys: NDArray[Any]) -> NDArray[np.float64]:
    """Counts (strips + 1,) at the edges: those at `hi`, the last, are in the last strip and in the overflow strip."""
    edges = at_keys.astype(np.float64)
    edges[:-1] += at_keys[-1]
    return edges


def _doubled(split: NDArray[Any]) -> NDArray[np.float64]:
    """What may be off at each edge, where the count at `hi` enters a second time."""
    edges = split.astype(np.float64)
    edges[:-1] += split[-1]
    return edges


def _slack(split: NDArray[Any], total: float) -> float:
    return float(np.max(split, initial=0) * 2 / total)


def _trapezoid(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Area under the polygon through (x, y), x ascending; numpy.trapezoid is younger than the oldest NumPy that we run on."""
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
