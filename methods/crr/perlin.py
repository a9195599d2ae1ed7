"""Perlin noise, and the rotation that turns it and the images: the shapes of CRR's synthetic anomalies.

Noise: random unit gradients on a coarse grid, dot products with the way to each corner, blended by 6t^5 - 15t^4 + 10t^3.
Rotation: bilinear with source positions rounded to 1/32 pixel, as OpenCV's warpAffine has it; outside is 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.api import Size

Floats = NDArray[np.float64]

_POSITION_BITS = 10  # of a source position while it is added up
_WEIGHT_BITS = 5  # of its fraction: 1/32 pixel


def perlin_noise(size: Size, turns: Floats) -> Floats:
    """Noise (H, W), about in [-1, 1].

    turns: (rows + 1, columns + 1) angles of the gradients as fractions of a full turn; H and W are multiples of rows and columns.
    A gradient's cosine lies along the rows.
    """
    rows, columns = turns.shape[0] - 1, turns.shape[1] - 1
    cell = size[0] // rows, size[1] // columns
    assert cell[0] * rows == size[0] and cell[1] * columns == size[1], "cells fill the image"
    angle = 2.0 * math.pi * turns
    along_y, along_x = np.cos(angle)[:, None, :, None], np.sin(angle)[:, None, :, None]  # (rows + 1, 1, columns + 1, 1)
    y = (np.arange(cell[0]) / cell[0])[None, :, None, None]
    x = (np.arange(cell[1]) / cell[1])[None, None, None, :]

    def corner(down: int, right: int) -> Floats:
        """(rows, cell height, columns, cell width): the dot products with one corner's gradient."""
        part = slice(down, down + rows), slice(None), slice(right, right + columns)
        dot: Floats = along_y[part] * (y - down) + along_x[part] * (x - right)
        return dot

    fade_y, fade_x = _fade(y), _fade(x)
    left = corner(0, 0) + fade_y * (corner(1, 0) - corner(0, 0))
    right = corner(0, 1) + fade_y * (corner(1, 1) - corner(0, 1))
    blended: Floats = math.sqrt(2.0) * (left + fade_x * (right - left))
    return blended.reshape(size)


def _fade(t: Floats) -> Floats:
    return 6.0 * t**5 - 15.0 * t**4 + 10.0 * t**3


def rotation_matrix(size: Size, degrees: float) -> Floats:
    """(2, 3): where a pixel (x, y) of an image (H, W) goes; clockwise on the screen for positive angles, about the centre."""
    centre_x, centre_y = size[1] / 2 - 0.5, size[0] / 2 - 0.5
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array(
        [
            [cosine, -sine, centre_x - cosine * centre_x + sine * centre_y],
            [sine, cosine, centre_y - sine * centre_x - cosine * centre_y],
        ]
    )


def rotate(image: NDArray[Any], degrees: float) -> NDArray[Any]:
    """(H, W) or (H, W, 3) float64 or uint8, turned about its centre; the same shape and dtype, 0 where nothing was."""
    size = image.shape[0], image.shape[1]
    (a, b, c), (d, e, f) = rotation_matrix(size, degrees)
    determinant = a * e - b * d
    inverse = np.array([[e, -b, b * f - e * c], [-d, a, d * c - a * f]]) / determinant  # from a target pixel to its source
    unit = 1 << _POSITION_BITS
    columns, rows = np.arange(size[1]), np.arange(size[0])[:, None]
    half = 1 << (_POSITION_BITS - _WEIGHT_BITS - 1)
    shift = _POSITION_BITS - _WEIGHT_BITS

    def position(along: float, across: float, offset: float) -> NDArray[np.int64]:
        start = np.rint((across * rows + offset) * unit).astype(np.int64) + half
        fixed: NDArray[np.int64] = (start + np.rint(along * columns * unit).astype(np.int64)) >> shift
        return fixed

    x, y = position(*inverse[0]), position(*inverse[1])
    steps = 1 << _WEIGHT_BITS
    right, down = x & (steps - 1), y & (steps - 1)
    x, y = x >> _WEIGHT_BITS, y >> _WEIGHT_BITS

    margin = [(2, 2), (2, 2)]
    place = (np.clip(y, -2, size[0]) + 2) * (size[1] + 4) + np.clip(x, -2, size[1]) + 2
    # Weights are whole numbers of 1 / 1024, so that sums of bytes are exact in float32.
    kind = np.float32 if image.dtype == np.uint8 else np.float64
    left, up = steps - right, steps - down
    weights = [weight.astype(kind) for weight in (left * up, right * up, left * down, right * down)]
    offsets = (0, 1, size[1] + 4, size[1] + 5)

    def turned(channel: NDArray[Any]) -> NDArray[Any]:
        flat = np.pad(channel, margin).reshape(-1)
        total = sum(weight * flat.take(place + offset) for weight, offset in zip(weights, offsets, strict=True))
        return np.asarray(np.floor(total / (steps * steps) + 0.5) if kind is np.float32 else total / (steps * steps))

    if image.ndim == 2:
        return turned(image).astype(image.dtype)
    return np.stack([turned(image[..., i]) for i in range(image.shape[2])], axis=-1).astype(image.dtype)
