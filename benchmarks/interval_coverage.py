"""How often the 95 % intervals hold the truth, and how often two methods are told apart: by simulation, where the truth is known.

    python -P benchmarks/interval_coverage.py [--sets 300] [--processes 2] > results/statistics/coverage.md

Test sets are drawn again and again from a population whose metrics are known, and each goes through the production path (draws,
jackknife, interval). Image scores: `even` has two normal distributions, `wide` a wider one for anomalous images, `mixed` a
share of anomalous images that look normal while all others are easy, which is what leaderboards near 100 % are made of. Pixels:
maps with a level of the image's own, one or two defects whose size and contrast differ from image to image. Pairs: two methods
that see the same image alike in part; equally good ones (size) and ones that differ (power). Everything is seeded. 300 draws
instead of the 1,000 of a record: the mean and the spread of the draws are needed, no tails.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.metrics import IMAGE_METRICS, METRICS, PIXEL_METRICS
from inpbench.harness.metrics.bootstrap import draw_metrics, overlap_area, pixel_counts, rank_areas
from inpbench.harness.metrics.intervals import Resampled, difference_interval, estimate, interval, p_of_zero

SIZES = ((20, 20), (30, 60), (60, 90), (100, 400))  # normal and anomalous images
QUALITY = (0.6, 0.8, 0.95, 0.99)  # I-AUROC of the population
CONTRAST = (1.5, 3.0, 5.0)  # of defects, for the pixels: P-AUROC about 0.85, 0.97 and 0.995
KINDS = ("even", "wide", "mixed")
SIDE = 16
BINS = 256  # of the pixels' scores: SIDE is small
_DRAWS = 300
_EASY = 0.998  # I-AUROC of the easy share of `mixed`
_NORMAL = NormalDist()

Vector = NDArray[np.float64]


class Case(NamedTuple):
    """One population and one size of test sets."""

    kind: str  # of KINDS, or `pixels`
    quality: float  # of QUALITY, or of CONTRAST
    normal: int
    anomalous: int


# --- populations ----------------------------------------------------------------------------------------------------


def gap(kind: str, quality: float) -> tuple[float, float, float]:
    """Mean and standard deviation of the anomalous scores, whose normal ones have 0 and 1; and the share that looks normal."""
    if kind == "mixed":
        return math.sqrt(2) * _NORMAL.inv_cdf(_EASY), 1.0, (_EASY - quality) / (_EASY - 0.5)
    spread = 2.0 if kind == "wide" else 1.0
    return math.sqrt(1 + spread**2) * _NORMAL.inv_cdf(quality), spread, 0.0


def image_scores(case: Case, rng: np.random.Generator, agreement: float = 0.0, methods: int = 1) -> list[Vector]:
    """Scores (I,) of methods that are equally good and share `agreement` of the variance of an image."""
    mean, spread, alike = gap(case.kind, case.quality)
    count = case.normal + case.anomalous
    common, looks_normal = rng.normal(size=count), rng.random(count)
    anomalous = np.arange(count) >= case.normal
    found = []
    for _ in range(methods):
        noise = math.sqrt(agreement) * common + math.sqrt(1 - agreement) * rng.normal(size=count)
        # A hard image is hard for both.
        defect = anomalous & (looks_normal >= alike)
        found.append(np.where(defect, mean + spread * noise, noise))
    return found


def image_truth(case: Case) -> dict[str, float]:
    """IMAGE_METRICS of the population, by sums over a fine grid of thresholds."""
    mean, spread, alike = gap(case.kind, case.quality)
    at = np.linspace(9 * spread + mean, -9 * spread, 200_001)  # to where both tails are 0 and 1 in floats
    tail = np.vectorize(math.erfc)
    normal = tail(at / math.sqrt(2)) / 2
    anomalous = alike * normal + (1 - alike) * tail((at - mean) / spread / math.sqrt(2)) / 2
    p, n = np.diff(anomalous, prepend=0) * case.anomalous, np.diff(normal, prepend=0) * case.normal
    values = rank_areas(p[None], n[None], np.ones(at.size, np.bool_))
    return {name: float(value[0]) for name, value in zip(IMAGE_METRICS, values, strict=True)}


def pixel_images(
    case: Case, count: int, anomalous: bool, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Maps and masks (count, SIDE, SIDE) of one class."""
    maps = rng.normal(size=(count, SIDE, SIDE)) + 0.6 * rng.normal(size=(count, 1, 1))
    masks = np.zeros(maps.shape, np.bool_)
    if anomalous:
        contrast = case.quality * np.exp(0.5 * rng.normal(size=count))
        for index in range(count):
            for left in (0, SIDE // 2)[: rng.integers(1, 3)]:  # a column between them: two regions
                height, width = rng.integers(1, 8, size=2)
                top = rng.integers(0, SIDE - height)
                masks[index, top : top + height, left : left + min(width, SIDE // 2 - 1)] = True
        maps += masks * contrast[:, None, None]
    return maps.astype(np.float32), masks


def pixel_truth(case: Case, images: int = 60_000) -> dict[str, float]:
    """PIXEL_METRICS of the population, from a very large sample in fine bins; its error is a thirtieth of an interval."""
    rng, edges = np.random.default_rng(99), np.linspace(-8, 30, 8192)
    sums = np.zeros((4, edges.size - 1))  # normal, anomalous, share; regions in the last
    for anomalous, weight in ((False, case.normal), (True, case.anomalous)):
        for _ in range(0, images, 1000):
            maps, masks = pixel_images(case, 1000, anomalous, rng)
            sums[0] += weight * np.histogram(maps[~masks], edges)[0]
            if anomalous:
                sums[1] += weight * np.histogram(maps[masks], edges)[0]
                for half in (slice(0, SIDE // 2), slice(SIDE // 2, SIDE)):  # one region each
                    inside, areas = masks[:, :, half], masks[:, :, half].sum((1, 2))
                    sums[2] += (
                        weight
                        * np.histogram(maps[:, :, half][inside], edges, weights=np.repeat(1 / areas[areas > 0], areas[areas > 0]))[
                            0
                        ]
                    )
                    sums[3, 0] += weight * (areas > 0).sum()
    n, p, share = (part[None, ::-1] for part in sums[:3])
    values = [*rank_areas(p, n, np.ones(n.shape[1], np.bool_)), overlap_area(share, n, sums[3, :1])]
    return {name: float(value[0]) for name, value in zip(PIXEL_METRICS, values, strict=True)}


@cache
def truth(case: Case) -> dict[str, float]:
    """Metric to its value in the population with the class mix of the case."""
    return pixel_truth(case) if case.kind == "pixels" else image_truth(case)


def resampled(
    case: Case, rng: np.random.Generator, seed: int, draws: int, methods: int = 1, agreement: float = 0.0
) -> list[dict[str, tuple[float, Resampled]]]:
    """One test set: for each method, metric to what was measured and its draws."""
    labels = np.repeat((0, 1), (case.normal, case.anomalous))
    found = []
    if case.kind == "pixels":
        parts = [pixel_images(case, count, label, rng) for label, count in ((False, case.normal), (True, case.anomalous))]
        maps, masks = (np.concatenate(part) for part in zip(*parts, strict=True))
        versions = (
            [maps]
            if methods == 1
            else [
                (maps + 0.5 * rng.normal(size=(maps.shape[0], 1, 1)) + 0.5 * rng.normal(size=maps.shape)).astype(np.float32)
                for _ in range(methods)
            ]
        )
        results = [
            draw_metrics(version.max((1, 2)), labels, pixel_counts(version, masks, BINS), seed=seed, draws=draws)
            for version in versions
        ]
        names: Iterable[str] = PIXEL_METRICS
    else:
        results = [draw_metrics(scores, labels, seed=seed, draws=draws) for scores in image_scores(case, rng, agreement, methods)]
        names = IMAGE_METRICS
    for result in results:
        found.append(
            {name: (result.measured[name], Resampled(result.values[name], result.changes[name], labels)) for name in names}
        )
    return found


# --- what is counted ------------------------------------------------------------------------------------------------


class Count(NamedTuple):
    """Of one metric."""

    sets: int
    above: int  # the truth lies below the interval: the interval is too high
    below: int
    width: float  # median


def coverage(case: Case, sets: int, draws: int = _DRAWS) -> dict[str, Count]:
    """Metric to how often its interval misses the truth."""
    rng = np.random.default_rng(zlib.crc32(repr(case).encode()))
    known, found = truth(case), {}
    intervals: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
    for seed in range(sets):
        for name, (value, part) in resampled(case, rng, seed, draws)[0].items():
            intervals[name].append(interval(estimate(name, value, [part])))
    for name, ends in intervals.items():
        low, high = np.array(ends).T
        found[name] = Count(
            sets, int((low > known[name] + 1e-9).sum()), int((high < known[name] - 1e-9).sum()), float(np.median(high - low))
        )
    return found


def coverage_of_mean(normal: int, anomalous: int, sets: int, draws: int = _DRAWS) -> dict[str, Count]:
    """The same of the mean over six categories, from hard to flawless, as a data set has them."""
    cases = [Case("even", 0.8, normal, anomalous), Case("wide", 0.95, normal, anomalous), Case("mixed", 0.95, normal, anomalous)]
    cases += [Case(kind, 0.99, normal, anomalous) for kind in KINDS]
    rng = np.random.default_rng(7)
    known = {name: float(np.mean([truth(case)[name] for case in cases])) for name in IMAGE_METRICS}
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
    for seed in range(sets):
        tables = [resampled(case, rng, len(cases) * seed + at, draws)[0] for at, case in enumerate(cases)]
        for name in known:
            value = float(np.mean([table[name][0] for table in tables]))
            ends[name].append(interval(estimate(name, value, [table[name][1] for table in tables])))
    found = {}
    for name, pairs in ends.items():
        low, high = np.array(pairs).T
        found[name] = Count(sets, int((low > known[name]).sum()), int((high < known[name]).sum()), float(np.median(high - low)))
    return found


def told_apart(first: Case, second: Case, sets: int, draws: int = _DRAWS) -> dict[str, float]:
    """Metric to how often two methods on the same images differ with p < 0.05; two equal cases: the size of the test."""
    rng = np.random.default_rng(zlib.crc32(repr((first, second)).encode()))
    hits: dict[str, int] = {}
    for seed in range(sets):
        state = rng.bit_generator.state
        tables = resampled(first, rng, seed, draws, methods=2, agreement=0.6)
        if second != first:  # the same noise, and another gap
            rng.bit_generator.state = state
            tables[1] = resampled(second, rng, seed, draws, methods=2, agreement=0.6)[1]
        for name, (value, part) in tables[0].items():
            other_value, other = tables[1][name]
            assert part.changes is not None and other.changes is not None
            both = Resampled(part.draws - other.draws, part.changes - other.changes, part.labels)
            found = estimate(name, value - other_value, [both])
            low, high = difference_interval(found)
            assert (low > 0 or high < 0) == (p_of_zero(found) < 0.05)
            hits[name] = hits.get(name, 0) + (p_of_zero(found) < 0.05)
    return {name: number / sets for name, number in hits.items()}


# --- the tables -----------------------------------------------------------------------------------------------------


def _run(job: tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]) -> dict[str, Any]:
    function, arguments = job
    return function(*arguments)


def shown(count: Count) -> str:
    """Coverage in %, its Monte-Carlo error, and the misses on either side."""
    held = 1 - (count.above + count.below) / count.sets
    error = math.sqrt(max(held * (1 - held), 0.25 / count.sets) / count.sets)
    return f"{100 * held:.1f} ± {100 * error:.1f} ({100 * count.above / count.sets:.1f}, {100 * count.below / count.sets:.1f})"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=300, help="test sets of each population")
    parser.add_argument("--pixel-sets", type=int, default=150)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    command = f"python -P benchmarks/interval_coverage.py --sets {args.sets} --pixel-sets {args.pixel_sets}"
    print(f"# Coverage of intervals\n\n`{command}`\n")
    image = [
        Case(kind, quality, *size) for size in SIZES for quality in QUALITY for kind in KINDS if size[1] < 400 or kind == "even"
    ]
    pixel = [Case("pixels", contrast, *size) for size in SIZES[:3] for contrast in CONTRAST]
    equal = [Case(kind, quality, *size) for size in SIZES[:3] for quality in QUALITY[1:] for kind in ("even", "mixed")]
    better = [
        (case, case._replace(quality=case.quality + (0.6 if case.kind == "pixels" else (1 - case.quality) / 2))) for case in equal
    ]
    jobs: list[tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]] = []
    jobs += [(coverage, (case, args.sets)) for case in image]
    jobs += [(coverage, (case, args.pixel_sets)) for case in pixel]
    jobs += [(coverage_of_mean, (*size, args.sets // 2)) for size in SIZES[:3]]
    jobs += [(told_apart, (case, case, args.sets)) for case in equal]
    jobs += [(told_apart, (case, case, args.pixel_sets)) for case in pixel[3:6]]
    jobs += [(told_apart, (*pair, args.sets // 2)) for pair in better]
    with ProcessPoolExecutor(args.processes) as pool:
        results = pool.map(_run, jobs)
        _report(results, image, pixel, equal, better)


def _report(
    results: Iterator[dict[str, Any]], image: list[Case], pixel: list[Case], equal: list[Case], better: list[tuple[Case, Case]]
) -> None:
    """results: in the order of the jobs."""
    print("Coverage in %, ± its Monte-Carlo error (intervals that lie above the truth, below it).\n")
    _coverage_table(image, results, IMAGE_METRICS, "AUROC")
    _coverage_table(pixel, results, PIXEL_METRICS, "contrast")
    means = [(f"mean of 6, {normal}/{anomalous}", next(results)) for normal, anomalous in SIZES[:3]]
    _print(
        ("images", *(METRICS[name].title for name in IMAGE_METRICS)),
        [(text, *(shown(found[name]) for name in IMAGE_METRICS)) for text, found in means],
    )
    print("Two methods on the same images: how often p < 0.05, in %. First equally good ones (size), then a better one (power).\n")
    rows = [(_name(case), *(f"{100 * share:.1f}" for share in next(results).values())) for case in equal]
    _print(("equal", *(METRICS[name].title for name in IMAGE_METRICS)), rows)
    rows = [(_name(case), *(f"{100 * share:.1f}" for share in next(results).values())) for case in pixel[3:6]]
    _print(("equal", *(METRICS[name].title for name in PIXEL_METRICS)), rows)
    rows = [
        (f"{_name(one)} → {two.quality:.3f}", *(f"{100 * share:.1f}" for share in next(results).values())) for one, two in better
    ]
    _print(("better", *(METRICS[name].title for name in IMAGE_METRICS)), rows)


def _name(case: Case) -> str:
    return f"{case.normal}/{case.anomalous} {case.kind} {case.quality:g}"


def _coverage_table(cases: Sequence[Case], results: Iterator[dict[str, Any]], names: Sequence[str], title: str) -> None:
    rows = [(_name(case), *(shown(found[name]) for name in names)) for case in cases for found in [next(results)]]
    _print((f"images, kind, {title}", *(METRICS[name].title for name in names)), rows)


def _print(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


if __name__ == "__main__":
    main()
