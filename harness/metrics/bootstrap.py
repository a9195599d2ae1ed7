"""Confidence intervals of the seven metrics of a category, for other test images of the same kind.

The pixels of an image stand or fall together, so whole images are drawn with replacement (clustered), normal and anomalous ones
apart (stratified by label). A draw is a weight an image: with the pixel counts of every image in K shared bins, the counts of all
draws are one matrix product, and every metric follows from cumulative sums over the bins as in `curve`. The bins are quantiles of
the normal and of the anomalous scores; while there are at most K different scores, every score is a bin and a draw is exact.

Beside the draws stand the metrics with each image left out (jackknife): a weight of zero, its class keeping its weight. What
follows from both is in `intervals`. Nothing here changes a value of `CategoryMetrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics import AUPRO_LIMIT, IMAGE_METRICS, PIXEL_METRICS
from inpbench.harness.metrics.intervals import DRAWS, LEVEL, Interval, Resampled, estimate, interval
from inpbench.harness.metrics.regions import MaskRuns

BINS = 1024
_BLOCK = 64  # draws evaluated at a time: their curves stay in a processor's cache
_SAMPLE = 1 << 19  # scores that the quantiles of a class are taken from
_LEFT_OUT = 250  # jackknife: at most so many groups of images a class, of one image each where there are no more

Matrix = NDArray[np.float64]


class Intervals(NamedTuple):
    """Metric name to interval, and to the reason for those without."""

    values: dict[str, Interval]
    undefined: dict[str, str]


class PixelCounts(NamedTuple):
    """The pixels of I images in K bins, lowest scores first."""

    normal: Matrix  # (I, K)
    anomalous: Matrix  # (I, K)
    share: Matrix  # (I, K) sums of 1 / area of the region
    regions: NDArray[np.int64]  # (I,)
    tied: NDArray[np.bool_]  # (K,) the scores of the bin are equal


# --- counting -------------------------------------------------------------------------------------------------------


def pixel_counts(maps: NDArray[Any], masks: NDArray[np.bool_], bins: int = BINS) -> PixelCounts:
    """Histograms of every image over shared bins.

    maps: (I, H, W) float from `smooth_maps`, finite. masks: (I, H, W) bool from `ground_truth`. bins: most bins, at least 8.
    Raises `MetricError` for shapes that do not fit and for scores that are NaN or infinite.
    """
    if maps.ndim != 3 or maps.shape != masks.shape or masks.dtype != np.bool_:
        raise MetricError(
            f"Maps and bool masks have one shape (I, H, W), found {maps.shape} and {masks.dtype} {masks.shape}.",
            "Use scoring.smooth_maps and scoring.ground_truth with one Scoring.",
        )
    if not all(np.isfinite(scores).all() for scores in maps):
        raise MetricError("A map holds NaN or infinity, not a score.", "Look at the method's output.")
    edges = _edges(maps, masks, bins)
    images, k = len(maps), edges.size
    counts = PixelCounts(
        np.zeros((images, k)), np.zeros((images, k)), np.zeros((images, k)), np.zeros(images, np.int64), np.ones(k, np.bool_)
    )
    least, most = np.full(k, np.inf), np.full(k, -np.inf)
    for number, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        flat, runs = scores.reshape(-1), MaskRuns()
        anomalous = flat[runs.add(mask[None])]
        areas, counts.regions[number] = runs.regions()
        normal = np.sort(flat[~mask.reshape(-1)])
        for ordered in (normal, np.sort(anomalous)):
            starts = np.searchsorted(ordered, edges)
            ends = np.append(starts[1:], ordered.size)
            some = ends > starts
            least[some] = np.minimum(least[some], ordered[starts[some]])
            most[some] = np.maximum(most[some], ordered[ends[some] - 1])
            if ordered is normal:
                counts.normal[number] = ends - starts
        at = np.searchsorted(edges, anomalous, "right") - 1
        counts.anomalous[number] = np.bincount(at, minlength=k)
        counts.share[number] = np.bincount(at, weights=1.0 / areas, minlength=k)
    np.greater_equal(least, most, out=counts.tied)
    return counts


def _edges(maps: NDArray[Any], masks: NDArray[np.bool_], bins: int) -> NDArray[Any]:
    """The smallest score (K,) of each bin, ascending, of the maps' dtype; the first lies at or below every score."""
    flat, anomalous = maps.reshape(-1), masks.reshape(-1)
    if flat.size <= _SAMPLE:
        different = np.unique(flat)
        if different.size <= bins:
            return different
    step = max(1, flat.size // _SAMPLE)
    sides = [side[:: max(1, side.size // _SAMPLE)] for side in (flat[anomalous], flat[::step][~anomalous[::step]]) if side.size]
    at = np.linspace(0, 1, (bins - 1) // len(sides))
    edges = np.concatenate([[flat.min()], *(np.quantile(side, at, method="inverted_cdf") for side in sides)])
    return np.unique(edges.astype(flat.dtype))


# --- draws ----------------------------------------------------------------------------------------------------------


def draw_weights(labels: NDArray[Any], draws: int, seed: int) -> Matrix:
    """How often each image is in each draw, (draws, I): as many normal and as many anomalous images as there are."""
    generator = np.random.Generator(np.random.PCG64(seed))
    weights = np.zeros((draws, labels.size))
    for label in (0, 1):
        members = np.flatnonzero(labels == label)
        if members.size:
            weights[:, members] = generator.multinomial(members.size, np.full(members.size, 1 / members.size), size=draws)
    return weights


def left_out_weights(labels: NDArray[Any]) -> tuple[Matrix, NDArray[np.int64]]:
    """The jackknife's weights (G, I), and the first image (G,) of each group that is left out.

    The rest of the group's class weighs as much as the class did. A group is one image, or several of one class where it has many.
    """
    rows, first = [], []
    for label in (0, 1):
        members = np.flatnonzero(labels == label)
        groups = -(-members.size // max(1, -(-members.size // _LEFT_OUT)))
        for group in range(groups if groups > 1 else 0):
            without = members[group::groups]
            row = np.ones(labels.size)
            row[members] = members.size / (members.size - without.size)
            row[without] = 0
            rows.append(row)
            first.append(without[0])
    return np.array(rows).reshape(-1, labels.size), np.array(first, np.int64)


class Draws(NamedTuple):
    """Of each metric that has draws; and the reason for those without."""

    values: dict[str, NDArray[np.float64]]  # (D,) in every draw
    changes: dict[str, NDArray[np.float64]]  # (I,) what leaving out image i adds; NaN: not left out by itself
    measured: dict[str, float]  # of the images as they are, in the same bins
    undefined: dict[str, str]


def draw_metrics(
    scores: NDArray[Any],
    labels: Sequence[int] | NDArray[Any],
    counts: PixelCounts | None = None,
    has_pixels: NDArray[np.bool_] | None = None,
    *,
    seed: int,
    draws: int = DRAWS,
) -> Draws:
    """The metrics of one category in every draw: the same seed and labels draw the same images, whatever the method.

    scores: (I,) float, finite. labels: (I,) 0 normal, 1 anomalous. counts: of `pixel_counts`, for the images where has_pixels
    (I,) bool is true, in their order; None: the pixel metrics have no draws. The same arguments give the same numbers.
    Raises `MetricError` for shapes, labels or scores that do not fit.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 1 or scores.shape != labels.shape or not np.isin(labels, (0, 1)).all():
        raise MetricError(
            f"Scores and labels 0 or 1 have one shape (I,), found {scores.shape} and {labels.shape}.", "One an image."
        )
    if not np.isfinite(scores).all() or draws < 2:
        raise MetricError("Scores are finite and draws at least 2.", "Use draws=1000.")
    members = np.ones(scores.size, np.bool_) if has_pixels is None else np.asarray(has_pixels, np.bool_)
    if counts is not None and (members.shape != scores.shape or counts.regions.size != members.sum()):
        raise MetricError(f"{counts.regions.size} images are counted, {members.sum()} have pixels.", "Count each one once.")
    weights = draw_weights(labels, draws, seed)
    found = Draws({}, {}, {}, dict.fromkeys(IMAGE_METRICS, _too_few(labels, both=True)))
    if not found.undefined["i_auroc"]:
        _add(found, lambda rows: image_draws(scores, labels, rows), weights, labels, np.ones(labels.size, np.bool_))
    reason = "no image has pixel ground truth" if counts is None else _too_few(labels[members]) or _one_class(counts)
    found.undefined.update(dict.fromkeys(PIXEL_METRICS, reason))
    if counts is not None and not reason:
        some = counts
        _add(found, lambda rows: pixel_draws(some, rows), weights, labels, members)
        # An anomalous image may have an empty mask: where only such are drawn, a draw has no value.
        empty = int(np.isnan(found.values["p_auroc"]).sum())
        if empty:
            found.undefined.update(dict.fromkeys(PIXEL_METRICS, f"{empty} draws hold no anomalous or no normal pixel"))
            for table in (found.values, found.changes, found.measured):
                for metric in PIXEL_METRICS:
                    del table[metric]
    return found._replace(undefined={name: why for name, why in found.undefined.items() if why})


def _add(
    found: Draws, metrics: Callable[[Matrix], dict[str, Matrix]], weights: Matrix, labels: NDArray[Any], members: NDArray[np.bool_]
) -> None:
    """Add draws and jackknife of the metrics of the images that are `members` (I,). labels: (I,); weights: (D, I)."""
    without, first = left_out_weights(labels[members])
    whole = metrics(np.ones((1, int(members.sum()))))
    drawn, left = metrics(weights[:, members]), metrics(without)
    for metric, value in whole.items():
        found.values[metric] = drawn[metric]
        found.measured[metric] = float(value[0])
        found.changes[metric] = changes = np.full(labels.size, np.nan)
        changes[np.flatnonzero(members)[first]] = left[metric] - value[0]


def bootstrap(
    scores: NDArray[Any],
    labels: Sequence[int] | NDArray[Any],
    counts: PixelCounts | None = None,
    has_pixels: NDArray[np.bool_] | None = None,
    *,
    seed: int,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Intervals:
    """Intervals of the metrics of one category; arguments and errors of `draw_metrics`."""
    drawn = draw_metrics(scores, labels, counts, has_pixels, seed=seed, draws=draws)
    parts = {name: Resampled(values, drawn.changes[name], np.asarray(labels)) for name, values in drawn.values.items()}
    found = {name: interval(estimate(name, drawn.measured[name], [part]), level) for name, part in parts.items()}
    return Intervals(found, drawn.undefined)


def _too_few(labels: NDArray[Any], both: bool = False) -> str:
    """Why these images cannot be drawn from, or an empty text; `both`: each class must be there."""
    for label, name in ((0, "normal"), (1, "anomalous")):
        number = int((labels == label).sum())
        if number == 1 or (both and not number):
            return f"{number or 'no'} {name} image: nothing to draw from"
    return ""


def _one_class(counts: PixelCounts) -> str:
    if not counts.anomalous.any():
        return "no anomalous pixel in the masks"
    return "" if counts.normal.any() else "no normal pixel in the masks"


def image_draws(scores: NDArray[Any], labels: NDArray[Any], weights: Matrix) -> dict[str, Matrix]:
    """IMAGE_METRICS (D,) of every draw. scores, labels: (I,); weights: (D, I)."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    anomalous = labels[order] == 1
    p = np.add.reduceat(weights[:, order] * anomalous, starts, axis=1)
    n = np.add.reduceat(weights[:, order] * ~anomalous, starts, axis=1)
    return dict(zip(IMAGE_METRICS, rank_areas(p, n, np.ones(starts.size, np.bool_)), strict=True))


def pixel_draws(counts: PixelCounts, weights: Matrix) -> dict[str, Matrix]:
    """PIXEL_METRICS (D,) of every draw; NaN for draws of one class. weights: (D, I)."""
    out = np.full((len(PIXEL_METRICS), len(weights)), np.nan)
    normal, anomalous, share = (np.ascontiguousarray(part[:, ::-1]) for part in counts[:3])  # highest first
    tied = counts.tied[::-1]
    for start in range(0, len(weights), _BLOCK):
        some = weights[start : start + _BLOCK]
        p, n = some @ anomalous, some @ normal
        fine = (p.sum(1) > 0) & (n.sum(1) > 0)
        some, p, n = some[fine], p[fine], n[fine]
        at = start + np.flatnonzero(fine)
        out[:3, at] = rank_areas(p, n, tied)
        out[3, at] = overlap_area(some @ share, n, some @ counts.regions.astype(np.float64))
    return dict(zip(PIXEL_METRICS, out, strict=True))


# --- areas ----------------------------------------------------------------------------------------------------------


def rank_areas(p: Matrix, n: Matrix, tied: NDArray[np.bool_]) -> tuple[Matrix, Matrix, Matrix]:
    """AUROC, AP and F1max (D,) from the anomalous `p` and normal `n` weights (D, K), highest bin first.

    tied: (K,) bins of equal scores; AP of the others is the middle of what their order allows, as in `curve.Walk`.
    """
    tp1, fp1 = np.cumsum(p, axis=1), np.cumsum(n, axis=1)
    positives, negatives = tp1[:, -1:], fp1[:, -1:]
    auroc = 1 - np.sum(p * (fp1 - n / 2), axis=1) / (positives * negatives)[:, 0]
    found = tp1 + fp1
    precision = np.divide(tp1, found, out=np.zeros_like(tp1), where=found > 0)
    loose = np.flatnonzero(~tied)
    if loose.size:
        tp, fp, one = tp1[:, loose], fp1[:, loose], p[:, loose]
        first = tp - one + np.minimum(one, 1)  # the first anomalous pixel of the bin, after all its normal ones
        before = tp + fp - n[:, loose]
        least = np.divide(first, first + fp, out=np.zeros_like(tp), where=tp > 0)
        most = np.divide(tp, before, out=np.zeros_like(tp), where=before > 0)
        precision[:, loose] = (least + most) / 2
    ap = np.sum(p * precision, axis=1) / positives[:, 0]
    f1 = np.max(2 * tp1 / (positives + found), axis=1)
    return auroc, ap, f1


def overlap_area(share: Matrix, n: Matrix, regions: Matrix) -> Matrix:
    """AUPRO (D,) from region shares and normal weights (D, K), highest bin first, and the number of regions (D,)."""
    fp, pro = np.cumsum(n, axis=1), np.cumsum(share, axis=1)
    limit = AUPRO_LIMIT * fp[:, -1:]
    step = np.minimum(fp, limit) - np.minimum(fp - n, limit)
    # Part of the bin's rise that lies below the limit.
    rise = share * np.divide(step, n, out=np.zeros_like(step), where=n > 0)
    area: Matrix = np.sum(step * (pro - share + rise / 2), axis=1) / (regions * limit[:, 0])
    return area
