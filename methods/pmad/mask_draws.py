"""The two generators of training masks: single patches and rectangular blocks, uniform or by weights, bit for bit as the originals.

Each draws from the generators it is given (`Draws`), in the originals' order. Quirks kept because they carry numbers: a pool
smaller than the number asked for hides n - P of its patches, not all; weighted single patches are drawn with replacement, so that
fewer are hidden; dynamic weights of 0 become 1 in the caller's tensor where the pool is the whole image; weighted and foreground
blocks cannot start in the last row or column that would fit; a block has at most `cap` patches whatever the category's ratio.
Known deviations, where the originals crash: a foreground without any patch is no restriction, weights that are all equal are none.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

ATTEMPTS = 10  # to place one block
SMALLEST_BLOCK = 4  # patches
ASPECT = (0.3, 1.0 / 0.3)


class Draws:
    """The three generators that a mask draws from, seeded together: Python's, numpy's and torch's."""

    def __init__(self, seed: int) -> None:
        self.python = random.Random(seed)
        self.numpy = np.random.RandomState(seed)
        self.torch = torch.Generator().manual_seed(seed)


class Weights(NamedTuple):
    """What patches are drawn by."""

    values: Tensor  # (N,), edited in place by `single_patches` where `dynamic` and the pool is the whole image
    dynamic: bool  # running errors of the category; else frequency energies


def _unit_range(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min())


def _share(values: Tensor) -> NDArray[np.float64] | None:
    """Probabilities by weights; None, which draws uniformly, where the weights say nothing (all equal, or all 0)."""
    total = float(values.sum())
    share: NDArray[np.float64] = (values / values.sum()).numpy()
    return share if total > 0.0 else None


def single_patches(draws: Draws, patches: int, count: int, pool: Tensor | None = None, weights: Weights | None = None) -> Tensor:
    """Hide about `count` patches of `pool` (N,) bool, none: all; returns (N,) bool."""
    inside = torch.arange(patches) if pool is None or not bool(pool.any()) else pool.nonzero()[:, 0]
    size = len(inside)
    mask = torch.zeros(patches, dtype=torch.bool)
    if weights is None:
        ranks = torch.rand(size, dtype=torch.float32, generator=draws.torch).argsort().argsort()
        # size - count is below 0 for a small pool, and counts from the end there, as a Python slice does.
        first = size - count if count <= size else max(0, 2 * size - count)
        mask[inside[ranks >= first]] = True
        return mask
    values = weights.values
    if size < patches:
        values = values[inside]
    if weights.dynamic:
        values[values == 0] = 1.0
    chosen = draws.numpy.choice(size, count, replace=True, p=_share(_unit_range(values)))
    mask[inside[torch.from_numpy(chosen)]] = True
    return mask


def _corner(draws: Draws, side: int, height: int, width: int, pool: Tensor | None, weights: Weights | None) -> tuple[int, int]:
    """Row and column of the top left patch of a block."""
    if pool is None and weights is None:
        return draws.python.randint(0, side - height), draws.python.randint(0, side - width)
    rows, columns = torch.meshgrid(torch.arange(side - height), torch.arange(side - width), indexing="ij")
    candidates = (rows * side + columns).flatten()
    if pool is not None and bool(pool[candidates].any()):
        candidates = candidates[pool[candidates]]
    share = None
    if weights is not None:
        values = _unit_range(weights.values) if weights.dynamic else weights.values
        share = _share(values[candidates])
    at = int(draws.numpy.choice(candidates.numpy(), 1, replace=False, p=share)[0])
    return at // side, at % side


def blocks(draws: Draws, side: int, count: int, cap: int, pool: Tensor | None = None, weights: Weights | None = None) -> Tensor:
    """Hide about `count` of side x side patches by rectangles of at most `cap`; returns (N,) bool."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    hidden = 0
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    while hidden < count:
        room = min(count - hidden, cap)
        for _ in range(ATTEMPTS):
            area = draws.python.uniform(SMALLEST_BLOCK, room)
            aspect = math.exp(draws.python.uniform(low, high))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= side or width >= side:
                continue
            top, left = _corner(draws, side, height, width, pool, weights)
            part = mask[top : top + height, left : left + width]
            new = height * width - int(part.sum())
            if 0 < new <= room:
                part[:] = True
                hidden += new
                break
        else:
            break
    return mask.flatten()
