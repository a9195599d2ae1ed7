"""ROC, precision-recall and PRO curves and histograms of scores, thinned to what an eye can tell.

Image curves come from the per-image scores beside a record; pixel curves, the PRO among them, need kept maps (`--save-maps`). The
areas in the tables are computed from all thresholds, never from these points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inpbench.harness.metrics import AUPRO_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.metrics.bootstrap import PixelCounts

POINTS = 120  # of a curve
BARS = 24  # of a histogram

Points = list[list[float]]  # [x, y], rising x


def image_curves(scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, Points]:
    """`roc` and `pr` of one category, or nothing where a class is missing. scores, labels: (N,)."""
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        return {}
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # one point a different score
    tp = np.cumsum(labels[order] == 1)[last]
    fp = np.cumsum(labels[order] == 0)[last]
    return _rank_curves(tp.astype(np.float64), fp.astype(np.float64), positives, negatives)


def pixel_curves(counts: PixelCounts) -> dict[str, Points]:
    """`roc`, `pr` and `pro` of the pixels of one category, or nothing where a class is missing."""
    n, p, share = (part.sum(axis=0)[::-1] for part in counts[:3])  # highest scores first
    if not p.sum() or not n.sum():
        return {}
    curves = _rank_curves(np.cumsum(p), np.cumsum(n), p.sum(), n.sum())
    x, y = np.append(0, np.cumsum(n) / n.sum()), np.append(0, np.cumsum(share) / counts.regions.sum())
    end = int(np.searchsorted(x, AUPRO_LIMIT))
    x, y = np.append(x[:end], AUPRO_LIMIT), np.append(y[:end], np.interp(AUPRO_LIMIT, x, y))
    return curves | {"pro": thin(x, y)}


def _rank_curves(tp: NDArray[Any], fp: NDArray[Any], positives: float, negatives: float) -> dict[str, Points]:
    roc = thin(np.append(0, fp / negatives), np.append(0, tp / positives))
    found = tp > 0
    recall, precision = tp[found] / positives, tp[found] / (tp + fp)[found]
    return {"roc": roc, "pr": thin(np.append(0, recall), np.append(precision[0], precision))}


def thin(x: NDArray[Any], y: NDArray[Any], points: int = POINTS) -> Points:
    """At most `points` of a curve, evenly along its length, its ends included. x, y: (N,)."""
    if x.size > points:
        length = np.append(0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
        chosen = np.unique(np.searchsorted(length, np.linspace(0, length[-1], points)).clip(0, x.size - 1))
        chosen = np.unique(np.concatenate([[0], chosen, [x.size - 1]]))
        x, y = x[chosen], y[chosen]
    return [[round(float(a), 4), round(float(b), 4)] for a, b in zip(x, y, strict=True)]


def histogram(scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, Any]:
    """`low`, `high` and the counts of `normal` and `anomalous` images in BARS equal steps between them."""
    low, high = float(scores.min()), float(scores.max())
    edges = np.linspace(low, high if high > low else low + 1, BARS + 1)
    sides = {name: np.histogram(scores[labels == label], edges)[0].tolist() for name, label in (("normal", 0), ("anomalous", 1))}
    return {"low": low, "high": high, **sides}
