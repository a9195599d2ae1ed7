"""The ten augmenters that change a texture before CRR pastes it; of (H, W, 3) uint8 RGB, each with its draw of parameters.

Three different ones are drawn a sample, and applied in the order in which they were drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from inpbench.methods.crr.colour import SPACES, change_brightness, shift_hue_and_saturation
from inpbench.methods.crr.perlin import rotate

Bytes = NDArray[np.uint8]
Augmenter = Callable[[Bytes], Bytes]

_LEVELS = np.arange(256)


def _pil(image: Bytes, change: Callable[[Image.Image], Image.Image]) -> Bytes:
    return np.asarray(change(Image.fromarray(image)))


def gamma(image: Bytes, exponents: tuple[float, float, float]) -> Bytes:
    """255 (v / 255)^g of each channel, in float32, truncated."""
    unit = _LEVELS.astype(np.float32) / np.float32(255)
    tables = [(unit ** np.float32(g) * np.float32(255)).astype(np.uint8) for g in exponents]
    return np.stack([table[image[..., i]] for i, table in enumerate(tables)], axis=-1)


def brightness(image: Bytes, space: str, changes: tuple[tuple[str, float], ...]) -> Bytes:
    """`("multiply", m)` and `("add", a)` in turn on the brightness of a colour space, each in float32, clipped and truncated."""
    table = _LEVELS.astype(np.uint8)
    for kind, value in changes:
        level = table.astype(np.float32)
        changed = level * np.float32(value) if kind == "multiply" else level + np.float32(value)
        table = np.clip(changed, 0, 255).astype(np.uint8)
    return change_brightness(image, space, table)


def sharpness(image: Bytes, factor: float) -> Bytes:
    """0 blurs, 1 leaves as it is, 2 sharpens."""
    return _pil(image, lambda picture: ImageEnhance.Sharpness(picture).enhance(factor))


def hue_and_saturation(image: Bytes, hue: int, saturation: int) -> Bytes:
    """Both shifted; see `colour.shift_hue_and_saturation`."""
    return shift_hue_and_saturation(image, hue, saturation)


def solarise(image: Bytes, threshold: float) -> Bytes:
    """Levels from the threshold on are inverted."""
    return np.where(image >= threshold, 255 - image, image).astype(np.uint8)


def posterise(image: Bytes, bits: int) -> Bytes:
    """Only the highest bits stay; 8: all of them."""
    kept: Bytes = image & np.uint8(256 - (1 << (8 - bits)))
    return kept


def invert(image: Bytes) -> Bytes:
    """255 - v."""
    return 255 - image


def autocontrast(image: Bytes, cutoff: int) -> Bytes:
    """Each channel stretched over all levels, after `cutoff` per cent at each end."""
    return _pil(image, lambda picture: ImageOps.autocontrast(picture, cutoff))


def equalise(image: Bytes) -> Bytes:
    """Each channel's histogram made even."""
    return _pil(image, ImageOps.equalize)


def turn(image: Bytes, degrees: float) -> Bytes:
    """Rotated about the centre; black outside."""
    return rotate(image, degrees)


def unchanged(image: Bytes) -> Bytes:
    """What a solarisation is in half of the cases."""
    return image


# --- draws ---------------------------------------------------------------------------------------------------------------------


def _brightness(rng: np.random.Generator) -> Augmenter:
    changes = [("multiply", float(rng.uniform(0.8, 1.2))), ("add", float(rng.integers(-30, 31)))]
    if rng.random() < 0.5:
        changes.reverse()
    return partial(brightness, space=SPACES[int(rng.integers(len(SPACES)))], changes=tuple(changes))


def _hue_and_saturation(rng: np.random.Generator) -> Augmenter:
    return partial(hue_and_saturation, hue=int(rng.integers(-50, 51)), saturation=int(rng.integers(-50, 51)))


def _gamma(rng: np.random.Generator) -> Augmenter:
    low, middle, high = rng.uniform(0.5, 2.0, 3).tolist()
    return partial(gamma, exponents=(low, middle, high))


def _solarise(rng: np.random.Generator) -> Augmenter:
    return partial(solarise, threshold=float(rng.uniform(32, 128))) if rng.random() < 0.5 else unchanged


DRAWS: tuple[Callable[[np.random.Generator], Augmenter], ...] = (
    _gamma,
    _brightness,
    lambda rng: partial(sharpness, factor=float(rng.uniform(0, 2))),
    _hue_and_saturation,
    _solarise,
    lambda rng: partial(posterise, bits=int(rng.integers(1, 9))),
    lambda rng: invert,
    lambda rng: partial(autocontrast, cutoff=int(rng.integers(0, 21))),
    lambda rng: equalise,
    lambda rng: partial(turn, degrees=float(rng.uniform(-45, 45))),
)


def draw_augmenters(rng: np.random.Generator, count: int = 3) -> tuple[Augmenter, ...]:
    """`count` different augmenters with their parameters."""
    chosen: Any = rng.choice(len(DRAWS), count, replace=False)
    return tuple(DRAWS[int(index)](rng) for index in chosen)
