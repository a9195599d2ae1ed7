"""AITEX: fabrics, strips of 4096 x 256 pixels, cut into tiles of 256 columns as InCTRL's authors do.

`prepare` makes 16 tiles of each normal strip, split by `splits`, and keeps the tiles of a defective strip whose mask is not empty
(its other tiles are not used as normal). Masks `_mask1`, `_mask2` of one strip are united; a strip without a mask (0100_025_08) or
with an empty one (0106_010_03) is left out, because none of its tiles can be labelled. Known deviations: names are sorted, the
authors take the order of the file system (same sizes, other members), and their script stops at numbered and missing masks; the
published 183 anomalous tiles were not re-counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inpbench.datasets.listing import find_base, folders, images, join
from inpbench.datasets.prepared import as_mask, expected_tree, not_there, read_prepared, to_prepare
from inpbench.datasets.splits import tested
from inpbench.harness.api import Counts, DatasetInfo, Decoder, Finding, NoParams, Piece, Report, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CATEGORY = "aitex"
TILE = 256  # columns
NORMAL_TILES = 16
DEFECTS = {
    "002": "Broken_end",
    "006": "Broken_yarn",
    "010": "Broken_pick",
    "016": "Weft_curling",
    "019": "Fuzzyball",
    "022": "Cut_selvage",
    "023": "Crease",
    "025": "Warp_ball",
    "027": "Knots",
    "029": "Contamination",
    "030": "Nep",
    "036": "Weft_crack",
}


class Strip(NamedTuple):
    """One published image. Normal: `masks` is empty and `defect` is good."""

    image: str
    name: str
    masks: tuple[str, ...] = ()
    defect: str = "good"


def _fits(path: Path) -> bool:
    return (path / "NODefect_images").is_dir() and (path / "Defect_images").is_dir()


def scan(root: Path, params: NoParams, report: Report) -> list[Sample]:
    """The tiles of a prepared tree; `DataError` for the published one, which has to be prepared, and for any other."""
    samples = read_prepared(root, CATEGORY, ("aitex", "AITEX"), "required", report)
    if samples is None:
        if find_base(root, ("AITEX", "aitex"), _fits) is not None:
            raise to_prepare(root, "AITEX", "aitex")
        raise not_there(root, "AITEX", "aitex", "neither train/good and test/ nor NODefect_images is there")
    return samples


def _folder(raw: Path, base: str, name: str) -> str:
    """Defect_images, or Defect_images/Defect_images, as some unpack it."""
    doubled = join(base, name, name)
    return doubled if (raw / doubled).is_dir() else join(base, name)


def _normal(raw: Path, base: str, report: Report) -> Iterator[Strip]:
    top = _folder(raw, base, "NODefect_images")
    for fabric in folders(raw / top):
        for name in images(raw, join(top, fabric), report):
            yield Strip(join(top, fabric, name), f"{fabric}_{Path(name).stem}")


def _defective(raw: Path, base: str, report: Report) -> Iterator[Strip]:
    top, truth = _folder(raw, base, "Defect_images"), _folder(raw, base, "Mask_images")
    masks: dict[str, list[str]] = {}
    for name in images(raw, truth, report, unreadable="unreadable_mask"):
        masks.setdefault(re.sub(r"_mask\d*$", "", Path(name).stem), []).append(join(truth, name))
    for name in images(raw, top, report):
        path, stem = join(top, name), Path(name).stem
        code = re.match(r"\d+_(\d+)_", stem)
        if code is not None and not int(code[1]):
            report(Finding(path, "ignored", "its code says that it has no defect"))
        elif code is None or code[1] not in DEFECTS:
            report(Finding(path, "bad_entry", f"expected NNNN_CODE_FF with a code of {', '.join(DEFECTS)}"))
        elif stem not in masks:
            report(Finding(path, "ignored", "no mask: none of its tiles can be labelled"))
        else:
            yield Strip(path, stem, tuple(masks[stem]), DEFECTS[code[1]])


def _union(strip: Strip, read: Decoder) -> NDArray[np.bool_]:
    """(H, W): the defective pixels of all masks of a strip."""
    found = read.mask(strip.masks[0], strip.image)
    for mask in strip.masks[1:]:
        found = found | read.mask(mask, strip.image)
    return found


def prepare(raw: Path, params: NoParams, read: Decoder, report: Report) -> Iterator[Piece]:
    """Tiles as PNG files, masks for the anomalous ones."""
    base = find_base(raw, ("AITEX", "aitex"), _fits)
    if base is None:
        raise not_there(raw, "AITEX", "aitex", "the published Defect_images, Mask_images and NODefect_images are not there")
    normal = list(_normal(raw, base, report))
    widths = {strip.name: read.size(strip.image)[1] for strip in normal}
    for strip in normal:
        if widths[strip.name] < NORMAL_TILES * TILE:
            report(Finding(strip.image, "ignored", f"{widths[strip.name]} columns: fewer than {NORMAL_TILES} whole tiles"))
    counts = {name: min(NORMAL_TILES, width // TILE) for name, width in widths.items()}
    test = tested([f"{strip.name}_{i}" for strip in normal for i in range(counts[strip.name])])
    for strip in normal:
        image = read.image(strip.image)
        for i in range(counts[strip.name]):
            name = f"{strip.name}_{i}"
            yield Piece(f"{'test' if name in test else 'train'}/good/{name}.png", image[:, i * TILE : (i + 1) * TILE])
    for strip in _defective(raw, base, report):
        image, mask = read.image(strip.image), _union(strip, read)
        if not mask.any():
            report(Finding(strip.image, "ignored", "an empty mask: none of its tiles can be labelled"))
        for i, left in enumerate(range(0, image.shape[1], TILE)):
            columns = slice(left, left + TILE)
            if mask[:, columns].any():
                yield Piece(f"test/{strip.defect}/{strip.name}_{i}.png", image[:, columns])
                yield Piece(f"ground_truth/{strip.defect}/{strip.name}_{i}_mask.png", as_mask(mask[:, columns]))


AITEX = DatasetInfo(
    name="aitex",
    version=1,
    title="AITEX in tiles",
    scan="inpbench.datasets.aitex:scan",
    categories=(CATEGORY,),
    textures=frozenset({CATEGORY}),
    counts={CATEGORY: Counts(1692, 564, 183)},
    licence="see the page",
    homepage="https://www.aitex.es/afid/",
    expected_tree=expected_tree(
        "aitex",
        True,
        "for bench data prepare: Defect_images/*.png, Mask_images/*_mask.png, NODefect_images/<fabric>/*.png",
    ),
    prepare="inpbench.datasets.aitex:prepare",
    obtain="three archives on the page, Defect_images.7z, Mask_images.7z and NODefect_images.7z: unpack them into one folder",
)
