"""One picture a category: a row an image; the input, its mask, the map, the map over the input, and what the method explains.

All tiles show what the method saw: the image at its crop, not in its original aspect ratio. The colour scale is that of the
category, because a category is the unit that metrics compare: from the median of its maps to the highest mean of a map's top 1 %.
Each part that a method explains (`harness.api.Explaining`) has a scale of its own, the same down its column.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from inpbench.harness import colours
from inpbench.harness.atomic import write_bytes
from inpbench.harness.images import image_at_crop, mask_at_crop, read_for
from inpbench.harness.loading import Normaliser, stored_mask
from inpbench.harness.overlays import GREEN, INK, PAPER, RED, draw_legend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.api import Method, Preprocess, Sample
    from inpbench.harness.manifest import Manifest
    from inpbench.harness.plan import Cell

    Pixels = NDArray[np.uint8]

TILE_PX = 168  # longer side of a tile
GAP_PX = 6
NAME_PX = 34  # caption of a row, two lines
HEAD_PX = 78  # title, legend and column names
LEAST_CONTRAST = 0.05  # a part whose values span less than this share of its kind's stays dull, lest noise be enlarged


class _Tile(NamedTuple):
    """A picture of the sheet with the name of its column."""

    column: str
    pixels: Pixels  # (H, W, 3)
    note: str = ""  # written on the picture


def draw_sheet(
    cell: Cell,
    category: str,
    method: Method,
    samples: dict[str, list[Any]],
    maps: NDArray[np.float32],
    chosen: dict[int, str],
    scale: colours.Scale,
    out: Path,
    device: torch.device,
) -> None:
    """maps: (N, 256, 256) of all test images of the category; chosen: the ones to show and why. Writes a PNG."""
    assert cell.manifest is not None
    preprocess: Preprocess = cell.params.preprocess
    by_name = {sample.image: sample for sample in cell.manifest.samples}
    names = {i: samples["image"][i] for i in chosen}
    inputs = {i: image_at_crop(read_for(cell.manifest.root / name, name, preprocess), preprocess) for i, name in names.items()}
    parts = _explained(method, inputs, preprocess, device)
    rows = []
    for i, why in chosen.items():
        sample = by_name[samples["image"][i]]
        tiles = _tiles(cell.manifest, sample, inputs[i], maps[i], scale, preprocess) + parts.get(i, [])
        anomalous = samples["label"][i] == 1
        text = f"{sample.defect if anomalous else 'normal'}   score {samples['score'][i]:.4g}   ({why})"
        rows.append((text, sample.image, RED if anomalous else GREEN, tiles))
    sheet = _compose(f"{cell.label} on {cell.dataset.name} {category}", rows, scale)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_bytes(out, buffer.getvalue())


def _tiles(
    manifest: Manifest, sample: Sample, pixels: Pixels, amap: NDArray[np.float32], scale: colours.Scale, preprocess: Preprocess
) -> list[_Tile]:
    """Input, mask, map and overlay; pixels: (3, H, W)."""
    image = pixels.transpose(1, 2, 0)
    mask = np.zeros(image.shape[:2], np.float32)
    if sample.mask is not None:
        mask = mask_at_crop(stored_mask(manifest, sample), preprocess).max(axis=0)
    values = _enlarged(amap, (image.shape[0], image.shape[1]))
    grey = np.repeat((mask[..., None] * 255).astype(np.uint8), 3, axis=2)
    note = ""
    if sample.label == 1 and not mask.any():
        note = "no mask" if sample.mask is None else "outside the crop, or empty"
    return [
        _Tile("input", image),
        _Tile("mask", grey, note),
        _Tile("map", colours.paint(values, scale)),
        _Tile("overlay", colours.overlay(image, values, scale)),
    ]


def _enlarged(amap: NDArray[np.float32], size: tuple[int, int], nearest: bool = False) -> NDArray[np.float32]:
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(amap, dtype=np.float32)).resize((size[1], size[0]), how))


def _explained(method: Method, inputs: dict[int, Pixels], preprocess: Preprocess, device: torch.device) -> dict[int, list[_Tile]]:
    """The tiles of what the method explains, for each image; none where it explains nothing."""
    explain = getattr(method, "explain", None)
    if explain is None or not inputs:
        return {}
    normalise = Normaliser(preprocess, device, torch.float32)
    with torch.inference_mode():
        batches = [explain(normalise(pixels[None])) for pixels in inputs.values()]
    parts = {name: torch.cat([batch[name] for batch in batches]).float().cpu().numpy() for name in batches[0]}  # (B, M, h, w)
    out: dict[int, list[_Tile]] = {i: [] for i in inputs}
    for name, values in parts.items():
        least = max(LEAST_CONTRAST * float(np.ptp(values)), 1e-9)
        for m in range(values.shape[1]):
            low = float(values[:, m].min())
            scale = colours.make_scale(low, max(float(values[:, m].max()), low + least))
            for row, i in enumerate(inputs):
                column = name if values.shape[1] == 1 else f"{name} {m + 1}"
                out[i].append(_Tile(column, colours.paint(_enlarged(values[row, m], preprocess.crop, nearest=True), scale)))
    return out


def _compose(title: str, rows: list[tuple[str, str, tuple[int, int, int], list[_Tile]]], scale: colours.Scale) -> Image.Image:
    """The sheet: a head with title, legend and column names, then a row of tiles below its caption for each image."""
    height, width = rows[0][3][0].pixels.shape[:2]
    factor = TILE_PX / max(height, width)
    tile = max(1, round(width * factor)), max(1, round(height * factor))
    step = max(tile[0], 90) + GAP_PX
    columns = max(len(tiles) for *_, tiles in rows)
    sheet = Image.new("RGB", (max(columns * step, 640) + GAP_PX, HEAD_PX + len(rows) * (tile[1] + NAME_PX)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX, 4), title, fill=INK, font_size=16)
    draw_legend(sheet, (GAP_PX, 28), 160, scale)
    draw.text((GAP_PX + 176, 27), "map value, one scale for the category", fill=INK, font_size=12)
    for x, part in enumerate(rows[0][3]):
        draw.text((GAP_PX + x * step, HEAD_PX - 18), part.column, fill=INK, font_size=13)
    for y, (text, name, ink, tiles) in enumerate(rows):
        top = HEAD_PX + y * (tile[1] + NAME_PX)
        draw.text((GAP_PX, top), text, fill=ink, font_size=13)
        draw.text((GAP_PX, top + 15), name, fill=INK, font_size=11)
        for x, part in enumerate(tiles):
            sheet.paste(
                Image.fromarray(part.pixels).resize(tile, Image.Resampling.BILINEAR), (GAP_PX + x * step, top + NAME_PX - 4)
            )
            draw.text((GAP_PX + x * step + 6, top + NAME_PX), part.note, fill=PAPER, font_size=11)
    return sheet
