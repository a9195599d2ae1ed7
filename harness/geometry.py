"""Maps back onto the image they came from: the resize and the centre crop undone.

An image pixel with centre (x + 0.5) lies at t = ((x + 0.5) * resized / original - left) / crop of the crop's width, and likewise
in height. 0 <= t <= 1: it was scored, and its value is read bilinearly from the map, whatever the map's resolution. Otherwise the
crop cut it off, the method never saw it, and its value is NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inpbench.harness.images import crop_box, resized_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.api import Preprocess, Size


def map_on_image(amap: NDArray[Any], size: Size, preprocess: Preprocess) -> NDArray[np.float32]:
    """amap: (h, w) over the crop; size: (height, width) of the image file. Returns (height, width) float32."""
    resized = resized_size(size, preprocess)
    top, _, left, _ = crop_box(resized, preprocess.crop)
    rows = _positions(size[0], resized[0], top, preprocess.crop[0])
    columns = _positions(size[1], resized[1], left, preprocess.crop[1])
    values = _read(_read(np.asarray(amap, dtype=np.float32), rows).T, columns).T
    values[(rows < 0) | (rows > 1), :] = np.nan
    values[:, (columns < 0) | (columns > 1)] = np.nan
    return np.ascontiguousarray(values)


def _positions(count: int, resized: int, start: int, crop: int) -> NDArray[np.float64]:
    """Where the pixel centres of one side lie in the crop, as fractions of its length."""
    return ((np.arange(count) + 0.5) * (resized / count) - start) / crop


def _read(amap: NDArray[np.float32], positions: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows of a map (h, w) at fractions of its height, linearly interpolated between row centres, the border repeated."""
    at = np.clip(positions * len(amap) - 0.5, 0, len(amap) - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, len(amap) - 1)
    weight = (at - low).astype(np.float32)[:, None]
    return amap[low] * (1 - weight) + amap[high] * weight
