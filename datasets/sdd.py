"""KolektorSDD ("SDD"): 50 electrical commutators in 399 grey images, cut into thirds as InCTRL's authors do.

`prepare` cuts each image along its height at floor(L/3) and floor(2L/3); a third is anomalous where its piece of the label holds a
defective pixel, otherwise normal, also in an image with a defect elsewhere. Normal thirds are split by `splits`. Known deviations:
items and files are sorted, the authors take the order of the file system (same sizes, other members); a label pixel counts by the
bench's mask rule (above 127), theirs is "not zero", which is the same for 0/255 labels. The release with boxes has other masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from inpbench.datasets.listing import find_base, folders, images, join, stem_key
from inpbench.datasets.prepared import as_mask, expected_tree, not_there, read_prepared, to_prepare
from inpbench.datasets.splits import tested
from inpbench.harness.api import Archive, Counts, DatasetInfo, Decoder, Finding, NoParams, Piece, Report, Sample

CATEGORY = "sdd"
LABEL = "_label"


class Part(NamedTuple):
    """One published image with its label."""

    image: str
    label: str
    name: str  # <item>_<Part>


def _fits(path: Path) -> bool:
    return any(name.lower().startswith("kos") for name in folders(path))


def scan(root: Path, params: NoParams, report: Report) -> list[Sample]:
    """The thirds of a prepared tree; `DataError` for the published one, which has to be prepared, and for any other."""
    samples = read_prepared(root, CATEGORY, ("sdd", "SDD", "KolektorSDD"), "required", report)
    if samples is None:
        if find_base(root, ("KolektorSDD",), _fits) is not None:
            raise to_prepare(root, "KolektorSDD", "sdd")
        raise not_there(root, "KolektorSDD", "sdd", "neither train/good and test/ nor kos01/Part0.jpg is there")
    return samples


def _parts(raw: Path, report: Report) -> Iterator[Part]:
    base = find_base(raw, ("KolektorSDD",), _fits)
    if base is None:
        raise not_there(raw, "KolektorSDD", "sdd", "the published kos01/Part0.jpg, kos01/Part0_label.bmp are not there")
    for item in (name for name in folders(raw / base) if name.lower().startswith("kos")):
        folder = join(base, item)
        names = images(raw, folder, report)
        labels = {stem_key(name): name for name in names if stem_key(name).endswith(LABEL)}
        for name in (name for name in names if name not in labels.values()):
            label = labels.get(stem_key(name) + LABEL)
            if label is None:
                report(Finding(join(folder, name), "missing_mask", f"expected {join(folder, Path(name).stem)}{LABEL}.bmp"))
            else:
                yield Part(join(folder, name), join(folder, label), f"{item}_{Path(name).stem}")


def thirds(length: int) -> list[tuple[int, int]]:
    """The rows of the three pieces: cut at floor(L/3) and floor(2L/3)."""
    return list(pairwise((0, length // 3, 2 * length // 3, length)))


def prepare(raw: Path, params: NoParams, read: Decoder, report: Report) -> Iterator[Piece]:
    """Thirds as PNG files, masks for the anomalous ones."""
    parts = list(_parts(raw, report))
    defective = {}
    for part in parts:
        label = read.mask(part.label, part.image)
        for i, (top, bottom) in enumerate(thirds(label.shape[0])):
            defective[f"{part.name}_{i}"] = bool(label[top:bottom].any())
    test = tested([name for name, bad in defective.items() if not bad])
    for part in parts:
        image, label = read.image(part.image), read.mask(part.label, part.image)
        for i, (top, bottom) in enumerate(thirds(image.shape[0])):
            name = f"{part.name}_{i}"
            kind = "test/defect" if defective[name] else "test/good" if name in test else "train/good"
            yield Piece(f"{kind}/{name}.png", image[top:bottom])
            if defective[name]:
                yield Piece(f"ground_truth/defect/{name}_mask.png", as_mask(label[top:bottom]))


SDD = DatasetInfo(
    name="sdd",
    version=1,
    title="KolektorSDD in thirds",
    scan="inpbench.datasets.sdd:scan",
    categories=(CATEGORY,),
    counts={CATEGORY: Counts(857, 286, 54)},
    licence="CC BY-NC-SA 4.0",
    homepage="https://www.vicos.si/resources/kolektorsdd/",
    expected_tree=expected_tree(
        "sdd", True, "for bench data prepare: kos01/Part0.jpg, kos01/Part0_label.bmp, ... as KolektorSDD.zip unpacks"
    ),
    prepare="inpbench.datasets.sdd:prepare",
    archives=(
        Archive(
            url="https://go.vicos.si/kolektorsdd",
            file="KolektorSDD.zip",
            sha256="65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
        ),
    ),
)
