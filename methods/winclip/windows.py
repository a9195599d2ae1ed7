"""Windows on the token grid, and the harmonic mean that turns window scores into a map.

    S(i) = n_i / sum over the windows j that cover patch i of 1 / score(j)

n_i is the number of these windows: 1 in a corner, scale^2 inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = (2, 3)  # sides of the windows in patches; stride 1


def window_index(side: int, scale: int) -> Tensor:
    """Positions (J, scale^2) of each window's patches among [CLS, patches]: windows and patches row by row, patches from 1."""
    corner = torch.arange(side - scale + 1)
    inside = torch.arange(scale)
    rows = (corner[:, None, None, None] + inside[None, None, :, None]).expand(-1, len(corner), -1, scale)
    columns = (corner[None, :, None, None] + inside[None, None, None, :]).expand(len(corner), -1, scale, -1)
    return (rows * side + columns + 1).reshape(-1, scale * scale)


def harmonic_map(scores: Tensor, side: int, scale: int) -> Tensor:
    """Window scores (B, J) -> (B, side, side). A window score of 0 makes its patches 0."""
    corners = side - scale + 1
    inverse = scores.reshape(-1, corners, corners).reciprocal()
    total, count = inverse.new_zeros(len(scores), side, side), inverse.new_zeros(side, side)
    for row in range(scale):
        for column in range(scale):
            total[:, row : row + corners, column : column + corners] += inverse
            count[row : row + corners, column : column + corners] += 1
    return count / total
