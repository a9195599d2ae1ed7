"""Speed of testing, scoring and metrics included: the reference engine against the fast one, in one run.

    python -P benchmarks/inference.py [--device cuda] [--preset paper] [--size 392] [--batch 16] [--steps 12]

Both sides start from uint8 pixels in memory. The reference is the originals' way: float32, explicit attention, maps copied to the
host batch by batch, scikit-learn's metrics over all pixels (their AUPRO, a loop over 200 thresholds, is left out).
The fast side computes all seven metrics of the bench. Predictions alone are shown too.
A category has `--steps` batches, by default 192 images on a GPU, as VisA's have. Compiling and the first batches and metrics of
each side come before the clock starts.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch import Tensor

from inpbench.harness.metrics.category import CategoryMetrics
from inpbench.harness.scoring import image_scores, smooth_maps

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
from setting import Photographs, Setting, add_options, build, emit, matrix_rates, operations, rates_note, sync

CATEGORIES = 5  # that a GPU tests with the fast engine
TITLE = "Testing with scoring and metrics, reference against fast engine"


class Measured(NamedTuple):
    """One engine's side."""

    predict: float  # images a second, predictions and scores alone
    whole: float  # with metrics
    flops: float  # operations an image
    auroc: float  # pixel AUROC, to see that both measure the same


def truth_of(count: int) -> tuple[Tensor, Tensor]:
    """Masks (count, 256, 256) with one square in every second image, and labels."""
    masks = torch.zeros(count, 256, 256, dtype=torch.bool)
    masks[1::2, 96:140, 64:120] = True
    return masks, masks.flatten(1).any(1).long()


def predicted(method: Any, images: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Smoothed maps and image scores, as `harness.evaluation` computes them."""
    with torch.inference_mode():
        maps = smooth_maps(method.predict(images).amap, (setting.size, setting.size))
        return maps, image_scores(maps)


def reference_metrics(maps: list[np.ndarray], scores: list[np.ndarray], masks: np.ndarray, labels: np.ndarray) -> float:
    """AUROC, AP and F1max of images and pixels by scikit-learn; returns the pixel AUROC."""
    result = 0.0
    for values, truth in ((np.concatenate(scores), labels), (np.concatenate(maps).ravel(), masks.ravel())):
        precision, recall, _ = precision_recall_curve(truth, values)
        (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()
        average_precision_score(truth, values)
        result = float(roc_auc_score(truth, values))
    return result


def category(method: Any, photographs: Photographs, setting: Setting, steps: int, reference: bool) -> float:
    """Test a category of so many batches; returns its pixel AUROC."""
    indices, (masks, labels) = range(setting.batch), truth_of(setting.batch * steps)
    metrics = CategoryMetrics(device=setting.device)
    maps_host: list[np.ndarray] = []
    scores_host: list[np.ndarray] = []
    for step in range(steps):
        maps, scores = predicted(method, photographs.batch(indices) + 0.01 * step, setting)
        if reference:
            maps_host.append(maps.cpu().numpy())
            scores_host.append(scores.cpu().numpy())
        else:
            part = slice(step * setting.batch, (step + 1) * setting.batch)
            metrics.update(maps, scores, masks[part], labels[part])
    if reference:
        return reference_metrics(maps_host, scores_host, masks.numpy(), labels.numpy())
    return float(metrics.compute().values["p_auroc"] or 0.0)


def measure(name: str, engine: str, setting: Setting) -> Measured:
    """Test categories of `setting.steps` batches: on a GPU, where one takes a tenth of a second, several of the fast engine."""
    method = build(name, engine, setting)
    photographs = Photographs(setting, setting.batch, decode_each_time=False)
    indices = range(setting.batch)
    reference, cuda = engine == "reference", setting.device.type == "cuda"
    categories = CATEGORIES if cuda and not reference else 1
    count = setting.batch * setting.steps * categories
    for _ in range(2 if cuda else 1):
        category(method, photographs, setting, 2 if cuda else 1, reference)
    sync(setting.device)
    start = setting.now()
    for _ in range(categories):
        auroc = category(method, photographs, setting, setting.steps, reference)
    sync(setting.device)
    whole = count / (setting.now() - start)
    start = setting.now()
    for _ in range(categories):
        for step in range(setting.steps):
            predicted(method, photographs.batch(indices) + 0.01 * step, setting)
        sync(setting.device)
    alone = count / (setting.now() - start)
    images = photographs.batch(indices)
    return Measured(alone, whole, operations(lambda: method.predict(images), setting) / setting.batch, auroc)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    setting = add_options(parser, "inference", steps_cpu=3, steps_cuda=12)
    peak = matrix_rates(setting)
    lines = [
        "| method | engine | images/s, predictions | images/s, with metrics | operations an image | of the matrix rate | P-AUROC |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes: list[str] = []
    failed = False
    for name in setting.methods:
        sides: dict[str, Measured] = {}
        for engine in setting.engines:
            try:
                side = sides[engine] = measure(name, engine, setting)
            except Exception as error:
                traceback.print_exc()
                failed = True
                notes.append(f"* {name}, {engine}: FAILED with {type(error).__name__}: {str(error).splitlines()[:1]}")
                continue
            share = side.predict * side.flops / peak[setting.kinds[-1] if engine == "fast" else torch.float32]
            lines.append(
                f"| {name} | {engine} | {side.predict:.1f} | {side.whole:.1f} | {side.flops / 1e9:.1f} G | {100 * share:.0f} % | "
                f"{side.auroc:.5f} |"
            )
        if len(sides) == 2:
            slow, fast = sides["reference"], sides["fast"]
            notes.append(
                f"* {name}: {fast.predict / slow.predict:.1f} x predictions, {fast.whole / slow.whole:.1f} x with metrics "
                f"(three of the pixels for the reference, four for us); metrics take {100 * (fast.predict / fast.whole - 1):.1f} % "
                f"of the fast engine's time of predicting."
            )
        emit(setting, TITLE, lines, [*notes, rates_note(peak)], show=False)
    emit(setting, TITLE, lines, [*notes, rates_note(peak)])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
