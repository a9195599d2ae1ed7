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
    """Seconds of work: of the host on the CPU, of the device by its own events on CUDA, where nobody waits until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> Stopwatch:
        self._begin = time.perf_counter()
        if self._device.type == "cuda":
            self._events.append((self._event(), self._event()))
            self._events[-1][0].record(torch.cuda.current_stream(self._device))
        return self

    def __exit__(self, *_: object) -> None:
        self._host += time.perf_counter() - self._begin
        if self._device.type == "cuda":
            self._events[-1][1].record(torch.cuda.current_stream(self._device))

    @staticmethod
    def _event() -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    @property
    def seconds(self) -> float:
        """All stretches together; waits for the device."""
        if self._device.type != "cuda":
            return self._host
        torch.cuda.synchronize(self._device)
        milliseconds: float = sum(begin.elapsed_time(end) for begin, end in self._events)
        return milliseconds / 1e3


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
    score_parts: list[torch.Tensor] = []  # on the device, which is not waited for in between
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
            smoothed, scores = _predict(method, batch.images, options, whole=getattr(cell.params, "batch_dependent", False))
        try:
            metrics.update(smoothed, scores, batch.masks, batch.labels, batch.has_pixels)
        except BenchError as error:
            raise type(error)(f"{cell.label} on {category}: {error.message}", error.hint) from error
        if maps is not None:
            maps.add(smoothed, batch.masks, batch.has_pixels, small(batch.images, preprocess))
        if drawing is not None:
            drawing.add(smoothed, batch.masks, batch.has_pixels)
        samples["image"] += [cell.manifest.samples[i].image for i in batch.indices]
        score_parts.append(scores.to(torch.float64, copy=True))
        samples["label"] += [int(label) for label in batch.labels]
    values = metrics.compute()
    samples["score"] = torch.cat(score_parts).cpu().tolist()
    if maps is not None:
        maps.finish(cell, method, samples, options.device)
    return result_of(values, samples, drawing, predict_s=watch.seconds)


def _predict(method: Method, images: torch.Tensor, options: Options, *, whole: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Smoothed maps (B, 256, 256) and image scores (B,); halves the batch when the GPU is out of memory.

    whole: not, because the scores of this method depend on the batch.
    """
    crop = (int(images.shape[-2]), int(images.shape[-1]))
    try:
        with torch.inference_mode():
            prediction = method.predict(images)
            smoothed = smooth_maps(prediction.amap, crop, options.scoring)
            scores = prediction.score if prediction.score is not None else image_scores(smoothed, options.scoring)
        return smoothed, scores
    except torch.cuda.OutOfMemoryError:
        if len(images) == 1 or whole:
            raise
        log.warning("out of GPU memory with %d images at once: halved for this batch.", len(images))
    torch.cuda.empty_cache()
    halves = [_predict(method, half, options) for half in images.chunk(2)]
    return torch.cat([h[0] for h in halves]), torch.cat([h[1] for h in halves])
