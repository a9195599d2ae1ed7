"""The seven metrics of one category, fed with what the scoring gives, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics import MetricValues, Variant
from inpbench.harness.metrics.device import DevicePixelMetrics
from inpbench.harness.metrics.image import ImageMetrics
from inpbench.harness.metrics.memory import sent
from inpbench.harness.metrics.pixel import PixelMetrics


class CategoryMetrics:
    """Image and pixel metrics of one category in one pass; memory is constant but for a score and a label an image."""

    def __init__(self, variant: Variant = "exact", device: torch.device | str = "cpu") -> None:
        """variant: a key of VARIANTS. device: where the maps are."""
        self.variant = variant
        self._image = ImageMetrics(variant)
        self._pixel = (DevicePixelMetrics if torch.device(device).type == "cuda" else PixelMetrics)(variant, device)
        self._images = 0

    def update(
        self,
        maps: Tensor | None,
        scores: Tensor,
        masks: Tensor | None,
        labels: Tensor | Sequence[int],
        has_pixels: Tensor | Sequence[bool] | None = None,
    ) -> None:
        """Count a batch of B images.

        maps: (B, H, W) float from `smooth_maps`, or None for methods without maps. scores: (B,) float. masks: (B, H, W) bool from
        `ground_truth`, best on the host, or None. labels: (B,) 0 normal, 1 anomalous.
        has_pixels: (B,) bool on the host, False for images without pixel ground truth (an anomalous image whose mask is missing),
        which count for the image metrics alone; None: all where masks are given.
        Raises `MetricError` for shapes that do not fit.
        """
        self._image.update(scores, labels)
        numbers: Sequence[int] = range(self._images, self._images + scores.shape[0])
        self._images += scores.shape[0]
        if maps is None or masks is None:
            return
        if maps.shape[0] != scores.shape[0]:
            raise MetricError(f"{maps.shape[0]} maps but {scores.shape[0]} scores.", "Return one map and one score an image.")
        if has_pixels is not None:
            keep = torch.as_tensor(has_pixels, dtype=torch.bool)
            if keep.shape != scores.shape:
                raise MetricError(
                    f"has_pixels has shape (B,) = {tuple(scores.shape)}, found {tuple(keep.shape)}.", "One flag an image."
                )
            if not keep.all():  # a selection by truth would wait for the device
                positions = torch.nonzero(keep)[:, 0]
                maps, masks = (part.index_select(0, sent(positions, part.device)) for part in (maps, masks))
                numbers = [number for number, kept in zip(numbers, keep.tolist(), strict=True) if kept]
        self._pixel.update(maps, masks, numbers)

    def compute(self) -> MetricValues:
        """Values of METRICS with the reasons of those undefined and the bounds of the others.

        Raises `MetricError` naming the first image with a NaN or infinite map or score.
        """
        return self._image.compute().merged(self._pixel.compute())
