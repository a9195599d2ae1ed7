"""Banks of patch features: how they are made from feature maps, thinned to a coreset, and searched. PatchCore and PMAD share them.

    vector of a patch = [mean of its neighbourhood in each map], the maps brought to one grid and concatenated
    coreset           = greedy k-center: start somewhere, then always the point that is farthest from those chosen so far
    nearest           = exact Euclidean k nearest neighbours, in blocks of bounded size

All of it is a function of its arguments: no generator, no order of threads, ties go to the lowest index. Distances to whole sets
come from one matrix product (|a|^2 - 2 ab + |b|^2); neighbours found so are ranked and reported by their direct differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import Size

SPARE = 4  # neighbours looked at beyond those asked for, so that rounding in the matrix product loses none
BLOCK = {"cpu": 1 << 23, "cuda": 1 << 27}  # numbers of one block of distances


class Neighbours(NamedTuple):
    """The k nearest vectors of each query, nearest first."""

    distances: Tensor  # (Q, k), Euclidean, of the queries' dtype
    rows: Tensor  # (Q, k) int64, positions in the bank


class Coreset(NamedTuple):
    """What `greedy_coreset` chose."""

    rows: Tensor  # (count,) int64, positions among the points, in the order of choice
    radius: float  # largest distance of any point from the chosen ones


# --- patch vectors --------------------------------------------------------------------------------------------------


def neighbourhood_mean(maps: Tensor, side: int = 3) -> Tensor:
    """Maps (B, D, h, w) averaged over side x side patches, same size; zeros beyond the border count in the mean.

    side: odd; 1 returns the maps. PatchCore's f_agg and PMAD's pooling.
    """
    assert side >= 1 and side % 2 == 1, "a neighbourhood has a middle"
    return maps if side == 1 else F.avg_pool2d(maps, side, stride=1, padding=side // 2)


def patch_map(
    maps: Sequence[Tensor], *, side: int = 3, grid: Size | None = None, enlarge: Literal["bilinear", "nearest"] = "bilinear"
) -> Tensor:
    """Maps (B, D_i, h_i, w_i) of one batch as one (B, sum D_i, h, w): averaged locally, resized, concatenated in their order.

    grid: (h, w), none: that of the first map. enlarge: `bilinear` is PatchCore's way, `nearest` (repetition) PMAD's.
    """
    height, width = grid if grid is not None else maps[0].shape[-2:]
    parts = []
    for one in maps:
        pooled = neighbourhood_mean(one, side)
        if pooled.shape[-2:] != (height, width):
            corners = None if enlarge == "nearest" else False
            pooled = F.interpolate(pooled, size=(height, width), mode=enlarge, align_corners=corners)
        parts.append(pooled)
    return torch.cat(parts, dim=1)


def as_vectors(maps: Tensor) -> Tensor:
    """Maps (B, D, h, w) as vectors (B * h * w, D): image after image, row by row; contiguous."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


# --- coreset --------------------------------------------------------------------------------------------------------


def sparse_projection(dim: int, components: int, seed: int) -> Tensor:
    """A sparse random projection (components, dim) float64 on the CPU: project with `vectors @ it.T`.

    scikit-learn's `SparseRandomProjection` with density `auto` (a share of 1 / sqrt(dim) is not zero) from `RandomState(seed)`.
    """
    import numpy as np
    from sklearn.random_projection import SparseRandomProjection

    projection = SparseRandomProjection(n_components=components, density="auto", random_state=np.random.RandomState(seed))
    return torch.from_numpy(np.asarray(projection.fit(np.zeros((1, dim))).components_.todense(), dtype=np.float64))


def project(vectors: Tensor, projection: Tensor, device: torch.device, rows: int = 1 << 16) -> Tensor:
    """`vectors` (N, D), wherever they lie, times `projection` (components, D): (N, components) on `device`, block by block."""
    matrix = projection.to(device, vectors.dtype)
    out = torch.empty((len(vectors), len(matrix)), dtype=vectors.dtype, device=device)
    for start in range(0, len(vectors), rows):
        out[start : start + rows] = vectors[start : start + rows].to(device) @ matrix.T
    return out


@torch.no_grad()
def greedy_coreset(points: Tensor, count: int, *, start: int = 0, progress: Callable[[int, int], None] | None = None) -> Coreset:
    """Greedy k-center of `points` (N, D), on their device: `count` different points, the first of them `start`.

    Needs N numbers besides the points and reads them once a step. A point chosen is never chosen again, even among duplicates.
    """
    total = len(points)
    assert 1 <= count <= total and 0 <= start < total, f"{count} of {total} points from {start}"
    norms = _squared_norms(points)
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    closest = torch.full((total,), torch.inf, dtype=points.dtype, device=points.device)  # squared distance from the chosen ones
    candidate = torch.tensor([start], device=points.device)
    for step in range(count):
        chosen[step : step + 1] = candidate
        point = points.index_select(0, candidate)[0]
        squared = torch.addmv(norms, points, point, alpha=-2.0).add_(norms.index_select(0, candidate)).clamp_min_(0.0)
        torch.minimum(closest, squared, out=closest)
        closest.index_fill_(0, candidate, -1.0)
        candidate = closest.argmax().reshape(1)
        if progress is not None and (step + 1 == count or (step + 1) % 512 == 0):
            progress(step + 1, count)
    return Coreset(chosen, float(closest.max().clamp_min(0.0).sqrt()))


def _squared_norms(vectors: Tensor, rows: int = 1 << 16) -> Tensor:
    """Squared lengths (N,) of vectors (N, D), block by block: nothing of the size of the vectors is made."""
    return torch.cat([block.square().sum(dim=1) for block in torch.split(vectors, rows)])


# --- neighbours -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def nearest(queries: Tensor, bank: Tensor, k: int = 1) -> Neighbours:
    """The `k` nearest of the vectors `bank` (M, D) to each of `queries` (Q, D), exactly; both on one device, k <= M.

    A block of distances has at most `BLOCK` numbers, whatever Q and M are.
    """
    assert 1 <= k <= len(bank), f"{k} neighbours of {len(bank)} vectors"
    wanted = min(k + SPARE, len(bank))
    budget = BLOCK.get(bank.device.type, BLOCK["cpu"])
    columns = min(len(bank), max(budget >> 8, wanted))
    rows = max(1, min(budget // columns, budget // (wanted * bank.shape[1])))
    norms = _squared_norms(bank)
    if torch.compiler.is_compiling() or queries.shape[0] <= rows:  # in an exported graph the number of queries is free
        return _nearest_block(queries, bank, norms, k, wanted, columns)
    found = [_nearest_block(block, bank, norms, k, wanted, columns) for block in torch.split(queries, rows)]
    return Neighbours(torch.cat([block.distances for block in found]), torch.cat([block.rows for block in found]))


def _nearest_block(queries: Tensor, bank: Tensor, norms: Tensor, k: int, wanted: int, columns: int) -> Neighbours:
    """`nearest` of a few queries: candidates from products with blocks of the bank, then ranked by direct differences."""
    values, places = [], []
    for start in range(0, len(bank), columns):
        part = bank[start : start + columns]
        # |q|^2 is the same for all of a row: left out.
        squared = torch.addmm(norms[start : start + columns], queries, part.T, alpha=-2.0)
        value, at = squared.topk(min(wanted, len(part)), dim=1, largest=False)
        values.append(value)
        places.append(at + start)
    index = torch.cat(places, dim=1)
    if index.shape[1] > wanted:
        index = index.gather(1, torch.cat(values, dim=1).topk(wanted, dim=1, largest=False).indices)
    exporting = torch.compiler.is_compiling()
    if not exporting:
        index = index.sort(dim=1).values  # a stable sort by distance then gives ties to the lowest index
    exact = (bank[index] - queries[:, None]).square().sum(dim=2)
    # ONNX has no stable sort: there the order of ties is open, the distances are the same.
    ranked, order = exact.topk(k, dim=1, largest=False) if exporting else exact.sort(dim=1, stable=True)
    return Neighbours(ranked[:, :k].sqrt(), index.gather(1, order[:, :k]))
