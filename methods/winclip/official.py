"""What the WinCLIP repository (variant mala_lab) does around its network: tiles, drawn references, metrics.

`bench run` does none of it: it squashes images that are not square, draws references without replacement, has its own metrics.
These functions are for scripts that compare with the repository's own numbers, and for the golden tests of this reading of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.api import Size

Box = tuple[int, int, int, int]  # left, top, right, bottom
REFERENCE_SEED = 10


def tile_boxes(size: Size) -> list[Box]:
    """Boxes of the square tiles of an image of (height, width); every score is a mean over them. One box for a square image.

    Tiles always step to the right: those of a portrait lie outside of the picture (black) but for its first rows. The last tile may
    come twice, and counts twice.
    """
    height, width = size
    side, longer = min(size), max(size)
    if height == width:
        return [(0, 0, width, height)]
    starts = range(0, longer, int(0.8 * side))
    return [(longer - side, 0, longer, side) if x + side >= longer else (x, 0, x + side, side) for x in starts]


def reference_choice(count: int, shots: int) -> list[int]:
    """Which of `count` training files are the references, in the order of the folder's listing; one may be drawn twice."""
    chosen: list[int] = np.random.RandomState(REFERENCE_SEED).choice(count, shots).tolist()
    return chosen


def trapezoid_aupr(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Area under the precision-recall curve by the trapezoid rule; the bench's I-AP (as InCTRL's) is the step-wise sum.

    scores: (N,), higher is more anomalous; labels: (N,), 0 or 1, both present.
    """
    thresholds = np.unique(scores)[::-1]
    hits = np.array([((scores >= t) & (labels == 1)).sum() for t in thresholds], dtype=np.float64)
    alarms = np.array([(scores >= t).sum() for t in thresholds], dtype=np.float64)
    recall = np.concatenate(([0.0], hits / (labels == 1).sum()))
    precision = np.concatenate(([1.0], hits / alarms))
    return float(((precision[1:] + precision[:-1]) / 2 * np.diff(recall)).sum())


def grid_f1max(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The largest F1 of `score > t` for t = 0, 0.01, ..., 0.99 (not for all thresholds). Shapes as for `trapezoid_aupr`."""
    best = 0.0
    for threshold in np.arange(100) / 100:
        alarm = scores > threshold
        hits = int((alarm & (labels == 1)).sum())
        if hits:
            best = max(best, 2.0 * hits / (int(alarm.sum()) + int((labels == 1).sum())))
    return best
