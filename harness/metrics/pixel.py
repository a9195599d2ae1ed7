"""P-AUROC, P-AP, P-F1max and AUPRO of one category, streamed.

Up to EXACT_PIXELS pixels are kept and the values are exact; beyond that they go into a histogram of constant memory, and the
values carry the bound that its bins allow. Which of the two depends on the number of pixels alone, so neither the batch size nor
the order of the images changes a result.

Scores are compared in the maps' own precision while they are kept; in the histogram float64 scores are rounded to float32 first,
and the bound does not cover that rounding. The variants on strips round to float32 always, as the official code does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from inpbench.harness.errors import MetricError, did_you_mean
from inpbench.harness.metrics import PIXEL_METRICS, VARIANTS, MetricValues, Variant
from inpbench.harness.metrics.curve import Area, Counts, Groups, Walk
from inpbench.harness.metrics.histogram import PixelHistogram
from inpbench.harness.metrics.keys import Ints
from inpbench.harness.metrics.memory import take
from inpbench.harness.metrics.pixels import PixelStore, raise_not_finite
from inpbench.harness.metrics.regions import Areas, MaskRuns
from inpbench.harness.metrics.strips import STRIPS_OF, strip_areas, strip_keys, threshold_aupro, threshold_keys

EXACT_PIXELS = 1 << 24  # 256 maps of 256 x 256; 64 MiB of float32
PIECE = 1 << 20  # pixels that go into the histogram at a time
F1_EPSILON = 1e-7  # of the official evaluations


def check_variant(variant: str) -> None:
    """Raise `MetricError` for a variant that does not exist."""
    if variant not in VARIANTS:
        raise MetricError(f"Unknown metric variant '{variant}'. {did_you_mean(variant, VARIANTS)}", "Type: bench list metrics")


class PixelMetrics:
    """The pixel metrics of one category: `update` with batches of maps and masks, then `compute`, any number of times."""

    def __init__(
        self,
        variant: Variant = "exact",
        device: torch.device | str = "cpu",
        *,
        exact_pixels: int = EXACT_PIXELS,
        bins: int | None = None,
    ) -> None:
        """variant: a key of VARIANTS. device: where maps are and counting happens. exact_pixels: most pixels to keep."""
        check_variant(variant)
        self.variant = variant
        self.device = torch.device(device)
        self._exact_pixels = exact_pixels
        self._store = PixelStore(self.device)
        self._histogram: PixelHistogram | None = None
        self._bins = bins
        self._dtype: torch.dtype | None = None  # of all maps; where they differ, one that holds every value
        self._images: list[tuple[Sequence[int], int]] = []  # (numbers of the images, pixels of each) of what is in the store
        self._seen = 0  # images
        self._range = (np.inf, -np.inf)  # of the scores in the histogram
        self._masks = MaskRuns()  # of what is in the store
        self._total = self._anomalous = 0  # pixels
        self._regions = 0  # of what is in the histogram

    def update(self, maps: Tensor, masks: Tensor, numbers: Sequence[int] | None = None) -> None:
        """Count a batch.

        maps: (B, H, W) of any float dtype, higher is more anomalous. masks: (B, H, W) bool, True is anomalous; their regions are
        found on the host: best kept there. numbers: (B,) what messages call the images, where they are not counted from 0.
        Raises `MetricError` for shapes or dtypes that do not fit. NaN and infinite scores are found by `compute`, or here when
        pixels leave for the histogram: looking at every batch would wait for the device each time.
        """
        if maps.dim() != 3 or maps.shape != masks.shape:
            raise MetricError(
                f"Maps and masks have one shape (B, H, W), found {tuple(maps.shape)} and {tuple(masks.shape)}.",
                "Use scoring.smooth_maps and scoring.ground_truth with one Scoring.",
            )
        if not maps.is_floating_point() or masks.dtype != torch.bool:
            raise MetricError(f"Maps are float and masks bool, found {maps.dtype} and {masks.dtype}.", "Use scoring.ground_truth.")
        if maps.numel() == 0:
            return
        self._dtype = maps.dtype if self._dtype is None else torch.promote_types(self._dtype, maps.dtype)
        keep_double = maps.dtype == torch.float64 and self.variant not in STRIPS_OF and self._histogram is None
        scores = maps.detach().to(device=self.device, dtype=torch.float64 if keep_double else torch.float32).reshape(-1)
        pixels = self._keep(scores, masks.detach())
        self._images.append((numbers or range(self._seen, self._seen + maps.shape[0]), maps.shape[1] * maps.shape[2]))
        self._seen += maps.shape[0]
        self._total += scores.numel()
        self._anomalous += pixels.size
        if self._total > self._exact_pixels and (self._histogram is None or self._store.total >= PIECE):
            self._spill()

    def compute(self) -> MetricValues:
        """Values, reasons and bounds of PIXEL_METRICS. Raises `MetricError` naming the first image with a NaN or infinite score."""
        self._check_finite()
        reason = self._undefined()
        if reason:
            return MetricValues.without(PIXEL_METRICS, reason)
        if self._histogram is not None and self._store.total:
            self._spill()
        kept = self._masks.regions()
        normal, regions = self._total - self._anomalous, self._regions + kept.number
        walk = Walk(self._anomalous, normal, regions, 0.0 if self.variant == "exact" else F1_EPSILON)
        counts, constant = Counts(np.empty(0, np.int64)), ""
        try:
            counts = Counts(self._query_keys())
        except MetricError as error:
            constant = error.message
        for groups in self._walk(kept.areas, counts.keys):
            walk.add(groups)
            counts.add(groups)
        areas: dict[str, Area | str] = {
            "p_auroc": walk.auroc(),
            "p_ap": walk.average_precision(),
            "p_f1max": walk.f1max(),
            "aupro": walk.aupro(),
        }
        if self.variant in STRIPS_OF:
            areas.update(dict.fromkeys(("p_auroc", "p_ap", "aupro"), constant) if constant else strip_areas(counts))
        if self.variant == "dinomaly":
            areas["aupro"] = constant or threshold_aupro(counts, normal, regions)
        return values_from(areas)

    def _undefined(self) -> str:
        """Why this category has no pixel metrics, or an empty text."""
        if not self._total:
            return "no image has pixel ground truth"
        if not self._anomalous:
            return "no anomalous pixel in the masks"
        if self._anomalous == self._total:
            return "no normal pixel in the masks"
        return ""

    # --- scores of interest -----------------------------------------------------------------------------------------

    def _query_keys(self) -> Ints:
        """The keys whose counts the variant asks for."""
        if self.variant == "exact":
            return np.empty(0, np.int64)
        low, high = self._extremes()
        if self.variant in STRIPS_OF:
            return strip_keys(low, high, STRIPS_OF[self.variant])
        double = self._histogram is None and self._store.dtype == torch.float64
        return threshold_keys(low, high, np.float64 if double else np.float32)

    def _extremes(self) -> tuple[float, float]:
        """Smallest and largest score seen."""
        low, high = self._range
        if self._store.total:
            kept = self._store.range()
            low, high = min(low, kept[0]), max(high, kept[1])
        return low, high

    def _walk(self, areas: Areas, queries: Ints) -> Iterator[Groups]:
        """Groups from the highest score down, from wherever the pixels are."""
        if self._histogram is None:
            return self._store.walk(areas, queries)
        return self._histogram.walk(every=queries.size > 0)

    # --- where the pixels go ----------------------------------------------------------------------------------------

    def _keep(self, scores: Tensor, masks: Tensor) -> Ints:
        """Store scores (B * H * W,) and the runs of masks (B, H, W); returns where the anomalous pixels are (P,)."""
        self._store.add(scores)
        pixels = self._masks.add(masks.cpu().numpy())
        if pixels.size:
            self._store.add_anomalous(take(scores, pixels))
        return pixels

    def _spill(self) -> None:
        """Move the kept pixels into the histogram."""
        self._store.round()
        self._check_finite()  # again: float64 scores may lie outside float32
        self._range = self._extremes()
        if self._histogram is None:
            self._histogram = PixelHistogram(self.device) if self._bins is None else PixelHistogram(self.device, self._bins)
        for chunk in self._store.pop():
            self._histogram.add(chunk, self._dtype or chunk.dtype)
        scores, (areas, regions) = self._store.anomalous(), self._masks.regions()
        for start in range(0, areas.size, PIECE):
            self._histogram.add_anomalous(scores[start : start + PIECE], areas[start : start + PIECE])
        self._regions += regions
        self._masks = MaskRuns()
        self._images = []
        self._store.clear()

    def _check_finite(self) -> None:
        """Raise `MetricError` naming the first image with a NaN or infinite score; waits for the device."""
        position = self._store.first_not_finite()
        if position is None:
            return
        for numbers, pixels in self._images:
            if position < len(numbers) * pixels:
                raise_not_finite("The anomaly map", numbers[position // pixels])
            position -= len(numbers) * pixels
        raise AssertionError("a score that belongs to no image")


def values_from(areas: dict[str, Area | str]) -> MetricValues:
    """Areas and reasons as metric values."""
    out = MetricValues()
    for name, area in areas.items():
        if isinstance(area, str):
            out.values[name], out.undefined[name] = None, area
        else:
            out.values[name], out.bounds[name] = area.value, area.bound
    return out
