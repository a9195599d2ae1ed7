"""One walk down the scores gives all four curves: areas from running counts, with the error of what is not resolved.

A group is a set of pixels that are not told apart: equal scores, or the scores of one histogram bin. The walk goes from the highest
group to the lowest; tp, fp and pro are the anomalous pixels, the normal pixels and the summed region shares seen so far.

    AUROC  sum p (N - fp0 - n/2) / (P N)          AP    sum p/P tp1/(tp1 + fp1)
    F1max  max 2 tp1 / (P + tp1 + fp1)            AUPRO area under (fp/N, pro/R) up to 0.3, trapezoids, / 0.3

Groups without an anomalous pixel change none of these, so they may be left out. A group of unequal scores bounds the error: its
pixels could come in any order (equations at `Walk.add`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.metrics import AUPRO_LIMIT
from inpbench.harness.metrics.keys import Ints

Reals = NDArray[np.float64]
ROUNDING = 1e-12  # what float64 sums may be off by; the bound of a value from resolved groups


class Groups(NamedTuple):
    """K groups in descending order of their keys."""

    key: Ints  # (K,) smallest key of the group
    above: Ints  # (K,) normal pixels strictly above the group
    normal: Ints  # (K,) normal pixels in it
    anomalous: Ints  # (K,) anomalous pixels in it
    share: Reals  # (K,) sum over its anomalous pixels of 1 / area of their region
    width: int = 1  # how many different keys a group can hold; 1: its scores are equal


class Area(NamedTuple):
    """A number and the largest possible distance from the exact one."""

    value: float
    bound: float


class Walk:
    """The four areas of one category, from groups that come in any number of pieces, highest first."""

    def __init__(self, anomalous: int, normal: int, regions: int = 0, epsilon: float = 0.0) -> None:
        """P = `anomalous` and N = `normal` pixels (or images), both positive; `epsilon` is added to P + R in F1."""
        assert anomalous > 0 and normal > 0, "a one-class set has no curve"
        self.anomalous, self.normal, self.regions, self.epsilon = anomalous, normal, regions, epsilon
        self._limit = AUPRO_LIMIT * normal
        self._tp = self._fp = 0
        self._pro = 0.0
        self._auroc = self._ap = self._aupro = 0.0
        self._auroc_error = self._ap_error = self._aupro_error = 0.0
        self._f1 = self._f1_most = 0.0

    def add(self, groups: Groups) -> None:
        """Go on with the next lower groups."""
        if not groups.key.size:
            return
        anomalous = groups.anomalous
        counts, share = (anomalous, groups.normal, groups.above), groups.share
        pairs = anomalous > 0
        if not pairs.all():
            counts, share = (anomalous[pairs], groups.normal[pairs], groups.above[pairs]), share[pairs]
        if not share.size:
            return
        p, n, fp0 = (part.astype(np.float64) for part in counts)  # exact, and every operation below is one of floats
        width = groups.width
        tp1 = self._tp + np.cumsum(p)
        fp1 = fp0 + n
        self._rank(p, n, fp0, width)
        self._precision(p, n, tp1, fp0, width)
        if self.regions:
            self._overlap(share, n, fp0, width)
        self._tp, self._fp = int(tp1[-1]), int(fp1[-1])

    def _rank(self, p: Reals, n: Reals, fp0: Reals, width: int) -> None:
        """AUROC: in a group of unequal scores each of the p n pairs counts one half instead of 0 or 1."""
        self._auroc += float(np.sum(p * (self.normal - fp0 - n / 2)))
        if width > 1:
            self._auroc_error += float(np.sum(p * (n / 2)))

    def _precision(self, p: Reals, n: Reals, tp1: Reals, fp0: Reals, width: int) -> None:
        """AP and F1max.

        AP of a group of unequal scores is least when every normal pixel comes first and the anomalous ones follow one by one (at
        least p (tp0+1)/(tp0+1+fp1)), and most when the anomalous ones come first, together: the value is the middle.
        F1 at the end of a group is reached by a threshold; inside, it is at most 2 tp1/(P + tp1 + fp0).
        """
        fp1 = fp0 + n
        if width == 1:
            self._ap += float(np.sum(p * (tp1 / (tp1 + fp1))))
        else:
            least = p * ((tp1 - p + 1) / (tp1 - p + 1 + fp1))
            most = p * (tp1 / (tp1 + fp0))
            self._ap += float(np.sum(least + most)) / 2
            self._ap_error += float(np.sum(most - least)) / 2
        reached = float(np.max(self._f1_of(tp1, fp1)))
        self._f1 = max(self._f1, reached)
        self._f1_most = max(self._f1_most, reached if width == 1 else float(np.max(self._f1_of(tp1, fp0))))

    def _f1_of(self, tp: Reals, fp: Reals) -> Reals:
        """F1 of thresholds that find `tp` anomalous pixels and `fp` normal ones."""
        if not self.epsilon:
            return 2.0 * tp / (self.anomalous + tp + fp)
        precision, recall = tp / (tp + fp), tp / self.anomalous
        return 2.0 * precision * recall / (precision + recall + self.epsilon)

    def _overlap(self, share: Reals, n: Reals, fp0: Reals, width: int) -> None:
        """AUPRO: a level stretch up to each group, then its chord, both cut at the limit; the true curve is in the chord's box."""
        pro1 = self._pro + np.cumsum(share)
        pro0 = np.concatenate(([self._pro], pro1[:-1]))
        x0, x1 = np.minimum(fp0, self._limit), np.minimum(fp0 + n, self._limit)
        before = np.concatenate(([min(self._fp, self._limit)], x1[:-1]))
        step = x1 - x0
        rise = (pro1 - pro0) * (step / np.maximum(n, 1))  # up to the limit
        chord = step * (pro0 + rise / 2)
        self._aupro += float(np.sum((x0 - before) * pro0) + np.sum(chord))
        if width > 1:
            self._aupro_error += float(np.sum(np.maximum(pro1 * step - chord, chord - pro0 * step)))
        self._pro = float(pro1[-1])

    # --- results ----------------------------------------------------------------------------------------------------

    def auroc(self) -> Area:
        """Area under the ROC curve."""
        self._check_complete()
        pairs = float(self.anomalous) * self.normal
        return Area(self._auroc / pairs, self._auroc_error / pairs + ROUNDING)

    def average_precision(self) -> Area:
        """Step-wise average precision, as scikit-learn's."""
        self._check_complete()
        return Area(self._ap / self.anomalous, self._ap_error / self.anomalous + ROUNDING)

    def f1max(self) -> Area:
        """The largest F1 that a threshold reaches (between groups)."""
        self._check_complete()
        return Area(self._f1, self._f1_most - self._f1 + ROUNDING)

    def aupro(self) -> Area:
        """Area under the per-region overlap up to AUPRO_LIMIT, / AUPRO_LIMIT."""
        self._check_complete()
        assert self.regions > 0, "no region, no overlap"
        tail = self._pro * (self._limit - min(self._fp, self._limit))
        scale = self.regions * self._limit
        return Area((self._aupro + tail) / scale, self._aupro_error / scale + ROUNDING)

    def _check_complete(self) -> None:
        assert self._tp == self.anomalous, f"the walk saw {self._tp} of {self.anomalous} anomalous pixels"


class Counts:
    """What lies at or above each of Q keys: normal pixels, anomalous pixels and region shares."""

    def __init__(self, keys: Ints) -> None:
        """keys: (Q,) in any order."""
        self.keys = keys
        self.normal = np.zeros(keys.size, np.int64)
        self.anomalous = np.zeros(keys.size, np.int64)
        self.share = np.zeros(keys.size, np.float64)
        self.split_normal = np.zeros(keys.size, np.int64)  # pixels of the group that the key cuts, which could be on either side
        self.split_anomalous = np.zeros(keys.size, np.int64)
        self.split_share = np.zeros(keys.size, np.float64)
        self._seen = (0, 0.0)

    def add(self, groups: Groups) -> None:
        """Go on with the next lower groups; they must include every non-empty one that a key can fall in."""
        if not groups.key.size or not self.keys.size:
            return
        seen, share_seen = self._seen
        anomalous = seen + np.cumsum(groups.anomalous)
        share = share_seen + np.cumsum(groups.share)
        reached = np.searchsorted(-groups.key, -self.keys, "right")  # groups at or above each key
        some = reached > 0
        last = reached[some] - 1
        self.normal[some] = (groups.above + groups.normal)[last]
        self.anomalous[some] = anomalous[last]
        self.share[some] = share[last]
        inside = reached < groups.key.size
        inside[inside] = groups.key[reached[inside]] + groups.width > self.keys[inside]
        cut = reached[inside]
        self.split_normal[inside] = groups.normal[cut]
        self.split_anomalous[inside] = groups.anomalous[cut]
        self.split_share[inside] = groups.share[cut]
        self._seen = (int(anomalous[-1]), float(share[-1]))
