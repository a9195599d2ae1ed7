"""The prototypes of a category, and what remains of a patch vector when its nearest prototype is taken away.

    vector = pooled maps of two depths of a frozen CNN on the finer grid;  prototypes = greedy k-center of 1 % of all vectors
Distances of the coreset are taken after a sparse random projection to as many dimensions as before (the originals' habit, of use to
nobody); what is kept are the vectors as they were. Here images come in a fixed order and the projection has a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inpbench.methods.memory_bank import as_vectors, greedy_coreset, nearest, patch_map, project, sparse_projection


class Residuals(NamedTuple):
    """Patch vectors against a bank."""

    maps: Tensor  # (B, C, h, w), vector minus nearest prototype
    distances: Tensor  # (B, h, w), Euclidean


def embedding(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps, the finest first, as patch vectors (B, C, h, w): 3 x 3 means, repeated to the first grid, concatenated."""
    return patch_map(maps, side=3, enlarge="nearest")


def choose(
    vectors: Tensor,
    count: int,
    projection: Tensor | None,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Rows (count,) int64 of the vectors (N, C), wherever they lie, that become prototypes, in the order of choice."""
    points = vectors.to(device) if projection is None else project(vectors, projection, device)
    return greedy_coreset(points, count, progress=progress).rows.to(vectors.device)


def prototypes(vectors: Tensor, ratio: float, projected: bool, device: torch.device) -> Tensor:
    """The prototypes (M, C) of a category's vectors (N, C): M = int(N ratio), at least one."""
    count = max(1, int(len(vectors) * ratio))
    dim = vectors.shape[1]
    return vectors[choose(vectors, count, sparse_projection(dim, dim, 0) if projected else None, device)].to(device)


def residuals(embedded: Tensor, bank: Tensor) -> Residuals:
    """Residuals of patch vectors (B, C, h, w) to the bank (M, C)."""
    batch, dim, height, width = embedded.shape
    rows = as_vectors(embedded)
    found = nearest(rows, bank)
    left = rows - bank[found.rows[:, 0]]
    maps = left.view(batch, height, width, dim).permute(0, 3, 1, 2)
    return Residuals(maps, found.distances[:, 0].view(batch, height, width))
