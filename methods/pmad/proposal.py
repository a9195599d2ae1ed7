"""From log-likelihood maps to what the ViT is not shown, and to the weight of each pixel.

    p = exp(l - L) in (0, 1];  A = P - up(p) at each pixel;  hidden patches = the k of lowest p on the ViT's grid
L is the largest log-likelihood and P the largest enlarged p of a set of images: of held-out normal images of the category here, of
all its test images in the originals (`oracle`), where besides a threshold fitted to the test labels gates the proposal.
Any constant of the category cancels in the ranking of the patches: the proposal itself never needed the test set.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import Size


class Calibration(NamedTuple):
    """What a category's abnormality is measured against."""

    level: float  # L: largest log-likelihood per dimension
    peak: float  # P: largest enlarged p
    threshold: float  # image score above which an image is called abnormal

    def tensor(self) -> Tensor:
        """The three numbers, float64."""
        return torch.tensor(self, dtype=torch.float64)


def enlarge(maps: Tensor, size: Size) -> Tensor:
    """(B, h, w) -> (B, H, W), bilinear, corners aligned."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


def abnormality(likelihood: Tensor, level: float, peak: float, size: Size) -> Tensor:
    """A (B, H, W) >= 0 of log-likelihood maps (B, h, w)."""
    return (peak - enlarge((likelihood - level).exp(), size)).clamp_min(0.0)


def levels(likelihood: Tensor, size: Size) -> tuple[float, float]:
    """L and P of a set of log-likelihood maps (n, h, w)."""
    level = float(likelihood.max())
    peak = max(float(enlarge((part - level).exp(), size).max()) for part in torch.split(likelihood, 32))
    return level, peak


def calibrate(likelihood: Tensor, size: Size, quantile: float) -> Calibration:
    """The constants of a category by its held-out normal images, log-likelihood maps (n, h, w)."""
    level, peak = levels(likelihood, size)
    scores = torch.cat([abnormality(part, level, peak, size).amax(dim=(1, 2)) for part in torch.split(likelihood, 32)])
    return Calibration(level, peak, float(scores.double().quantile(quantile)))


def ranking(likelihood: Tensor, level: float, side: int) -> Tensor:
    """How abnormal each patch of a side x side grid is, (B, side^2), for log-likelihood maps (B, h, w)."""
    return enlarge(1.0 - (likelihood - level).exp(), (side, side)).flatten(1)


def hidden_patches(ranked: Tensor, count: int) -> Tensor:
    """The `count` patches of the highest rank (B, N) -> (B, N) bool; ties with the last one are hidden too."""
    if count < 1:
        return torch.zeros_like(ranked, dtype=torch.bool)
    last = ranked.topk(count, dim=1).values[:, -1:]
    return ranked >= last


def count_of(ratio: float, patches: int) -> int:
    """Patches that a ratio hides: int(N ratio)."""
    return int(patches * ratio)


def best_threshold(scores: Tensor, labels: Tensor) -> float:
    """The score that maximises F1 over (scores, labels) on the precision-recall curve, the lowest one on ties. Uses test labels."""
    order = scores.double().cpu().numpy()
    truth = labels.cpu().numpy().astype(bool)
    candidates = np.unique(order)  # ascending: as on scikit-learn's curve
    caught = np.array([(truth & (order >= value)).sum() for value in candidates], dtype=np.float64)
    called = np.array([(order >= value).sum() for value in candidates], dtype=np.float64)
    precision, recall = caught / called, caught / max(truth.sum(), 1)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2.0 * precision * recall / (precision + recall))
    return float(candidates[f1.argmax()])
