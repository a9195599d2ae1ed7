"""How the original zero-shot app turns a smoothed map into bytes: times 255, truncated, not clipped.

Values above 255 / 255 wrap around (1.01 becomes 1), so that the most anomalous pixels can look normal.
Kept only to reproduce its pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(smoothed: Tensor) -> Tensor:
    """A smoothed map at crop size (B, H, W), not negative -> uint8 (B, H, W), modulo 256."""
    return (smoothed * 255).to(torch.int64).remainder(256).to(torch.uint8)
