"""Anomaly maps as pictures: back on the original image, in colours of a stated scale, with a legend.

The bench's map covers the centre crop of the resized image; `place` undoes both, so that aspect ratio and position are those of
the file. What lies outside the crop was never seen: NaN in the raw map, hatched in the picture. The scale is given, never taken
from the image: a normal picture stays dark. Colours are RGB.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from inpbench.harness.images import crop_box, resized_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.api import Preprocess

# Dark blue, violet, red, orange, pale yellow: even steps in lightness, readable in grey and by the colour-blind.
COLOURS = ((8, 10, 60), (84, 15, 109), (187, 55, 84), (249, 142, 9), (252, 255, 164))
CONTOUR = (0, 255, 255)  # of the region above the threshold: a colour that the scale does not have
LEGEND_PX = 96  # width of the legend
SHORTEST_PX = 160  # height that a legend needs to be read


def place(amap: NDArray[np.float32], preprocess: Preprocess, size: tuple[int, int]) -> NDArray[np.float32]:
    """A map of the crop (h, w) on the grid of the original image: (H, W) = `size`, NaN outside the crop."""
    height, width = resized_size(size, preprocess)
    top, bottom, left, right = crop_box((height, width), preprocess.crop)
    rows = round(top * size[0] / height), max(round(bottom * size[0] / height), round(top * size[0] / height) + 1)
    columns = round(left * size[1] / width), max(round(right * size[1] / width), round(left * size[1] / width) + 1)
    inside = Image.fromarray(np.asarray(amap, dtype=np.float32)).resize(
        (columns[1] - columns[0], rows[1] - rows[0]), Image.Resampling.BILINEAR
    )
    placed = np.full(size, np.nan, dtype=np.float32)
    placed[rows[0] : rows[1], columns[0] : columns[1]] = np.asarray(inside)[: size[0] - rows[0], : size[1] - columns[0]]
    return placed


def colours(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Values of any shape as RGB (..., 3); below `low` and above `high` are clipped, NaN is black."""
    share = np.clip((np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-12), 0.0, 1.0) * (len(COLOURS) - 1)
    points = np.arange(len(COLOURS))
    table = np.asarray(COLOURS, dtype=np.float64)
    rgb = np.stack([np.interp(share, points, table[:, channel]) for channel in range(3)], axis=-1)
    rgb[np.isnan(values)] = 0.0
    return np.asarray(np.round(rgb), dtype=np.uint8)


def overlay(
    image: Image.Image, placed: NDArray[np.float32], high: float, threshold: float | None = None, strength: float = 0.55
) -> Image.Image:
    """The map over the image, with a contour around what is above the threshold and a legend at the right.

    image: RGB of (H, W); placed: (H, W) of `place`; high: the value at the top of the scale, whose foot is 0.
    """
    photo = np.asarray(image.convert("RGB"), dtype=np.float64)
    assert photo.shape[:2] == placed.shape, "the map is placed on the image's grid"
    unseen = np.isnan(placed)
    mixed = (1.0 - strength) * photo + strength * colours(placed, 0.0, high)
    stripes = (np.add.outer(np.arange(photo.shape[0]), np.arange(photo.shape[1])) // 4) % 2 == 0
    mixed[unseen] = 0.35 * photo[unseen] + 0.65 * 128.0 * stripes[unseen][:, None]
    if threshold is not None:
        mixed[_edge(np.nan_to_num(placed, nan=-np.inf) >= threshold)] = CONTOUR
    drawn = Image.fromarray(np.clip(np.round(mixed), 0, 255).astype(np.uint8))
    return _beside(drawn, legend(max(drawn.height, SHORTEST_PX), high, threshold))


def legend(height: int, high: float, threshold: float | None = None) -> Image.Image:
    """The scale as a bar (height, LEGEND_PX) with its numbers; the threshold is the line across it."""
    picture = Image.new("RGB", (LEGEND_PX, height), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=12)
    first, last = 10, height - 11
    bar = colours(np.linspace(high, 0.0, last - first + 1)[:, None].repeat(18, axis=1), 0.0, high)
    picture.paste(Image.fromarray(bar), (10, first))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        row = last - round(share * (last - first))
        draw.line((28, row, 32, row), fill="black")
        draw.text((35, row - 7), f"{share * high:.3g}", fill="black", font=font)
    if threshold is not None:
        row = last - round(min(max(threshold / max(high, 1e-12), 0.0), 1.0) * (last - first))
        draw.line((4, row, 32, row), fill=CONTOUR, width=3)
    return picture


def tiff_bytes(placed: NDArray[np.float32]) -> bytes:
    """The raw map as a 32-bit float TIFF."""
    buffer = io.BytesIO()
    Image.fromarray(placed).save(buffer, format="TIFF")
    return buffer.getvalue()


def _edge(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The border of a region, 2 pixels wide inwards: pixels with a neighbour outside it (beyond the image counts as inside)."""
    core = region
    for _ in range(2):
        padded = np.pad(core, 1, mode="edge")
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~core


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    joined = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    return joined
