"""Anomaly values as colours, on one scale for a whole data set: cold stays dark, hot is bright.

The colour map is perceptual: its lightness rises evenly from black over purple and orange to pale yellow, so that it reads the
same in grey and for colour-blind readers. A scale is (low, high) in map units; nothing here looks at a single image's range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inpbench.harness.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# RGB at equal steps of the scale, linearly interpolated; CIE lightness from 0 to 98.
_STOPS = np.array(
    [
        (0, 0, 4),
        (28, 16, 68),
        (79, 18, 123),
        (129, 37, 129),
        (181, 54, 122),
        (229, 80, 100),
        (251, 135, 97),
        (254, 194, 135),
        (252, 253, 191),
    ],
    dtype=np.float64,
)
TABLE: NDArray[np.uint8] = np.stack(
    [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(_STOPS)), _STOPS[:, channel]).round() for channel in range(3)], axis=1
).astype(np.uint8)  # (256, 3)
STRENGTH = 0.8  # opacity of the hottest pixel of an overlay; the coldest is clear
NOT_SCORED = np.array((118, 124, 132), dtype=np.float64)  # blue-grey, no colour of the map


class Scale(NamedTuple):
    """The values of the coldest and the hottest colour."""

    low: float
    high: float

    def unit(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Values -> [0, 1], clipped; NaN stays."""
        return np.clip((values.astype(np.float64) - self.low) / (self.high - self.low), 0.0, 1.0)


def make_scale(low: float, high: float) -> Scale:
    """A scale; raises `UsageError` unless low < high, both finite. Ends that only rounding tells apart are set a hair apart."""
    if np.isfinite(low) and np.isfinite(high) and abs(high - low) <= 1e-6 * max(abs(low), abs(high)):
        high = low + max(abs(low), 1.0) * 1e-6
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise UsageError(f"A colour scale needs low < high, found {low:g} and {high:g}.", "Type for example: --scale 0.1,0.6")
    return Scale(float(low), float(high))


def paint(values: NDArray[Any], scale: Scale) -> NDArray[np.uint8]:
    """A map (H, W) -> RGB (H, W, 3); NaN, where nothing was scored, is blue-grey."""
    unit = scale.unit(values)
    missing = np.isnan(unit)
    out: NDArray[np.uint8] = TABLE[(np.where(missing, 0.0, unit) * 255).round().astype(np.uint8)]
    out[missing] = NOT_SCORED.astype(np.uint8)
    return out


def overlay(image: NDArray[np.uint8], values: NDArray[Any], scale: Scale) -> NDArray[np.uint8]:
    """A map (H, W) over its image (H, W, 3) RGB: the colder, the clearer; where nothing was scored the image fades into grey."""
    unit = scale.unit(values)
    missing = np.isnan(unit)
    opacity = STRENGTH * np.sqrt(np.where(missing, 0.0, unit))[..., None]  # (H, W, 1)
    mixed = image * (1.0 - opacity) + paint(values, scale) * opacity
    mixed[missing] = 0.35 * image[missing] + 0.65 * NOT_SCORED
    painted: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return painted
