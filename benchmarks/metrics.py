"""Speed of the pixel metrics: the usual way against ours, in one run on the same maps; and the memory of a large stream.

    python -P benchmarks/metrics.py [--maps 100] [--pixels 1000000000] [--threads 1,2] > results/speed/metrics.md

The usual way is scikit-learn's AUROC, AP and F1max, and AUPRO as a loop over 200 thresholds with regions by SciPy. The physical
limit is one call of bincount on keys that are already there, in 2^16 bins: no values, no regions. Ours is measured with its loops
compiled (numba, extra `fast`) and with tables of NumPy and torch. The maps are smooth noise with
1.3 % anomalous pixels in a few regions an image, half of the images normal, P-AUROC 0.98. Times are the best of seven runs in turn
(the usual way: one), as wall time and as time on the processor, which other people's work on the machine inflates less.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from inpbench.harness.metrics import loops
from inpbench.harness.metrics.bootstrap import bootstrap, pixel_counts
from inpbench.harness.metrics.keys import ordered_keys
from inpbench.harness.metrics.pixel import PixelMetrics
from inpbench.harness.metrics.regions import MaskRuns

SIDE = 256


def draw(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (count, 256, 256) float32 in the range of cosine distances, and masks of the same shape."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, SIDE // 4, SIDE // 4, generator=generator)
    maps = F.interpolate(noise, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    blobs = F.interpolate(torch.randn(count, 1, 8, 8, generator=generator), size=(SIDE, SIDE), mode="bicubic", align_corners=False)[
        :, 0
    ]
    masks = blobs > 1.75
    masks[::2] = False
    return (0.25 + 0.04 * maps + 0.08 * masks).abs(), masks


class Seconds(NamedTuple):
    """Of one call."""

    wall: float
    processor: float  # of all threads


def clock(call: Callable[[], object]) -> Seconds:
    """One call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def best(*calls: Callable[[], object], runs: int = 7) -> list[Seconds]:
    """The fastest of `runs` rounds for each of the calls, which take turns: a busy moment meets them all."""
    times = [[clock(call) for call in calls] for _ in range(runs)]
    return [Seconds(*(min(part) for part in zip(*one, strict=True))) for one in zip(*times, strict=True)]


def ours(maps: torch.Tensor, masks: torch.Tensor, batch: int = 16) -> dict[str, float | None]:
    """The four metrics, streamed in batches."""
    metrics = PixelMetrics()
    for start in range(0, len(maps), batch):
        metrics.update(maps[start : start + batch], masks[start : start + batch])
    return metrics.compute().values


def by_tables(maps: torch.Tensor, masks: torch.Tensor) -> dict[str, float | None]:
    """Ours on a machine without numba."""
    compiled, loops.COMPILED = loops.COMPILED, False
    try:
        return ours(maps, masks)
    finally:
        loops.COMPILED = compiled


def label(masks: NDArray[np.bool_]) -> int:
    """The number of regions."""
    runs = MaskRuns()
    runs.add(masks)
    return runs.regions().number


def theirs(maps: torch.Tensor, masks: torch.Tensor) -> dict[str, float | None]:
    """Scikit-learn's three."""
    scores, labels = maps.numpy().ravel(), masks.numpy().ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return {
        "p_auroc": float(roc_auc_score(labels, scores)),
        "p_ap": float(average_precision_score(labels, scores)),
        "p_f1max": float(f1.max()),
    }


def overlap_loop(maps: torch.Tensor, masks: torch.Tensor, thresholds: int = 200) -> float:
    """AUPRO as it is usually computed: every threshold looks at every pixel."""
    scores, truth = maps.numpy(), masks.numpy()
    normal = scores[~truth]
    regions = []
    for score, mask in zip(scores, truth, strict=True):
        labelled, number = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [score[labelled == region] for region in range(1, number + 1)]
    points = [
        (float((normal > threshold).mean()), float(np.mean([(region > threshold).mean() for region in regions])))
        for threshold in np.linspace(scores.max(), scores.min(), thresholds)
    ]
    x, y = np.array(points).T
    inside = x <= 0.3
    x, y = np.append(x[inside], 0.3), np.append(y[inside], np.interp(0.3, x, y))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / 0.3)


def intervals(maps: torch.Tensor, masks: torch.Tensor) -> object:
    """1,000 draws of the category, counting included."""
    scores, labels = maps.flatten(1).amax(1), masks.flatten(1).any(1).int()
    return bootstrap(scores.numpy(), labels.numpy(), pixel_counts(maps.numpy(), masks.numpy()), seed=0)


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def stream(pixels: int) -> tuple[float, float, dict[str, float]]:
    """MiB over the start, ns a pixel and the bounds of a stream of `pixels` pixels, 32 maps at a time."""
    maps, masks = draw(32, seed=1)
    metrics = PixelMetrics()
    metrics.update(maps[:1], masks[:1])
    before, start = peak_mib(), time.perf_counter()
    drawing = 0.0
    for step in range(pixels // maps.numel()):
        begin = time.perf_counter()
        shifted = maps * (1 + 1e-3 * step / 64)
        drawing += time.perf_counter() - begin
        metrics.update(shifted, masks)
    bounds = metrics.compute().bounds
    return peak_mib() - before, (time.perf_counter() - start - drawing) / pixels * 1e9, bounds


def processor() -> str:
    """The model of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_stream(pixels: int) -> None:
    """Memory and pace of many pixels."""
    memory, pace, bounds = stream(pixels)
    worst = ", ".join(f"{name} {bound:.1e}" for name, bound in bounds.items())
    print(f"Stream of {pixels:.1e} pixels, 1 thread: {memory:.0f} MiB over the start, {pace:.1f} ns/pixel wall, bounds {worst}.\n")


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=100)
    parser.add_argument("--pixels", type=int, default=100_000_000, help="of the stream whose memory is measured; 0 leaves it out")
    parser.add_argument("--threads", default="1,2")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    options = f"--maps {args.maps} --pixels {args.pixels} --threads {args.threads}"
    print(f"# Pixel metrics\n\n`python -P benchmarks/metrics.py {options}`\n")
    print(f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, numpy {np.__version__}, ", end="")
    print("loops compiled by numba; " if loops.COMPILED else "no numba: everything by tables; ", end="")
    print(f"before the run {load:.1f} processes wanted these cores. ns/pixel, wall time / processor time.\n")
    torch.set_num_threads(1)
    if args.pixels:
        print_stream(args.pixels)  # first: the peak of a process never falls
    maps, masks = draw(args.maps)
    n, host = maps.numel(), masks.numpy()
    keys = ordered_keys(maps.reshape(-1) + 0.0)
    bins = (keys >> 8) - int(keys.min() >> 8)
    usual = [clock(lambda: theirs(maps, masks)), clock(lambda: overlap_loop(maps, masks))]
    rows = {"scikit-learn, AUROC + AP + F1max": usual[0], "AUPRO, loop over 200 thresholds": usual[1]}
    for threads in (int(part) for part in args.threads.split(",")):
        torch.set_num_threads(threads)
        calls = (lambda: ours(maps, masks), lambda: by_tables(maps, masks), lambda: label(host), lambda: torch.bincount(bins))
        found = best(*calls)
        names = ("ours, all four, exact", "the same by tables", "of which regions", "limit: one bincount")
        for name, seconds in zip(names, found, strict=True):
            rows[f"{name}, {threads} thread{'s' * (threads > 1)}"] = seconds
        three, loop = (part.processor / found[0].processor for part in usual)  # wall times are other people's too
        print(f"{threads} thread(s), processor time: the usual way takes {three + loop:.0f} times ours, ", end="")
        print(f"scikit-learn alone {three:.0f}.\n")
    print(f"{args.maps} maps of {SIDE} x {SIDE}, {100 * float(masks.float().mean()):.2f} % anomalous.\n")
    print("| | wall | processor |\n| --- | ---: | ---: |")
    for name, seconds in rows.items():
        print(f"| {name} | {seconds.wall / n * 1e9:.1f} | {seconds.processor / n * 1e9:.1f} |")
    torch.set_num_threads(1)
    a, b = ours(maps, masks), theirs(maps, masks)
    assert a == by_tables(maps, masks)
    print("\nLargest difference from scikit-learn:", max(abs(float(a[name] or 0) - float(b[name] or 0)) for name in b))
    (drawn,) = best(lambda: intervals(maps, masks), runs=3)
    print(
        f"\nBootstrap of the category, 1,000 draws: {drawn.wall:.2f} s wall, {drawn.processor:.2f} s processor, counting included."
    )


if __name__ == "__main__":
    main()
