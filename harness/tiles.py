"""Very large images in overlapping tiles: a defect of a few pixels would vanish in one resize of the whole image.

Tiles of T x T image pixels start every T - overlap pixels; the last one of each row and column is moved back to the border, so
that every pixel is covered. Each tile is resized to the method's crop, nothing is cut off, and is scored as an image of its own.
The map is the weighted mean of the tiles that cover a pixel; a tile's weight falls linearly to its edge over the overlap, so that
no seam shows. The image score is the highest tile score: it cannot be compared with scores of whole images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inpbench.harness.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.api import Preprocess, Size


class Box(NamedTuple):
    """Rows and columns of a tile in its image."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.bottom - self.top, self.right - self.left


def check_tiles(tile: Size, overlap: int) -> None:
    """Raise `UsageError` unless 0 <= overlap < the tile's shorter side."""
    if min(tile) < 1 or not 0 <= overlap < min(tile):
        raise UsageError(
            f"Tiles of {tile[0]}x{tile[1]} with an overlap of {overlap} do not cover an image.",
            "Type for example: --tile 448 --overlap 64",
        )


def tile_boxes(size: Size, tile: Size, overlap: int) -> list[Box]:
    """The tiles of an image (height, width), row by row; a side shorter than the tile has one tile of its own length."""
    rows, columns = (_starts(length, side, side - overlap) for length, side in zip(size, tile, strict=True))
    return [Box(t, min(t + tile[0], size[0]), s, min(s + tile[1], size[1])) for t in rows for s in columns]


def _starts(length: int, side: int, step: int) -> list[int]:
    last = max(0, length - side)
    return [*range(0, last, step), last]


def tile_preprocess(preprocess: Preprocess) -> Preprocess:
    """How a tile becomes the method's input: resized to the crop size, nothing cut off."""
    return replace(preprocess, resize=preprocess.crop, shorter_side=False)


class Blend:
    """The map of an image (height, width), gathered tile by tile."""

    def __init__(self, size: Size, overlap: int) -> None:
        self._sum, self._weight = np.zeros(size, np.float64), np.zeros(size, np.float64)
        self._overlap = overlap

    def add(self, box: Box, values: NDArray[Any]) -> None:
        """values: (h, w) of the tile's own size."""
        height, width = box.size
        weight = self._ramp(height)[:, None] * self._ramp(width)[None, :]
        self._sum[box.top : box.bottom, box.left : box.right] += values * weight
        self._weight[box.top : box.bottom, box.left : box.right] += weight

    def _ramp(self, length: int) -> NDArray[np.float64]:
        """1 in the middle, falling over the overlap to nearly 0 at both ends; never 0, so that the image's border has a value."""
        inside = np.minimum(np.arange(length) + 1.0, np.arange(length, 0, -1.0))
        ramp: NDArray[np.float64] = np.minimum(inside / (self._overlap + 1.0), 1.0)
        return ramp

    def result(self) -> NDArray[np.float32]:
        """(height, width) float32."""
        assert (self._weight > 0).all(), "the tiles cover every pixel"
        return (self._sum / self._weight).astype(np.float32)
