"""Speed of the pixel metrics: scikit-learn's three against our four, in one run on the same maps; and the memory of a large stream.

    python -P benchmarks/metrics.py [--maps 100] [--pixels 1000000000] [--threads 2]

The maps are smooth noise with 2 % anomalous pixels in a few regions an image, half of the images normal: the overlap of the two
classes is that of a detector with a P-AUROC of about 0.95. Printed times are the best of five runs (scikit-learn: one).
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

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


def best(call: Callable[[], object], runs: int) -> float:
    """Seconds of the fastest of `runs` calls."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def ours(maps: torch.Tensor, masks: torch.Tensor, batch: int = 16) -> dict[str, float | None]:
    """The four metrics, streamed in batches."""
    metrics = PixelMetrics()
    for start in range(0, len(maps), batch):
        metrics.update(maps[start : start + batch], masks[start : start + batch])
    return metrics.compute().values


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


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=100)
    parser.add_argument("--pixels", type=int, default=100_000_000, help="of the stream whose memory is measured; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}, numpy {np.__version__}"
    )
    if args.pixels:
        memory, pace, bounds = stream(args.pixels)  # first: the peak of a process never falls
        worst = ", ".join(f"{name} {bound:.1e}" for name, bound in bounds.items())
        print(f"stream of {args.pixels:.1e} pixels: {memory:.0f} MiB over the start, {pace:.1f} ns/pixel, bounds {worst}")
    maps, masks = draw(args.maps)
    n = maps.numel()
    host = masks.numpy()
    regions = best(lambda: label(host), 5) / n * 1e9
    fast = best(lambda: ours(maps, masks), 5) / n * 1e9
    slow = best(lambda: theirs(maps, masks), 1) / n * 1e9
    print(f"{args.maps} maps of {SIDE} x {SIDE}, {100 * float(masks.float().mean()):.2f} % anomalous")
    print(f"scikit-learn, AUROC + AP + F1max        {slow:8.1f} ns/pixel")
    print(f"ours, AUROC + AP + F1max + AUPRO        {fast:8.1f} ns/pixel, of which regions {regions:.1f}")
    print(f"ratio                                   {slow / fast:8.1f}")
    a, b = ours(maps, masks), theirs(maps, masks)
    print("largest difference from scikit-learn   ", max(abs(float(a[name] or 0) - float(b[name] or 0)) for name in b))


if __name__ == "__main__":
    main()
