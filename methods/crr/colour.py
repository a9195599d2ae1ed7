"""Changing the brightness of 8-bit RGB in six colour spaces, and hue and saturation, with OpenCV's 8-bit scales and roundings.

Hue counts 0 to 179, every other channel 0 to 255. Integer spaces (YCrCb, YUV, HSV's saturation and hue) follow OpenCV's fixed-point
arithmetic, the others its float formulas. Known deviation: OpenCV interpolates Lab and Luv from tables: up to 3 grey levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

_BITS = 14  # of the luma coefficients
_LUMA = (4899, 9617, 1868)  # of R, G, B
_SRGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)  # D65
_WHITE = np.array([0.950456, 1.0, 1.088754])
_KNEE = 0.008856  # of L as a function of Y


def _descale(value: Ints, bits: int = _BITS) -> Ints:
    rounded: Ints = (value + (1 << (bits - 1))) >> bits
    return rounded


def _bytes(*channels: NDArray[np.number]) -> Bytes:
    """Channels rounded (halves to even), clipped and stacked."""
    return np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)


# --- luma and two differences ----------------------------------------------------------------------------------------------


class _Luma(NamedTuple):
    """The fixed-point factors of a luma space: of the differences, and back."""

    red_first: bool  # YCrCb keeps R - Y before B - Y
    red: int
    blue: int
    to_red: int
    to_green: tuple[int, int]  # of the red and of the blue difference
    to_blue: int


_YCRCB = _Luma(True, 11682, 9241, 22987, (-11698, -5636), 29049)
_YUV = _Luma(False, 14369, 8061, 18678, (-9519, -6472), 33292)


def _to_luma(rgb: Bytes, space: _Luma) -> Bytes:
    red, green, blue = (rgb[..., i].astype(np.int32) for i in range(3))
    luma = _descale(red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2])
    middle = 128 << _BITS
    differences = [_descale((red - luma) * space.red + middle), _descale((blue - luma) * space.blue + middle)]
    return _bytes(luma, *(differences if space.red_first else differences[::-1]))


def _from_luma(pixels: Bytes, space: _Luma) -> Bytes:
    luma, *differences = (pixels[..., i].astype(np.int32) for i in range(3))
    red, blue = (part - 128 for part in (differences if space.red_first else differences[::-1]))
    return _bytes(
        luma + _descale(red * space.to_red),
        luma + _descale(red * space.to_green[0] + blue * space.to_green[1]),
        luma + _descale(blue * space.to_blue),
    )


# --- hue -----------------------------------------------------------------------------------------------------------------------


def _hexagon(rgb: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.generic]]:
    """Largest and smallest channel, and the hue times their difference, in sixths of a turn."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    difference = high - low  # type: ignore[operator]
    hue = np.where(
        high == red,
        green - blue,  # type: ignore[operator]
        np.where(high == green, blue - red + 2 * difference, red - green + 4 * difference),  # type: ignore[operator]
    )
    return high, low, hue


def to_hsv(rgb: Bytes) -> Bytes:
    """(..., 3) RGB to hue 0 to 179, saturation, value."""
    high, low, hue = _hexagon(rgb.astype(np.int32))
    value, difference = high.astype(np.int32), (high - low).astype(np.int32)  # type: ignore[operator]
    counts = np.arange(1, 256)
    per_value = np.concatenate(([0], np.rint((255 << 12) / counts))).astype(np.int32)
    per_difference = np.concatenate(([0], np.rint((180 << 12) / (6.0 * counts)))).astype(np.int32)
    turned = _descale(hue.astype(np.int32) * per_difference[difference], 12)
    return _bytes(turned + 180 * (turned < 0), _descale(difference * per_value[value], 12), value)


def _sectors(hue: Floats, high: Floats, low: Floats, falling: Floats, rising: Floats) -> Bytes:
    """RGB bytes from the four levels (in [0, 1]) of a hue (in sixths of a turn)."""
    sector = np.floor(hue).astype(np.int32) % 6
    levels = np.stack([high, low, falling, rising], axis=-1)
    order = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])  # of R, G, B in each sector
    chosen = np.take_along_axis(levels, order[sector], axis=-1) * np.float32(255)
    return _bytes(*(chosen[..., i] for i in range(3)))


def from_hsv(hsv: Bytes) -> Bytes:
    """The inverse of `to_hsv`."""
    hue = hsv[..., 0] * np.float32(6.0 / 180.0)
    saturation, value = (hsv[..., i] * np.float32(1.0 / 255.0) for i in (1, 2))
    part = hue - np.floor(hue)
    one = np.float32(1.0)
    falling, rising = value * (one - saturation * part), value * (one - saturation * (one - part))
    return _sectors(hue, value, value * (one - saturation), falling, rising)


def _to_hls(rgb: Bytes) -> Bytes:
    unit = rgb * np.float32(1.0 / 255.0)
    high, low, hue = (part.astype(np.float32) for part in _hexagon(unit))
    total, difference = high + low, high - low
    grey = difference <= np.finfo(np.float32).eps
    safe = np.where(grey, np.float32(1.0), difference)
    saturation = np.where(grey, 0, difference / np.where(total < 1.0, np.maximum(total, np.float32(1e-20)), 2.0 - total + grey))
    turned = np.where(grey, 0, hue / safe * np.float32(30.0))  # 180 a turn
    return _bytes(np.where(turned < 0, turned + 180, turned), total * np.float32(0.5 * 255), saturation * np.float32(255))


def _from_hls(hls: Bytes) -> Bytes:
    hue = hls[..., 0] * np.float32(6.0 / 180.0)
    light, saturation = (hls[..., i] * np.float32(1.0 / 255.0) for i in (1, 2))
    high = np.where(light <= 0.5, light * (1 + saturation), light + saturation - light * saturation)
    low, part = 2 * light - high, hue - np.floor(hue)
    return _sectors(hue, high, low, low + (high - low) * (1 - part), low + (high - low) * part)


# --- CIE -----------------------------------------------------------------------------------------------------------------------


def _linear() -> NDArray[np.float64]:
    """(256,) linear light of an sRGB byte."""
    unit = np.arange(256) / 255.0
    light: NDArray[np.float64] = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    return light


def _to_xyz(rgb: Bytes) -> NDArray[np.float64]:
    xyz: NDArray[np.float64] = _linear()[rgb] @ _SRGB_TO_XYZ.T
    return xyz


def _from_xyz(xyz: NDArray[np.float64]) -> Bytes:
    light = np.clip(xyz @ np.linalg.inv(_SRGB_TO_XYZ).T, 0.0, 1.0)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255.0
    return _bytes(*(coded[..., i] for i in range(3)))


def _root(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    root: NDArray[np.float64] = np.where(ratio > _KNEE, np.cbrt(ratio), 7.787 * ratio + 16.0 / 116.0)
    return root


def _cube(root: NDArray[np.float64]) -> NDArray[np.float64]:
    cube: NDArray[np.float64] = np.where(root > 6.0 / 29.0, root**3, (root - 16.0 / 116.0) / 7.787)
    return cube


def _lightness(y: NDArray[np.float64]) -> NDArray[np.float64]:
    light: NDArray[np.float64] = np.where(y > _KNEE, 116.0 * np.cbrt(y) - 16.0, 903.3 * y)
    return light


def _to_lab(rgb: Bytes) -> Bytes:
    xyz = _to_xyz(rgb) / _WHITE
    x, y, z = (_root(xyz[..., i]) for i in range(3))
    return _bytes(_lightness(xyz[..., 1]) * 2.55, 500.0 * (x - y) + 128.0, 200.0 * (y - z) + 128.0)


def _from_lab(lab: Bytes) -> Bytes:
    y = (lab[..., 0] / 2.55 + 16.0) / 116.0
    x, z = y + (lab[..., 1] - 128.0) / 500.0, y - (lab[..., 2] - 128.0) / 200.0
    return _from_xyz(np.stack([_cube(x), _cube(y), _cube(z)], axis=-1) * _WHITE)


# u' and v' of white, and the ranges that OpenCV maps onto 0 to 255.
_WHITE_U, _WHITE_V = 4 * 0.950456 / (0.950456 + 15 + 3 * 1.088754), 9 / (0.950456 + 15 + 3 * 1.088754)
_U_LOW, _U_RANGE, _V_LOW, _V_RANGE = -134.0, 354.0, -140.0, 262.0


def _to_luv(rgb: Bytes) -> Bytes:
    xyz = _to_xyz(rgb)
    light = _lightness(xyz[..., 1])
    divisor = np.maximum(xyz @ np.array([1.0, 15.0, 3.0]), np.finfo(np.float32).eps)
    u = 13.0 * light * (4.0 * xyz[..., 0] / divisor - _WHITE_U)
    v = 13.0 * light * (9.0 * xyz[..., 1] / divisor - _WHITE_V)
    return _bytes(light * 2.55, (u - _U_LOW) * (255.0 / _U_RANGE), (v - _V_LOW) * (255.0 / _V_RANGE))


def _from_luv(luv: Bytes) -> Bytes:
    light = luv[..., 0] / 2.55
    u, v = luv[..., 1] * (_U_RANGE / 255.0) + _U_LOW, luv[..., 2] * (_V_RANGE / 255.0) + _V_LOW
    y = np.where(light > 8.0, ((light + 16.0) / 116.0) ** 3, light / 903.3)
    scale = 13.0 * np.maximum(light, 1e-9)
    u_point, v_point = u / scale + _WHITE_U, np.maximum(v / scale + _WHITE_V, 1e-6)
    x = 2.25 * y * u_point / v_point
    z = y * (12.0 - 3.0 * u_point - 20.0 * v_point) / (4.0 * v_point)
    return _from_xyz(np.stack([x, y, z], axis=-1))


# --- what the augmenters use -----------------------------------------------------------------------------------------------------


class _Space(NamedTuple):
    to: Callable[[Bytes], Bytes]
    back: Callable[[Bytes], Bytes]
    brightness: int  # its channel


_SPACES = {
    "YCrCb": _Space(lambda rgb: _to_luma(rgb, _YCRCB), lambda pixels: _from_luma(pixels, _YCRCB), 0),
    "HSV": _Space(to_hsv, from_hsv, 2),
    "HLS": _Space(_to_hls, _from_hls, 1),
    "Lab": _Space(_to_lab, _from_lab, 0),
    "Luv": _Space(_to_luv, _from_luv, 0),
    "YUV": _Space(lambda rgb: _to_luma(rgb, _YUV), lambda pixels: _from_luma(pixels, _YUV), 0),
}
SPACES = tuple(_SPACES)


def change_brightness(rgb: Bytes, space: str, table: Bytes) -> Bytes:
    """(H, W, 3) with the brightness channel of a space of `SPACES` looked up in a table (256,)."""
    chosen = _SPACES[space]
    pixels = chosen.to(rgb)
    pixels[..., chosen.brightness] = table[pixels[..., chosen.brightness]]
    return chosen.back(pixels)


def shift_hue_and_saturation(rgb: Bytes, hue: int, saturation: int) -> Bytes:
    """(H, W, 3) with hue (in 255ths of a turn, cut to whole steps of 180) and saturation (clipped) shifted."""
    hsv = to_hsv(rgb).astype(np.int32)
    hsv[..., 0] = (hsv[..., 0] + int(hue / 255 * 180)) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] + saturation, 0, 255)
    return from_hsv(hsv.astype(np.uint8))
