"""The originals' evaluation of one category, which looks at its test labels: 24 ratios, the best for each metric, a gate by F1.

    constants L, P and the gate's threshold from ALL test images; images called normal hide random patches instead of the proposal
    reported: the largest image AUROC and, separately, the largest pixel AUROC over the ratios
Only for parity with published numbers: tables mark such rows and never rank them.
Known deviations: random masks come from the image's own bytes, so that an image has the same in every batch and run (originals:
torch's global generator); ground truth is the bench's (bilinear, above one half; originals: nearest, not zero). What is printed are
the bench's metrics of the chosen ratios, after its own smoothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inpbench.harness.api import Size
from inpbench.methods.pmad.proposal import (
    Calibration,
    abnormality,
    best_threshold,
    count_of,
    enlarge,
    hidden_patches,
    levels,
    ranking,
)
from inpbench.methods.pmad.scoring import gaussian, score_maps

RATIOS = tuple(0.02 + 0.02 * step for step in range(24))  # as numpy's arange gives them: 0.02, 0.04, ..., 0.48

Errors = Callable[[Sequence[int], Tensor], Tensor]
"""(positions of test images, hidden patches (B, N) bool) -> token errors (B, h, w)."""
RandomMask = Callable[[int, int, int], Tensor]
"""(position of the test image, index of the ratio, patches to hide) -> (N,) bool."""


class Ratio(NamedTuple):
    """What one ratio came to."""

    hidden: Tensor  # (n, N) bool
    enlarged: Tensor  # (n, H, W) enlarged token errors
    smooth: Tensor  # (n, H, W) after the first Gaussian
    scores: Tensor  # (n,)
    image_auroc: float
    pixel_auroc: float


def transductive(likelihood: Tensor, labels: Tensor, size: Size) -> Calibration:
    """The constants of a category from its test images (n, h, w) and their labels (n,)."""
    level, peak = levels(likelihood, size)
    scores = abnormality(likelihood, level, peak, size).amax(dim=(1, 2))
    return Calibration(level, peak, best_threshold(scores, labels))


def called_abnormal(likelihood: Tensor, fitted: Calibration, size: Size) -> Tensor:
    """The gate (B,) bool: strictly above the threshold, so the image that set it is called normal."""
    return abnormality(likelihood, fitted.level, fitted.peak, size).amax(dim=(1, 2)) > fitted.threshold


def auroc(scores: Tensor, truth: Tensor) -> float:
    """Area under the ROC curve of scores (any shape) and truth (the same), ties counted half; NaN where one class is missing."""
    flat, positive = scores.flatten(), truth.flatten().bool()
    above, below = flat[positive], flat[~positive].sort().values
    if not len(above) or not len(below):
        return float("nan")
    lower = torch.searchsorted(below, above.contiguous(), side="left").double().sum()
    upper = torch.searchsorted(below, above.contiguous(), side="right").double().sum()
    return float((lower + upper) / 2.0 / (len(above) * len(below)))


def random_mask(image: Tensor, ratio_index: int, count: int, patches: int) -> Tensor:
    """`count` of `patches` at random (N,) bool: a pure function of the image's bytes and the ratio."""
    seed = zlib.crc32(image.detach().float().cpu().contiguous().numpy().tobytes()) + ratio_index
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(patches, dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def hidden_at(
    likelihood: Tensor,
    fitted: Calibration,
    ratio_index: int,
    side: int,
    size: Size,
    positions: Sequence[int],
    draw: RandomMask,
    ratios: Sequence[float] | None = None,
) -> Tensor:
    """The hidden patches (B, N) of log-likelihood maps (B, h, w) at a ratio: the proposal, or random ones behind the gate."""
    count = count_of((ratios or RATIOS)[ratio_index], side * side)
    hidden = hidden_patches(ranking(likelihood, fitted.level, side), count)
    for row, abnormal in enumerate(called_abnormal(likelihood, fitted, size).tolist()):
        if not abnormal:
            hidden[row] = draw(positions[row], ratio_index, count).to(hidden.device)
    return hidden


class Evaluation:
    """The evaluation of one category: log-likelihoods (n, h, w), labels (n,), masks (n, H, W) bool, `errors` for a batch."""

    def __init__(
        self,
        likelihood: Tensor,
        labels: Tensor,
        masks: Tensor,
        errors: Errors,
        side: int,
        draw: RandomMask,
        ratios: Sequence[float] | None = None,
    ) -> None:
        """ratios: none: those of the originals."""
        self.likelihood, self.labels, self.masks, self.ratios = likelihood, labels, masks, ratios or RATIOS
        self.size: Size = (masks.shape[-2], masks.shape[-1])
        self.fitted = transductive(likelihood, labels, self.size)
        self._errors, self._side, self._draw = errors, side, draw

    def at(self, ratio_index: int, batch_size: int = 16) -> Ratio:
        """Everything of one ratio."""
        hidden, enlarged, smooth = [], [], []
        fitted = self.fitted
        for start in range(0, len(self.likelihood), batch_size):
            part = self.likelihood[start : start + batch_size]
            positions = range(start, start + len(part))
            chosen = hidden_at(part, fitted, ratio_index, self._side, self.size, positions, self._draw, self.ratios)
            errors = self._errors(positions, chosen)
            hidden.append(chosen)
            enlarged.append(enlarge(errors, self.size))
            smooth.append(score_maps(errors, abnormality(part, fitted.level, fitted.peak, self.size)))
        maps = torch.cat(smooth)
        scores = maps.amax(dim=(1, 2))
        twice = torch.cat([gaussian(part) for part in torch.split(maps, batch_size)])
        return Ratio(torch.cat(hidden), torch.cat(enlarged), maps, scores, auroc(scores, self.labels), auroc(twice, self.masks))

    def best(self, progress: Callable[[int, int], None]) -> tuple[int, int]:
        """Indices of the ratios with the largest image AUROC and pixel AUROC, the first of equals."""
        found = []
        for index in range(len(self.ratios)):
            ratio = self.at(index)
            found.append((ratio.image_auroc, ratio.pixel_auroc))
            progress(index + 1, len(self.ratios))
        image, pixel = ([value if value == value else -1.0 for value in column] for column in zip(*found, strict=True))
        return image.index(max(image)), pixel.index(max(pixel))
