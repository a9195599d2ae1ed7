"""The pixel metrics of a category on the device that predicts: nothing but six numbers ever reaches the host.

The host's walk (`curve.Walk`) goes from group to group of equal scores. Here each anomalous pixel looks up its own group in the
sorted scores, all at once: how many pixels lie above it, how many share its score. The sums over groups become sums over pixels,

    AUROC  sum (2 N - 2 fp0 - n) / 2 P N     AP  sum tp1/(tp1 + fp1) / P     F1max  max 2 tp1/(P + tp1 + fp1)

and AUPRO's pieces are taken at the first pixel of each group. The device is waited for once, at the end; the regions are found on
the host before that, while it still predicts. AUROC is a quotient of integers; the others agree with the host's to 1e-12, and two
runs give the same bits: sums over pixels are taken in an order that scores and areas alone decide.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inpbench.harness.metrics import AUPRO_LIMIT, MetricValues
from inpbench.harness.metrics.curve import ROUNDING, Area
from inpbench.harness.metrics.keys import ordered_keys
from inpbench.harness.metrics.memory import sent
from inpbench.harness.metrics.pixel import PixelMetrics, values_from

ROW = 512  # numbers added up in a row, whose order is fixed; a long cumulative sum may take another order each time


class Ranks(NamedTuple):
    """What each anomalous pixel sees, scores ascending; each (P,) int64."""

    tp1: Tensor  # anomalous pixels at or above its score
    tp0: Tensor  # strictly above
    fp1: Tensor  # normal pixels at or above
    fp0: Tensor  # strictly above


class DevicePixelMetrics(PixelMetrics):
    """`PixelMetrics` whose exact values are computed on the device; the histogram and the variants stay as they are."""

    def compute(self) -> MetricValues:
        """As `PixelMetrics.compute`."""
        if self.variant != "exact" or self._histogram is not None or self._undefined():
            return super().compute()
        kept = self._masks.regions()
        areas = sent(torch.from_numpy(kept.areas), self.device)
        scores = torch.cat(list(self._store.chunks()))
        found = areas_under(scores, self._store.anomalous(), areas, kept.number)
        low, high = torch.aminmax(scores)
        *values, least, most = torch.stack([*found, low.double(), high.double()]).tolist()
        if not (abs(least) < torch.inf and abs(most) < torch.inf):  # NaN is neither
            self._check_finite()
        names = ("p_auroc", "p_ap", "p_f1max", "aupro")
        return values_from({name: Area(value, ROUNDING) for name, value in zip(names, values, strict=True)})


def areas_under(scores: Tensor, anomalous: Tensor, areas: Tensor, regions: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """AUROC, AP, F1max and AUPRO as float64 scalars on the device.

    scores: (n,) float32 or float64 of all pixels; anomalous: (P,) those of the anomalous ones, 0 < P < n; areas: (P,) int32 pixels
    of their regions; regions: how many there are. With a NaN among the scores the values mean nothing.
    """
    positives, negatives = anomalous.numel(), scores.numel() - anomalous.numel()
    anomalous, areas = ascending(anomalous + 0.0, areas)
    ranks = ranks_of(torch.sort(scores).values, anomalous)
    normal = ranks.fp1 - ranks.fp0
    auroc = (2 * (negatives - ranks.fp0) - normal).sum().double() / (2 * positives * negatives)
    ap = (ranks.tp1.double() / (ranks.tp1 + ranks.fp1)).sum() / positives
    f1max = (2.0 * ranks.tp1.double() / (positives + ranks.tp1 + ranks.fp1)).amax()
    return auroc, ap, f1max, overlap(ranks, areas, negatives) / regions


def ascending(anomalous: Tensor, areas: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (P,) and areas (P,) by score, those of equal scores by area."""
    if anomalous.dtype == torch.float32:
        both = ((ordered_keys(anomalous).long() << 32) | areas).sort()  # one sort of 64-bit integers
        return anomalous[both.indices], areas[both.indices]
    areas, order = areas.sort(stable=True)
    anomalous, order_of_scores = anomalous[order].sort(stable=True)
    return anomalous, areas[order_of_scores]


def ranks_of(scores: Tensor, anomalous: Tensor) -> Ranks:
    """Counts of each anomalous pixel: scores (n,) and anomalous (P,) ascending."""
    above, from_here = (scores.numel() - torch.searchsorted(scores, anomalous, right=right) for right in (True, False))
    tp0, tp1 = (anomalous.numel() - torch.searchsorted(anomalous, anomalous, right=right) for right in (True, False))
    return Ranks(tp1, tp0, from_here - tp1, above - tp0)


def overlap(ranks: Ranks, areas: Tensor, negatives: int) -> Tensor:
    """The area under (fp / N, summed region overlap) up to AUPRO_LIMIT, by trapezoids, / AUPRO_LIMIT: a float64 scalar."""
    count, limit = areas.numel(), AUPRO_LIMIT * negatives
    upto = torch.cat((areas.new_zeros(1, dtype=torch.float64), cumulated(1.0 / areas.flip(0).double())))  # of the k highest pixels
    pro0, pro1 = upto[ranks.tp0], upto[ranks.tp1]
    x0, x1 = (fp.double().clamp(max=limit) for fp in (ranks.fp0, ranks.fp1))
    higher = count - ranks.tp0  # where the next higher group begins; x1 there is where the curve is level from
    before = torch.cat((x1, x1.new_zeros(1)))[higher]
    step = x1 - x0
    rise = (pro1 - pro0) * step / (ranks.fp1 - ranks.fp0).clamp(min=1)  # up to the limit
    pieces = (x0 - before) * pro0 + step * (pro0 + rise / 2)
    first = torch.arange(count, device=areas.device) == count - ranks.tp1  # one pixel speaks for its group
    tail = pro1[0] * (limit - x1[0])
    return ((pieces * first).sum() + tail) / limit


def cumulated(values: Tensor) -> Tensor:
    """The cumulative sum of (n,), in rows of ROW and of rows of sums: the order of additions is a function of n alone."""
    if values.numel() <= ROW:
        return values.cumsum(0)
    rows = torch.nn.functional.pad(values, (0, -values.numel() % ROW)).view(-1, ROW).cumsum(1)
    ends = cumulated(rows[:, -1])
    rows[1:] += ends[:-1, None]
    return rows.reshape(-1)[: values.numel()]
