"""The connected regions of ground-truth masks, found on runs instead of pixels.

A run is a stretch of anomalous pixels in one row. Two runs of neighbouring rows touch (8-connected) where one reaches within one
pixel of the other; the connected components of that graph are the regions. The cost grows with the runs, of which real masks have
few: one look at every pixel, the rest is negligible. All images of a batch are done at once, and the components of all batches
together. The look is a compiled loop where numba is installed, and a comparison of neighbours elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from inpbench.harness.metrics import loops

Areas = NDArray[np.int32]  # (P,) for each anomalous pixel, the pixels of the region that it belongs to


class Regions(NamedTuple):
    """The regions of all masks, as seen by their anomalous pixels in the order they were added."""

    areas: Areas
    number: int  # of regions


class Runs(NamedTuple):
    """The runs of a batch of masks, row by row."""

    starts: NDArray[np.int64]  # (R,) flat index of the first pixel
    ends: NDArray[np.int64]  # (R,) and past the last
    pairs: NDArray[np.int64]  # (2, E) runs that touch, each pair once; the first row ascends


class MaskRuns:
    """The runs of the masks of a category and which of them touch."""

    def __init__(self) -> None:
        self._runs = 0
        self._lengths: list[NDArray[np.int64]] = []  # pixels of each run
        self._pairs: list[NDArray[np.int64]] = []  # as `Runs.pairs`

    def add(self, masks: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Add masks (B, H, W) bool; regions never cross images. Returns the flat indices (P,) of their anomalous pixels."""
        runs = find_runs(masks)
        lengths = runs.ends - runs.starts
        if not lengths.size:
            return lengths
        self._pairs.append(runs.pairs + self._runs)
        self._lengths.append(lengths)
        self._runs += lengths.size
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        pixels: NDArray[np.int64] = np.repeat(runs.starts, lengths) + within
        return pixels

    def regions(self) -> Regions:
        """The regions of all masks added."""
        if not self._runs:
            return Regions(np.empty(0, np.int32), 0)
        lengths, (one, other) = np.concatenate(self._lengths), np.concatenate(self._pairs, axis=1)
        starts = np.searchsorted(one, np.arange(self._runs + 1))
        index = np.int32  # older SciPy (1.11) finds components of graphs with 32-bit indices only; there are fewer runs than that
        graph = csr_array((np.ones(one.size, np.int8), other.astype(index), starts.astype(index)), shape=(self._runs, self._runs))
        count, region = connected_components(graph, directed=False)
        areas = np.bincount(region, weights=lengths, minlength=count)[region]  # (runs,)
        return Regions(np.repeat(areas.astype(np.int32), lengths), int(count))


def find_runs(masks: NDArray[np.bool_]) -> Runs:
    """The runs of masks (B, H, W)."""
    if not loops.COMPILED:
        return find_runs_by_tables(masks)
    _, height, width = masks.shape
    starts, ends = np.empty((2, np.count_nonzero(masks)), np.int64)
    found = loops.find_runs(np.ascontiguousarray(masks).view(np.uint8).reshape(-1), width, starts, ends)
    starts, ends = starts[:found].copy(), ends[:found].copy()
    pairs = np.empty((2, 2 * found), np.int64)  # two rows of a and b runs have at most a + b - 1 pairs that touch
    touching = loops.link_runs(starts, ends, height, width, pairs[1], pairs[0])
    return Runs(starts, ends, pairs[:, :touching])


def find_runs_by_tables(masks: NDArray[np.bool_]) -> Runs:
    """The same by operations of NumPy."""
    _, height, width = masks.shape
    filled = np.flatnonzero(masks.any(axis=(1, 2)))  # normal images have nothing to look for
    masks, batch = masks[filled], filled.size
    # One empty column after each row and one empty row after each image keep runs apart that only look adjacent when flattened.
    stride = width + 1
    padded = np.zeros(batch * (height + 1) * stride + 1, np.bool_)  # and one empty pixel before all
    padded[1:].reshape(batch, height + 1, stride)[:, :height, :width] = masks
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    starts, ends = edges[0::2], edges[1::2]  # runs [start, end) of the padded, flattened batch
    first = np.searchsorted(ends, starts + stride, "left")  # runs of the next row that end at or after this one's start, and
    last = np.searchsorted(starts, ends + stride, "right")  # start at or before its end: diagonal neighbours included
    touching = np.maximum(last - first, 0)
    above = np.repeat(np.arange(starts.size), touching)
    below = np.arange(above.size) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
    row, column = np.divmod(starts, stride)
    image, row = np.divmod(row, height + 1)
    origin = (filled[image] * height + row) * width + column  # flat index without the padding
    return Runs(origin, origin + ends - starts, np.stack((above, below)))
