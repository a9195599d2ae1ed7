"""The connected regions of ground-truth masks, found on runs instead of pixels.

A run is a stretch of anomalous pixels in one row. Two runs of neighbouring rows touch (8-connected) where one reaches within one
pixel of the other; the connected components of that graph are the regions. The cost grows with the runs, of which real masks have
few: one comparison and one search per pixel, the rest is negligible. All images of a batch are done at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class Regions(NamedTuple):
    """The anomalous pixels of a batch of masks, in row-major order, and the regions that they belong to."""

    pixels: NDArray[np.int64]  # (P,) flat indices into (B, H, W)
    areas: NDArray[np.int32]  # (P,) pixels of the region that each belongs to
    count: int  # regions


def find_regions(masks: NDArray[np.bool_]) -> Regions:
    """8-connected regions of masks (B, H, W) bool; regions never cross from one image to the next."""
    batch, height, width = masks.shape
    # One empty column after each row and one empty row after each image keep runs apart that only look adjacent when flattened.
    stride = width + 1
    padded = np.zeros((batch, height + 1, stride), np.bool_)
    padded[:, :height, :width] = masks
    flat = padded.reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        edges = np.concatenate(([0], edges))
    starts, ends = edges[0::2], edges[1::2]  # runs [start, end) of the padded, flattened batch
    if starts.size == 0:
        return Regions(np.empty(0, np.int64), np.empty(0, np.int32), 0)
    first = np.searchsorted(ends, starts + stride, "left")  # runs of the next row that end at or after this one's start, and
    last = np.searchsorted(starts, ends + stride, "right")  # start at or before its end: diagonal neighbours included
    touching = np.maximum(last - first, 0)
    above = np.repeat(np.arange(starts.size), touching)
    below = np.arange(above.size) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
    graph = coo_array((np.ones(above.size, np.bool_), (above, below)), shape=(starts.size, starts.size))
    count, region = connected_components(graph, directed=False)
    lengths = ends - starts
    areas = np.bincount(region, weights=lengths, minlength=count)[region].astype(np.int32)  # (runs,)
    row, column = np.divmod(starts, stride)
    origin = (row - row // (height + 1)) * width + column  # flat index without the padding
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Regions(np.repeat(origin, lengths) + within, np.repeat(areas, lengths), int(count))
