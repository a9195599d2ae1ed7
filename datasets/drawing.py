"""Drawing primitives of the synthetic set: coordinates, smooth noise, shapes and blending, all in float64.

Coordinates are in units of 1/256 of the side, whatever the size in pixels, so that a picture looks the same at every size.
Shapes are signed distances (negative inside); `cover` turns a distance into antialiased coverage in [0, 1].
Everything random comes from a `numpy.random.Generator` handed in; nothing depends on global state or on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float64]
Colour = tuple[float, float, float]  # red, green, blue in [0, 1]

UNITS = 256.0  # length of a side in drawing units


@dataclass(frozen=True)
class Canvas:
    """Pixel centres of a square image: `y` and `x` (S, S) in drawing units, `pixel` the size of one pixel in units."""

    size: int
    y: Array
    x: Array

    @property
    def pixel(self) -> float:
        """Side of a pixel in drawing units: the width of antialiasing."""
        return UNITS / self.size


@lru_cache(maxsize=8)
def canvas(size: int) -> Canvas:
    """The canvas of `size` x `size` pixels."""
    centre = (np.arange(size, dtype=np.float64) + 0.5) * (UNITS / size)
    y, x = np.meshgrid(centre, centre, indexing="ij")
    return Canvas(size, y, x)


def rotated(where: Canvas, angle: float, centre: tuple[float, float]) -> tuple[Array, Array]:
    """Coordinates (v, u) (S, S) in a frame at `centre` (y, x), turned by `angle` radians."""
    y, x = where.y - centre[0], where.x - centre[1]
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * y - sin * x, sin * y + cos * x


def near(where: Canvas, at: tuple[float, float], reach: float) -> tuple[slice, slice]:
    """The rows and columns of the pixels within `reach` units of the point `at` (y, x)."""
    first = [max(int((c - reach) / where.pixel), 0) for c in at]
    last = [min(int((c + reach) / where.pixel) + 1, where.size) for c in at]
    return slice(first[0], max(last[0], first[0])), slice(first[1], max(last[1], first[1]))


# --- noise ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _spline(cells: int, size: int) -> tuple[NDArray[np.int64], Array]:
    """First node (S,) and the four weights (4, S) of the uniform cubic B-spline at the pixel centres; they sum to 1."""
    at = (np.arange(size) + 0.5) * cells / size
    left = np.floor(at).astype(np.int64)
    t = at - left
    return left, np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0


def smooth_noise(rng: Generator, size: int, rows: int, cols: int) -> Array:
    """(S, S) smooth noise of about zero mean and unit deviation, with features of 1/rows and 1/cols of the side.

    The random numbers drawn depend on `rows` and `cols` alone, so one seed gives one picture at every size. Sums of four terms in a
    fixed order, and no matrix product: that would depend on the machine's linear algebra.
    """
    grid = rng.standard_normal((rows + 3, cols + 3))
    first, weights = _spline(rows, size)
    tall = sum(weight[:, None] * grid[first + node] for node, weight in enumerate(weights))
    first, weights = _spline(cols, size)
    field: Array = sum(weight * tall[:, first + node] for node, weight in enumerate(weights))
    return field * 2.087  # a cubic B-spline in both axes keeps 151/315 = 1 / 2.087 of the deviation


def octaves(rng: Generator, size: int, cells: int, count: int) -> Array:
    """(S, S) sum of `count` smooth noises, each twice as fine and half as strong as the one before; unit deviation."""
    total = np.zeros((size, size))
    for octave in range(count):
        total += smooth_noise(rng, size, cells << octave, cells << octave) * 0.5**octave
    field: Array = total / np.sqrt(sum(0.25**octave for octave in range(count)))
    return field


# --- shapes ---------------------------------------------------------------------------------------------------------


def disc(v: Array, u: Array, radius: float) -> Array:
    """Signed distance to a disc around the origin."""
    return np.hypot(v, u) - radius


def box(v: Array, u: Array, half_height: float, half_width: float, corner: float = 0.0) -> Array:
    """Signed distance to a box around the origin with rounded corners."""
    dv, du = np.abs(v) - (half_height - corner), np.abs(u) - (half_width - corner)
    outside = np.hypot(np.maximum(dv, 0.0), np.maximum(du, 0.0))
    return outside + np.minimum(np.maximum(dv, du), 0.0) - corner


def hexagon(v: Array, u: Array, apothem: float) -> Array:
    """Distance-like field to a hexagon around the origin: exact along the sides, slightly short at the corners."""
    half, slope = 0.5, np.sqrt(3.0) / 2.0
    first = np.maximum(np.abs(u * half + v * slope), np.abs(u * half - v * slope))
    distance: Array = np.maximum(first, np.abs(u)) - apothem
    return distance


def polyline(where: Canvas, points: Array, reach: float) -> Array:
    """(S, S) distance to the broken line through `points` (K, 2), given as (y, x); infinite beyond `reach` units around it."""
    low, high = points.min(axis=0), points.max(axis=0)
    middle, extent = (low + high) / 2, float((high - low).max()) / 2
    window = near(where, (float(middle[0]), float(middle[1])), extent + reach)
    y, x = where.y[window], where.x[window]
    best = np.full(y.shape, np.inf)
    for (y0, x0), (y1, x1) in pairwise(points):
        dy, dx = y1 - y0, x1 - x0
        along = np.clip(((y - y0) * dy + (x - x0) * dx) / max(dy * dy + dx * dx, 1e-9), 0.0, 1.0)
        np.minimum(best, (y - y0 - along * dy) ** 2 + (x - x0 - along * dx) ** 2, out=best)
    distance = np.full(where.y.shape, np.inf)
    distance[window] = np.sqrt(best)
    return distance


def cover(distance: Array, soft: float) -> Array:
    """Coverage in [0, 1] of a signed distance, with an edge `soft` units wide."""
    return np.clip(0.5 - distance / soft, 0.0, 1.0)


# --- blending -------------------------------------------------------------------------------------------------------


def plain(size: int, colour: Colour) -> Array:
    """(S, S, 3) image of one colour."""
    image: Array = np.broadcast_to(np.asarray(colour), (size, size, 3)).copy()
    return image


def over(image: Array, colour: Colour | Array, alpha: Array) -> None:
    """Paint `colour` (a colour or an (S, S, 3) image) over `image` (S, S, 3) with coverage `alpha` (S, S), in place."""
    painted = alpha > 0.0
    rows, cols = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
    if rows.size:  # most shapes are small: only their bounding box is touched
        inside = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
        colour = np.asarray(colour)
        image[inside] += alpha[inside][..., None] * ((colour[inside] if colour.ndim == 3 else colour) - image[inside])


def shade(image: Array, factor: Array) -> None:
    """Multiply `image` (S, S, 3) by `factor` (S, S), in place."""
    image *= factor[..., None]
