"""The connected regions of ground-truth masks, found on runs instead of pixels.

A run is a stretch of anomalous pixels in one row. Two runs of neighbouring rows touch (8-connected) where one reaches within one
pixel of the other; the connected components of that graph are the regions. The cost grows with the runs, of which real masks have
few: one comparison and one search per pixel, the rest is negligible. All images of a batch are done at once, and the components of
all batches together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

Areas = NDArray[np.int32]  # (P,) for each anomalous pixel, the pixels of the region that it belongs to


class Regions(NamedTuple):
    """The regions of all masks, as seen by their anomalous pixels in the order they were added."""

    areas: Areas
    number: int  # of regions


class MaskRuns:
    """The runs of the masks of a category and which of them touch."""

    def __init__(self) -> None:
        self._runs = 0
        self._lengths: list[NDArray[np.int64]] = []  # pixels of each run
        self._pairs: list[NDArray[np.int64]] = []  # (2, E) runs that touch

    def add(self, masks: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Add masks (B, H, W) bool; regions never cross images. Returns the flat indices (P,) of their anomalous pixels."""
        batch, height, width = masks.shape
        # One empty column after each row and one empty row after each image keep runs apart that only look adjacent when flattened.
        stride = width + 1
        padded = np.zeros(batch * (height + 1) * stride + 1, np.bool_)  # and one empty pixel before all
        padded[1:].reshape(batch, height + 1, stride)[:, :height, :width] = masks
        edges = np.flatnonzero(padded[1:] != padded[:-1])
        starts, ends = edges[0::2], edges[1::2]  # runs [start, end) of the padded, flattened batch
        if not starts.size:
            return np.empty(0, np.int64)
        first = np.searchsorted(ends, starts + stride, "left")  # runs of the next row that end at or after this one's start, and
        last = np.searchsorted(starts, ends + stride, "right")  # start at or before its end: diagonal neighbours included
        touching = np.maximum(last - first, 0)
        above = np.repeat(np.arange(starts.size), touching)
        below = np.arange(above.size) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
        lengths = ends - starts
        self._pairs.append(np.stack((above, below)) + self._runs)
        self._lengths.append(lengths)
        self._runs += starts.size
        row, column = np.divmod(starts, stride)
        origin = (row - row // (height + 1)) * width + column  # flat index without the padding
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        pixels: NDArray[np.int64] = np.repeat(origin, lengths) + within
        return pixels

    def regions(self) -> Regions:
        """The regions of all masks added."""
        if not self._runs:
            return Regions(np.empty(0, np.int32), 0)
        lengths, (above, below) = np.concatenate(self._lengths), np.concatenate(self._pairs, axis=1)
        starts = np.searchsorted(above, np.arange(self._runs + 1))  # `above` ascends
        index = np.int32  # older SciPy (1.11) finds components of graphs with 32-bit indices only; there are fewer runs than that
        graph = csr_array((np.ones(above.size, np.int8), below.astype(index), starts.astype(index)), shape=(self._runs, self._runs))
        count, region = connected_components(graph, directed=False)
        areas = np.bincount(region, weights=lengths, minlength=count)[region]  # (runs,)
        return Regions(np.repeat(areas.astype(np.int32), lengths), int(count))
