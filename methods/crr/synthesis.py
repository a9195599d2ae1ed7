"""One synthetic anomaly: a changed texture, or the image's own shuffled pieces, blended in where rotated Perlin noise is high.

    M = foreground * (rotated noise > 0.5);  T = A M / 255;  out = I (1 - M) + (1 - beta) T + beta I M
A is the texture or the shuffled image after three augmenters. Everything lies at resize size, before the crop.
Known deviations: the clean and the changed image come from one antialiased resize, where the original's come from two (its repair
target undoes a resampling difference of 0.01 to 0.03 normalised units). One seeded generator a sample, where the original copies
imgaug's state into every worker and epoch. Sides that are no multiples of 32 get the noise of the next multiple, cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.api import Size
from inpbench.methods.crr.augmenters import Augmenter, draw_augmenters
from inpbench.methods.crr.perlin import perlin_noise, rotate

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

FINEST = 5  # noise has 2^0 to 2^5 cells a side
THRESHOLD = 0.5
TRIES = 50
STRIPS = 8
_RESIZE_BITS = 11


class Synthetic(NamedTuple):
    """A sample with its anomaly."""

    image: Bytes  # (H, W, 3)
    mask: Bytes  # (H, W), 0 to 255; fractional at the edges of a foreground


def resize_bilinear(image: Bytes, size: Size) -> Bytes:
    """(h, w) or (h, w, C) to `size`, bilinear without antialiasing, in the fixed-point arithmetic of OpenCV's 8-bit resize."""
    if image.shape[:2] == tuple(size):
        return image
    (top, bottom, down), (left, right, across) = (_taps(image.shape[axis], size[axis]) for axis in (0, 1))
    wide = image.astype(np.int32)
    across = across.reshape(2, -1, *[1] * (image.ndim - 2))
    rows = (wide[:, left] * across[0] + wide[:, right] * across[1]) >> 4  # (h, W, ...)
    down = down.reshape(2, -1, *[1] * (image.ndim - 1))
    total = ((rows[top] * down[0]) >> 16) + ((rows[bottom] * down[1]) >> 16)
    resized: Bytes = ((total + 2) >> 2).astype(np.uint8)
    return resized


def _taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Both source positions of each target pixel, and their weights (2, target) in 2048ths."""
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    part = position - first.astype(np.float32)
    part[(first < 0) | (first >= source - 1)] = 0
    first = np.clip(first, 0, source - 1)
    unit = np.float32(1 << _RESIZE_BITS)
    weights = np.rint(np.stack([(1 - part) * unit, part * unit])).astype(np.int32)
    return first, np.minimum(first + 1, source - 1), weights


# --- where ---------------------------------------------------------------------------------------------------------------------

Shape = Callable[[Size], tuple[NDArray[np.float64], float]]
"""Grid (rows + 1, columns + 1) -> turns of the gradients, and the angle of the rotation in degrees: one draw."""


def anomaly_mask(foreground: Floats, cells: Size, draw: Shape) -> Floats:
    """(H, W) in [0, 1]: where the anomaly is. cells: of the noise along rows and columns. Empty after 50 unlucky draws."""
    height, width = foreground.shape
    least = 1 << FINEST
    whole = -(-height // least) * least, -(-width // least) * least
    for _ in range(TRIES):
        turns, degrees = draw((cells[0] + 1, cells[1] + 1))
        noise = rotate(perlin_noise(whole, turns), degrees)[:height, :width]
        mask = foreground * (noise > THRESHOLD).astype(np.float32)
        if mask.any():
            break
    return mask


# --- what ----------------------------------------------------------------------------------------------------------------------


def shuffle_pieces(image: Bytes, orders: Sequence[Sequence[int]]) -> Bytes:
    """The image cut into 8 upright strips, then into 8 level ones, each time put together in another order.

    orders: of the even and the odd upright strips (4 each), of all level strips (8), then of the even and the odd ones of those.
    """
    upright = np.array_split(image, STRIPS, axis=1)
    even, odd = upright[0::2], upright[1::2]
    image = np.concatenate([even[i] for i in orders[0]] + [odd[i] for i in orders[1]], axis=1)
    level = np.array_split(image, STRIPS, axis=0)
    level = [level[i] for i in orders[2]]
    even, odd = level[0::2], level[1::2]
    return np.concatenate([even[i] for i in orders[3]] + [odd[i] for i in orders[4]], axis=0)


def augment(image: Bytes, augmenters: Sequence[Augmenter]) -> Bytes:
    """Apply in this order."""
    for change in augmenters:
        image = change(image)
    return image


def blend(image: Bytes, source: Bytes, mask: Floats, beta: float) -> Synthetic:
    """Image and source (H, W, 3), mask (H, W) in [0, 1]; beta: how much of the image shows through. Levels are truncated."""
    unit, weight = image.astype(np.float32) / np.float32(255), mask[..., None]
    texture = source.astype(np.float32) * weight / np.float32(255)
    out = unit * (1 - weight) + np.float32(1 - beta) * texture + np.float32(beta) * unit * weight
    return Synthetic((out * np.float32(255)).astype(np.uint8), (mask * np.float32(255)).astype(np.uint8))


def synthesise(
    image: Bytes, foreground: Floats, texture: Callable[[np.random.Generator], Bytes], rng: np.random.Generator
) -> Synthetic:
    """A random anomaly on an image (H, W, 3), where its foreground (H, W) in [0, 1] allows one.

    texture: draws an image of any size. Half of the samples use it, the others the image's own pieces.
    """
    size: Size = (image.shape[0], image.shape[1])
    rows, columns = (1 << int(power) for power in rng.integers(0, FINEST + 1, 2))
    mask = anomaly_mask(foreground, (rows, columns), lambda grid: (rng.random(grid), float(rng.uniform(-90, 90))))
    foreign = rng.random() > 0.5
    augmenters = draw_augmenters(rng)
    if foreign:
        source = augment(resize_bilinear(texture(rng), size), augmenters)
    else:
        half = STRIPS // 2
        orders: list[Any] = [rng.permutation(count) for count in (half, half, STRIPS, half, half)]
        source = shuffle_pieces(augment(image, augmenters), orders)
    return blend(image, source, mask, 0.6 * float(rng.random()) + 0.2)


# --- textures of our own ---------------------------------------------------------------------------------------------------------


def procedural_texture(rng: np.random.Generator, size: int = 256) -> Bytes:
    """(size, size, 3): two colours mixed by bent stripes or by Perlin noise of several octaves, with grain. Nothing is read."""
    noise = np.zeros((size, size))
    for octave in range(int(rng.integers(1, 4))):
        cells = 1 << min(int(rng.integers(1, 5)) + octave, 6)
        noise += perlin_noise((size, size), rng.random((cells + 1, cells + 1))) / (1 << octave)
    if rng.random() < 0.5:
        angle, period = rng.uniform(0, math.pi), rng.uniform(4, 40)
        y, x = np.mgrid[0:size, 0:size]
        wave = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
        share = 0.5 + 0.5 * np.sin(wave + rng.uniform(0, 6) * noise)
    else:
        share = np.clip(0.5 + rng.uniform(0.5, 2.0) * noise, 0.0, 1.0)
    dark, light = rng.uniform(0, 255, (2, 3))
    grain = rng.normal(0.0, rng.uniform(0, 20), (size, size, 1))
    texture: Bytes = np.clip(dark + share[..., None] * (light - dark) + grain, 0, 255).astype(np.uint8)
    return texture
