"""Changing the brightness of 8-bit RGB in six colour spaces, and hue and saturation, with OpenCV's 8-bit scales and roundings.

Hue counts 0 to 179, every other channel 0 to 255. YCrCb, YUV, HSV and HLS give OpenCV's bits; so does the way to Lab. Luv is read
from a table of 33^3 colours and interpolated, as OpenCV does. Known deviation: the ways back from Lab and Luv are computed, where
OpenCV rounds in between: up to 3 grey levels on a few per cent of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

_BITS = 14  # of the luma coefficients
_LUMA = (4899, 9617, 1868)  # of R, G, B
_SRGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])  # D65
_XYZ_TO_SRGB = np.linalg.inv(_SRGB_TO_XYZ)
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


# Fixed-point 1 / value and 1 / (6 difference), on the scales of saturation and hue; 0 for 0.
_PER_VALUE = np.concatenate(([0], np.rint((255 << 12) / np.arange(1, 256)))).astype(np.int32)
_PER_DIFFERENCE = np.concatenate(([0], np.rint((180 << 12) / (6.0 * np.arange(1, 256))))).astype(np.int32)


# --- hue -----------------------------------------------------------------------------------------------------------------------


def to_hsv(rgb: Bytes) -> Bytes:
    """(..., 3) RGB to hue 0 to 179, saturation, value."""
    red, green, blue = (rgb[..., i].astype(np.int32) for i in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    difference = value - np.minimum(np.minimum(red, green), blue)
    hue = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * difference, red - green + 4 * difference),
    )
    turned = _descale(hue * _PER_DIFFERENCE[difference], 12)
    return _bytes(turned + 180 * (turned < 0), _descale(difference * _PER_VALUE[value], 12), value)


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
    red, green, blue = (rgb[..., i] * np.float32(1.0 / 255.0) for i in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    total, difference = high + low, high - low
    grey = difference <= np.finfo(np.float32).eps
    divisor = np.where(total < 1.0, total, np.float32(2.0) - total)
    saturation = np.where(grey, 0, difference / np.where(grey, 1, divisor))
    degrees = np.float32(60.0) / np.where(grey, np.float32(1.0), difference)
    hue = np.where(
        high == red,
        (green - blue) * degrees,
        np.where(high == green, (blue - red) * degrees + np.float32(120.0), (red - green) * degrees + np.float32(240.0)),
    )
    hue = np.where(grey, 0, np.where(hue < 0, hue + np.float32(360.0), hue))
    return _bytes(hue * np.float32(0.5), total * np.float32(0.5 * 255), saturation * np.float32(255))


def _from_hls(hls: Bytes) -> Bytes:
    hue = hls[..., 0] * np.float32(6.0 / 180.0)
    light, saturation = (hls[..., i] * np.float32(1.0 / 255.0) for i in (1, 2))
    high = np.where(light <= 0.5, light * (1 + saturation), light + saturation - light * saturation)
    low, part = 2 * light - high, hue - np.floor(hue)
    return _sectors(hue, high, low, low + (high - low) * (1 - part), low + (high - low) * part)


# --- CIE -----------------------------------------------------------------------------------------------------------------------


def _decode(coded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear light of sRGB, both in [0, 1]."""
    light: NDArray[np.float64] = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    return light


def _from_xyz(xyz: NDArray[np.float64]) -> Bytes:
    light = np.clip(xyz @ _XYZ_TO_SRGB.T, 0.0, 1.0)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255.0
    return _bytes(*(coded[..., i] for i in range(3)))


# Lab forward in fixed point: linear light with 3 more bits, then the root of a ratio to white as 15 bits.
_LIGHT = np.rint(255 * 8 * _decode(np.arange(256) / 255.0)).astype(np.int32)
_RATIOS = np.rint(4096 * _SRGB_TO_XYZ / _WHITE[:, None]).astype(np.int32)
_RATIO = np.arange(256 * 12) / (255 * 8.0)
_ROOT = np.rint(32768 * np.where(_RATIO < _KNEE, 7.787 * _RATIO + 16.0 / 116.0, np.cbrt(_RATIO))).astype(np.int32)


def _to_lab(rgb: Bytes) -> Bytes:
    light = _LIGHT[rgb]
    x, y, z = (_ROOT[_descale(light @ row, 12)] for row in _RATIOS)
    middle, offset = 128 << 15, (16 * 255 * 32768 + 50) // 100
    return _bytes(_descale(296 * y - offset, 15), _descale(500 * (x - y) + middle, 15), _descale(200 * (y - z) + middle, 15))


def _cube(root: NDArray[np.float64]) -> NDArray[np.float64]:
    cube: NDArray[np.float64] = np.where(root > 6.0 / 29.0, root**3, (root - 16.0 / 116.0) / 7.787)
    return cube


def _from_lab(lab: Bytes) -> Bytes:
    y = (lab[..., 0] / 2.55 + 16.0) / 116.0
    x, z = y + (lab[..., 1] - 128.0) / 500.0, y - (lab[..., 2] - 128.0) / 200.0
    return _from_xyz(np.stack([_cube(x), _cube(y), _cube(z)], axis=-1) * _WHITE)


# u' and v' of white, and the ranges that OpenCV maps onto 0 to 255.
_WHITE_U, _WHITE_V = 4 * 0.950456 / (0.950456 + 15 + 3 * 1.088754), 9 / (0.950456 + 15 + 3 * 1.088754)
_U_LOW, _U_RANGE, _V_LOW, _V_RANGE = -134.0, 354.0, -140.0, 262.0


_CORNERS = 33  # of the table on each side: every 8 levels


@lru_cache(maxsize=1)
def _luv_table() -> Floats:
    """(33^3, 3): L, u, v of coded RGB 0, 1 / 32, ..., 1, each as a whole number of 14 bits over its range."""
    steps = _decode(np.arange(_CORNERS) / (_CORNERS - 1.0))
    xyz = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3) @ _SRGB_TO_XYZ.T
    light = np.where(xyz[..., 1] > _KNEE, 116.0 * np.cbrt(xyz[..., 1]) - 16.0, 903.3 * xyz[..., 1])
    divisor = np.maximum(xyz @ np.array([1.0, 15.0, 3.0]), np.finfo(np.float32).eps)
    u = 13.0 * light * (4.0 * xyz[..., 0] / divisor - _WHITE_U)
    v = 13.0 * light * (9.0 * xyz[..., 1] / divisor - _WHITE_V)
    table = np.rint(16384 * np.stack([light / 100.0, (u - _U_LOW) / _U_RANGE, (v - _V_LOW) / _V_RANGE], axis=-1))
    whole: Floats = table.astype(np.float32)
    return whole


def _to_luv(rgb: Bytes) -> Bytes:
    table, base, part = _luv_table(), (rgb >> 3).astype(np.int64), (rgb & 7) / np.float32(8.0)
    place = (base[..., 0] * _CORNERS + base[..., 1]) * _CORNERS + base[..., 2]
    total = np.zeros(rgb.shape, dtype=np.float32)  # exact: 14 bits times 9 bits of weight
    for red, green, blue in np.ndindex(2, 2, 2):
        weight = np.ones(rgb.shape[:-1], dtype=np.float32)
        for channel, up in enumerate((red, green, blue)):
            weight = weight * (part[..., channel] if up else 1 - part[..., channel])
        total += weight[..., None] * table.take(place + ((red * _CORNERS + green) * _CORNERS + blue), axis=0)
    pixels: Bytes = np.clip(np.floor(total / 64), 0, 255).astype(np.uint8)
    return pixels


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
