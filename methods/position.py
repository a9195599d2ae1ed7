"""The originals' rule for a position embedding on another grid: bicubic, by scale factor, with an offset of 0.1.

src = (dst + 0.5) * side / (h + 0.1) - 0.5: not a resize to (h, w), and no antialiasing; timm's default differs by 10 to 25 %.
DINOv2 does it in float32 whatever the model's dtype, the class slot included; DINO v1 in the model's dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import Size


def resize_position(embedding: Tensor, grid: Size, float32: bool) -> Tensor:
    """A position embedding (1, 1 + side * side, D), class slot first, on the grid (h, w): (1, 1 + h * w, D), same dtype.

    On its native square grid it is returned as it is.
    """
    side = math.isqrt(embedding.shape[1] - 1)
    assert side * side == embedding.shape[1] - 1, "the pretrained grid is square"
    height, width = grid
    if (height, width) == (side, side):
        return embedding
    working = embedding.float() if float32 else embedding
    table = working[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, side, side)
    scale = ((height + 0.1) / side, (width + 0.1) / side)
    table = F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False, recompute_scale_factor=False)
    assert table.shape[-2:] == (height, width), "the scale factor floors to the grid"
    patches = table.flatten(2).transpose(1, 2)  # (1, h * w, D)
    return torch.cat((working[:, :1], patches), dim=1).to(embedding.dtype)
