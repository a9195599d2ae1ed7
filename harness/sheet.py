"""A contact sheet of a data set: some images of each category and defect, with the mask's outline in red."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from inpbench.harness.api import Sample
from inpbench.harness.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from inpbench.harness.manifest import Manifest

TILE_PX = 160
CAPTION_PX = 14


def _tile(manifest: Manifest, sample: Sample) -> Image.Image:
    """One image with its caption; the outline is the mask minus its erosion."""
    import numpy as np
    from PIL import Image, ImageDraw
    from scipy import ndimage

    from inpbench.harness.images import read_image, read_mask

    picture = read_image(manifest.root / sample.image, sample.image)
    image = picture.resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR)
    if sample.mask is not None:
        mask = read_mask(manifest.root / sample.mask, (picture.height, picture.width), sample.mask)
        small = np.asarray(Image.fromarray(mask.channels.max(axis=0)).resize((TILE_PX, TILE_PX))) > 127
        outline = small & ~ndimage.binary_erosion(small, iterations=2)
        painted = np.array(image)
        painted[outline] = (255, 40, 40)
        image = Image.fromarray(painted)
    tile = Image.new("RGB", (TILE_PX, TILE_PX + CAPTION_PX), "white")
    tile.paste(image, (0, CAPTION_PX))
    ImageDraw.Draw(tile).text((2, 1), f"{sample.category}: {sample.split} {sample.defect}"[:28], fill="black")
    return tile


def contact_sheet(manifest: Manifest, count: int, out: Path) -> None:
    """Write a PNG: a row for each category, `count` images of each split and defect."""
    from PIL import Image

    groups: dict[str, dict[tuple[str, str], list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in manifest.samples:
        chosen = groups[sample.category][sample.split, sample.defect]
        if len(chosen) < count:
            chosen.append(sample)
    rows = [[_tile(manifest, sample) for chosen in group.values() for sample in chosen] for group in groups.values()]
    width = max(map(len, rows), default=0)
    sheet = Image.new("RGB", (max(1, width) * (TILE_PX + 4), len(rows) * (TILE_PX + CAPTION_PX + 4)), "white")
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet.paste(tile, (x * (TILE_PX + 4), y * (TILE_PX + CAPTION_PX + 4)))
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"The sheet cannot be written to {out}: {error}.", "Type: --out sheet.png") from error
