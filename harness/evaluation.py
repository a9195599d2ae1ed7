"""Test one category: predict, score, measure. The result is a small file, written as soon as the category is done.

The image score is the method's own, or the mean of the highest 1 % of the smoothed map (`harness.scoring`). On a GPU that runs
out of memory the batch is halved for the rest of the cell, which changes no number; the training batch is never touched.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import torch

from inpbench.harness.category_result import CategoryResult, result_of
from inpbench.harness.errors import BenchError
from inpbench.harness.kept_maps import small
from inpbench.harness.loading import test_batches
from inpbench.harness.metrics.category import CategoryMetrics
from inpbench.harness.scoring import image_scores, smooth_maps

if TYPE_CHECKING:
    from inpbench.harness.api import Method
    from inpbench.harness.cost import Cost
    from inpbench.harness.draws import Drawing
    from inpbench.harness.kept_maps import MapKeeper
    from inpbench.harness.plan import Cell
    from inpbench.harness.runner import Options

log = logging.getLogger("inpbench")


class Stopwatch:
    """Seconds of device work, the device's queue included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._sync()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self.seconds += time.perf_counter() - self._begin

    def _sync(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def evaluate_category(
    cell: Cell,
    category: str,
    method: Method,
    options: Options,
    cost: Cost,
    maps: MapKeeper | None = None,
    drawing: Drawing | None = None,
) -> CategoryResult:
    """Predict every test image of a category and measure; raises `BenchError` naming the category when scores are NaN.

    maps: where to keep the smoothed maps; they go to the disk as they come. drawing: of the bootstrap, None for none.
    """
    assert cell.manifest is not None and cell.request is not None
    preprocess = cell.params.preprocess
    metrics = CategoryMetrics(variant=cell.request.variant, device=options.device)
    watch = Stopwatch(options.device)
    samples: dict[str, list[Any]] = {"image": [], "score": [], "label": []}
    for batch in test_batches(
        cell.manifest,
        category,
        preprocess,
        options.scoring,
        batch_size=options.eval_batch,
        device=options.device,
        dtype=options.dtype,
        cache=options.pixel_cache,
    ):
        with watch:
            smoothed, scores = _predict(method, batch.images, options)
        try:
            metrics.update(smoothed, scores, batch.masks, batch.labels, batch.has_pixels)
        except BenchError as error:
            raise type(error)(f"{cell.label} on {category}: {error.message}", error.hint) from error
        if maps is not None:
            maps.add(smoothed, batch.masks, batch.has_pixels, small(batch.images, preprocess))
        if drawing is not None:
            drawing.add(smoothed, batch.masks, batch.has_pixels)
        samples["image"] += [cell.manifest.samples[i].image for i in batch.indices]
        samples["score"] += scores.double().cpu().tolist()
        samples["label"] += [int(label) for label in batch.labels]
    values = metrics.compute()
    if maps is not None:
        maps.finish(cell, method, samples, options.device)
    return result_of(values, samples, drawing, predict_s=watch.seconds)


def _predict(method: Method, images: torch.Tensor, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """Smoothed maps (B, 256, 256) and image scores (B,); halves the batch when the GPU is out of memory."""
    crop = (int(images.shape[-2]), int(images.shape[-1]))
    try:
        with torch.inference_mode():
            prediction = method.predict(images)
            smoothed = smooth_maps(prediction.amap, crop, options.scoring)
            scores = prediction.score if prediction.score is not None else image_scores(smoothed, options.scoring)
        return smoothed, scores
    except torch.cuda.OutOfMemoryError:
        if len(images) == 1:
            raise
        log.warning("out of GPU memory with %d images at once: halved for this batch.", len(images))
    torch.cuda.empty_cache()
    halves = [_predict(method, half, options) for half in images.chunk(2)]
    return torch.cat([h[0] for h in halves]), torch.cat([h[1] for h in halves])
