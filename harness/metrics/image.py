"""I-AUROC, I-AP and I-F1max of one category: exact, in float64, from one sort of the image scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics import IMAGE_METRICS, MetricValues, Variant
from inpbench.harness.metrics.curve import Groups, Walk
from inpbench.harness.metrics.pixel import F1_EPSILON, check_variant, values_from
from inpbench.harness.metrics.pixels import raise_not_finite


class ImageMetrics:
    """The image metrics of one category: `update` with batches of scores and labels, then `compute`, any number of times."""

    def __init__(self, variant: Variant = "exact") -> None:
        """variant: a key of VARIANTS; `paper` and `dinomaly` differ in F1 alone, by 1e-7 in the denominator."""
        check_variant(variant)
        self.variant = variant
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, scores: Tensor, labels: Tensor | Sequence[int]) -> None:
        """Count a batch.

        scores: (B,) float, higher is more anomalous. labels: (B,) 0 normal, 1 anomalous. Raises `MetricError` for shapes that do
        not fit; labels and scores are looked at by `compute`.
        """
        labels = torch.as_tensor(labels)
        if scores.dim() != 1 or scores.shape != labels.shape:
            raise MetricError(
                f"Scores and labels have one shape (B,), found {tuple(scores.shape)} and {tuple(labels.shape)}.",
                "Return Prediction(score=(B,)).",
            )
        self._scores.append(scores.detach().double())
        self._labels.append(labels.detach())

    def compute(self) -> MetricValues:
        """Values, reasons and bounds of IMAGE_METRICS.

        Raises `MetricError` naming the first image with a NaN or infinite score, or with another label than 0 and 1.
        """
        if not self._scores:
            return MetricValues.without(IMAGE_METRICS, "no image")
        scores = torch.cat(self._scores).cpu().numpy()
        labels = torch.cat(self._labels).cpu().numpy()
        finite = np.isfinite(scores)
        if not finite.all():
            raise_not_finite("The score", int(np.flatnonzero(~finite)[0]))
        strange = np.flatnonzero((labels != 0) & (labels != 1))
        if strange.size:
            raise MetricError(
                f"The label of image {strange[0]} is {labels[strange[0]]}; expected 0 (normal) or 1 (anomalous).",
                "Leave images of unknown label out of the metrics.",
            )
        anomalous = int(labels.sum())
        if not 0 < anomalous < labels.size:
            return MetricValues.without(IMAGE_METRICS, "no anomalous image" if anomalous == 0 else "no normal image")
        walk = Walk(anomalous, labels.size - anomalous, epsilon=0.0 if self.variant == "exact" else F1_EPSILON)
        values, at = np.unique(scores, return_inverse=True)
        ones = np.bincount(at, weights=labels).astype(np.int64)[::-1]
        zeros = np.bincount(at).astype(np.int64)[::-1] - ones
        order = np.arange(values.size, dtype=np.int64)[::-1]
        walk.add(Groups(order, np.cumsum(zeros) - zeros, zeros, ones, np.zeros(values.size)))
        return values_from({"i_auroc": walk.auroc(), "i_ap": walk.average_precision(), "i_f1max": walk.f1max()})
