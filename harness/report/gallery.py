"""The same test images as every method saw them: input with the outline of its mask, and each method's map over it.

Which images: the anomalous one that most methods rank low, the normal one that most rank high, the clearest anomalous one, and the
one on which methods differ most, all by the rank of an image's score within its category. Colours run, for each method, from the
median of its maps to the highest mean of a map's hottest 1 %: one scale a method and category, never one an image.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inpbench.harness.colours import make_scale, overlay

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.kept_maps import KeptMaps

QUALITY = 82  # of the JPEG pictures
OUTLINE = np.array((0, 230, 118), dtype=np.uint8)


def choose(scores: Sequence[Sequence[float]], labels: Sequence[int], most: int) -> dict[int, str]:
    """Position of each chosen image -> why. scores: (methods, N) of the same images; most: how many at most."""
    ranked = np.array([np.argsort(np.argsort(row, kind="stable"), kind="stable") for row in scores], dtype=np.float64)
    mean, spread = ranked.mean(axis=0), ranked.max(axis=0) - ranked.min(axis=0)
    anomalous, normal = (np.flatnonzero(np.asarray(labels) == label) for label in (1, 0))
    wanted: list[tuple[NDArray[Any], str]] = []
    if anomalous.size:
        wanted.append((anomalous[np.argsort(mean[anomalous], kind="stable")], "missed: ranked low by most"))
    if normal.size:
        wanted.append((normal[np.argsort(-mean[normal], kind="stable")], "false alarm: ranked high by most"))
    if anomalous.size:
        wanted.append((anomalous[np.argsort(-mean[anomalous], kind="stable")], "clear: ranked high by most"))
    if len(scores) > 1:
        wanted.append((np.argsort(-spread, kind="stable"), "disputed: methods rank it most differently"))
    chosen: dict[int, str] = {}
    for places, why in wanted[:most]:
        free = next((int(place) for place in places if int(place) not in chosen), None)
        if free is not None:
            chosen[free] = why
    return chosen


def input_picture(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> str:
    """The input (h, w, 3) with the outline of its mask (H, W), as a data URI."""
    inside = _resized(mask, picture.shape[:2])
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & inside
    outlined = picture.copy()
    outlined[inside & ~core] = OUTLINE
    return _data_uri(outlined)


def map_picture(picture: NDArray[np.uint8], amap: NDArray[Any], kept: KeptMaps) -> str:
    """The map (H, W) of one image over its input (h, w, 3), on the scale of its category, as a data URI."""
    step = max(1, len(kept.maps) // 64)
    top = max(1, kept.maps[0].size // 100)
    some = np.asarray(kept.maps[::step])
    high = max(float(np.sort(m, axis=None)[-top:].mean()) for m in some)
    return _data_uri(overlay(picture, _resized(amap, picture.shape[:2]), make_scale(float(np.median(some)), high)))


def _resized(values: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """Nearest pixel: maps are smooth at a picture's size, and a mask stays a mask."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, values.shape, strict=True))
    resized: NDArray[Any] = values[rows][:, columns]
    return resized


def _data_uri(picture: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(
        buffer, "JPEG", quality=QUALITY, subsampling=0
    )  # full colour: the outline is one pixel wide
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
