"""From the reconstruction's errors to the anomaly map and the image score.

    S = gaussian(up(U) * A, sigma 4),  U the cross entropy of the true tokens at the hidden patches, 0 elsewhere
    image score = max S;  map = gaussian(S, sigma 4): the originals smooth their maps once more before the pixel metric
The bench smooths every method's map again in its scoring (5 x 5, sigma 4 at 256 pixels): after two Gaussians of sigma 4 that is a
small part of the total width, and it is the same for all methods. The image score is PMAD's own and is not touched by it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import Size
from inpbench.methods.pmad.model import ReconstructionModel
from inpbench.methods.pmad.proposal import enlarge

SIGMA = 4.0
_REACH = 4.0  # sigmas after which the kernel is cut, as scipy does


def gaussian(maps: Tensor, sigma: float = SIGMA) -> Tensor:
    """Smooth (B, H, W) as `scipy.ndimage.gaussian_filter` does: kernel cut at 4 sigma, borders mirrored with their edge pixel."""
    radius = int(_REACH * sigma + 0.5)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(maps)
    for axis in (1, 2):
        length = maps.shape[axis]
        places = torch.arange(-radius, length + radius, device=maps.device) % (2 * length)
        mirrored = torch.where(places < length, places, 2 * length - 1 - places)
        padded = maps.index_select(axis, mirrored)
        shape = (1, 1, -1, 1) if axis == 1 else (1, 1, 1, -1)
        maps = F.conv2d(padded[:, None], kernel.view(shape))[:, 0]
    return maps


def token_errors(model: ReconstructionModel, images: Tensor, ids: Tensor, hidden: Tensor) -> Tensor:
    """Cross entropy (B, h, w) of the ids (B, N) at the hidden patches (B, N) bool of images (B, 3, H, W), 0 elsewhere."""
    errors = images.new_zeros(hidden.shape)
    logits = model(images, hidden).to(images.dtype)
    errors[hidden] = F.cross_entropy(logits, ids[hidden], reduction="none")
    side = math.isqrt(hidden.shape[1])
    return errors.view(-1, side, side)


def score_maps(errors: Tensor, abnormal: Tensor) -> Tensor:
    """S (B, H, W) of errors (B, h, w) and abnormality A (B, H, W)."""
    size: Size = (abnormal.shape[-2], abnormal.shape[-1])
    return gaussian(enlarge(errors, size) * abnormal)
