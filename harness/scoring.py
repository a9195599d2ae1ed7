"""From a method's anomaly map to the map, mask and image score that the metrics see; the same for every method.

    (B, h, w) -> bilinear to the crop size (corners aligned) -> bilinear to 256 x 256 (corners not aligned)
              -> 5 x 5 Gaussian, sigma 4, zero padding -> image score = mean of the largest 1 %

The chain and its constants are those of INP-Former's and Dinomaly's evaluation. Zero padding darkens the border: an all-ones map
becomes 0.367 in its corner pixel. Kept, because every published number has it. Map values are never rescaled.
Nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inpbench.harness.api import Size
from inpbench.harness.errors import MetricError

MaskRule = Literal["gt05", "gt0", "crr"]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Every constant between a method's output and the metrics; `dataclasses.asdict` of it goes into the record."""

    version: int = 1  # raised when the same constants give another number
    metric_size: Size = (256, 256)  # pixels of the maps and masks that are compared
    kernel: int = 5  # side of the Gaussian in pixels, odd
    sigma: float = 4.0  # of the Gaussian, in pixels of the metric size
    kernel_dtype: Literal["float32"] = "float32"  # the originals compute the kernel in float32 whatever the map's dtype
    padding: Literal["zero"] = "zero"
    top_ratio: float = 0.01  # the image score is the mean of this fraction of the largest map values; 0 is the maximum
    mask_rule: MaskRule = "gt05"  # gt05: INP-Former's code; gt0: Dinomaly, and INP-Former's paper; crr: CRR
    align_to_crop: bool = True  # align_corners of the enlargement to the crop size
    align_to_metric: bool = False  # align_corners of the resize to the metric size

    def check(self) -> None:
        """Raise `MetricError` for constants that define no score."""
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise MetricError(f"Scoring.kernel must be odd and positive, found {self.kernel}.", "Use 5, as the papers do.")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise MetricError(f"Scoring.sigma must be positive, found {self.sigma}.", "Use 4.0, as the papers do.")
        if not 0 <= self.top_ratio <= 1:
            raise MetricError(f"Scoring.top_ratio must lie in [0, 1], found {self.top_ratio}.", "Use 0.01, as the papers do.")
        if min(self.metric_size) < 1:
            raise MetricError(
                f"Scoring.metric_size must be positive, found {self.metric_size}.", "Use (256, 256), as the papers do."
            )
        if self.mask_rule not in ("gt05", "gt0", "crr"):
            raise MetricError(f"Unknown mask rule '{self.mask_rule}'.", "Known: crr, gt0, gt05.")


DEFAULT_SCORING = Scoring()


# --- maps -----------------------------------------------------------------------------------------------------------


def enlarge(amap: Tensor, crop: Size, scoring: Scoring = DEFAULT_SCORING) -> Tensor:
    """The map at the size of the method's input.

    amap: (B, h, w) float; float16 and bfloat16 are computed in float32. Returns (B, H, W) with (H, W) = `crop`.
    """
    return _resize(_working(amap), crop, scoring.align_to_crop)


def smooth_maps(amap: Tensor, crop: Size, scoring: Scoring = DEFAULT_SCORING) -> Tensor:
    """The maps that the pixel metrics compare.

    amap: (B, h, w) float of any size, higher is more anomalous; crop: (H, W) of the method's input. A map that has the
    metrics' size already was made for it (CRR fuses its maps there) and is not sent through the crop's.
    Returns (B, *metric_size), float32 or float64. NaN and infinity pass through; the metrics name the image.
    Source: INP-Former and Dinomaly, `evaluation_batch`.
    """
    if tuple(amap.shape[1:]) == tuple(scoring.metric_size):
        maps = _working(amap)
    else:
        maps = _resize(enlarge(amap, crop, scoring), scoring.metric_size, scoring.align_to_metric)
    kernel = gaussian_kernel(scoring, maps.device).to(maps.dtype)
    return F.conv2d(maps[:, None], kernel[None, None], padding=scoring.kernel // 2)[:, 0]


def gaussian_kernel(scoring: Scoring = DEFAULT_SCORING, device: torch.device | str = "cpu") -> Tensor:
    """The normalised Gaussian (kernel, kernel), in float32 as the originals compute it."""
    offset = torch.arange(scoring.kernel, dtype=torch.float32, device=device) - (scoring.kernel - 1) / 2
    variance = scoring.sigma**2
    square = offset[None, :] ** 2 + offset[:, None] ** 2
    kernel = (1.0 / (2.0 * math.pi * variance)) * torch.exp(-square / (2 * variance))
    return kernel / kernel.sum()


def image_scores(smoothed: Tensor, scoring: Scoring = DEFAULT_SCORING) -> Tensor:
    """The mean of the int(H * W * top_ratio) largest values of each map, at least one value.

    smoothed: (B, H, W) float. Returns (B,) of the same dtype. A `top_ratio` of 0 gives the maximum.
    """
    flat = smoothed.flatten(1)  # (B, H*W)
    top = int(flat.shape[1] * scoring.top_ratio)
    if top <= 1:
        return flat.amax(dim=1)
    return flat.topk(top, dim=1, sorted=True).values.mean(dim=1)


def _working(maps: Tensor) -> Tensor:
    """(B, h, w) in a dtype that is computed with: float64 stays, everything else becomes float32."""
    if maps.dim() != 3:
        raise MetricError(f"Anomaly maps have shape (B, h, w), found {tuple(maps.shape)}.", "Return Prediction(amap=(B, h, w)).")
    if not maps.is_floating_point():
        raise MetricError(f"Anomaly maps are floating point, found {maps.dtype}.", "Return float maps from predict().")
    return maps if maps.dtype == torch.float64 else maps.float()


def _resize(maps: Tensor, size: Size, align_corners: bool) -> Tensor:
    """Bilinear, without antialiasing; (B, h, w) to (B, *size)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]


# --- masks ----------------------------------------------------------------------------------------------------------


def ground_truth(mask: Tensor, scoring: Scoring = DEFAULT_SCORING) -> Tensor:
    """The binary masks that the pixel metrics compare with.

    mask: (B, H, W) or (B, C, H, W) float in [0, 1] at the crop size, grey where the loader's resize made it so; bool is taken too.
    Returns (B, *metric_size) bool; of several channels, a pixel is anomalous where any channel is after the rule.

    gt05: nearest to the metric size, then > 0.5 (INP-Former's published code).
    gt0: nearest, then != 0 (Dinomaly, and INP-Former's published numbers): every touched pixel counts, masks grow by about a pixel.
    crr: >= 0.5 at the crop size, bilinear to the metric size, then >= 0.5.
    """
    if mask.dim() == 3:
        mask = mask[:, None]
    if mask.dim() != 4:
        raise MetricError(f"Masks have shape (B, H, W) or (B, C, H, W), found {tuple(mask.shape)}.", "Add the batch dimension.")
    mask = mask if mask.dtype == torch.float64 else mask.float()
    size = scoring.metric_size
    if scoring.mask_rule == "crr":
        binary = (mask >= 0.5).to(mask.dtype)
        bits = F.interpolate(binary, size=size, mode="bilinear", align_corners=False) >= 0.5
    else:
        nearest = F.interpolate(mask, size=size, mode="nearest")  # source row floor(i * H / 256)
        bits = nearest > 0.5 if scoring.mask_rule == "gt05" else nearest != 0
    return bits.any(dim=1)
