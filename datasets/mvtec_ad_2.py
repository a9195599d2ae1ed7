"""MVTec AD 2: 8 categories under several lightings; test_public is measured, the private test sets are the server's.

train/good is trained on, validation/good is listed as `val` and not used. The lighting (regular, underexposed, shift_1, ...) is the
sample's view, the scene's number its specimen. test_private and test_private_mixed have no labels: with `private=true` they are
listed with label -1, so that `bench data verify` reads them; no local metric counts them (benchmark.mvtec.com does).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from inpbench.datasets.layouts import pair
from inpbench.datasets.listing import find_base, folders, images, join, stem_key
from inpbench.datasets.prepared import not_there
from inpbench.harness.api import Counts, DatasetInfo, Finding, Report, Sample, Split

COUNTS = {  # train, test_public good, test_public bad
    "can": Counts(412, 72, 90),
    "fabric": Counts(387, 66, 90),
    "fruit_jelly": Counts(263, 20, 60),
    "rice": Counts(313, 42, 90),
    "sheet_metal": Counts(137, 24, 90),
    "vial": Counts(291, 35, 105),
    "wallplugs": Counts(293, 60, 90),
    "walnuts": Counts(432, 60, 90),
}
PRIVATE = ("test_private", "test_private_mixed")
NORMAL: tuple[tuple[str, Split], ...] = (("train", "train"), ("validation", "val"), ("test_public", "test"))


@dataclass(frozen=True, kw_only=True)
class MvtecAd2Params:
    """What is listed."""

    private: bool = False  # test_private and test_private_mixed, too: label -1, never measured here


def scan(root: Path, params: MvtecAd2Params, report: Report) -> list[Sample]:
    """The samples of the official categories on disk; `DataError` when there is none."""

    def fits(path: Path) -> bool:
        return any((path / name / "train").is_dir() or (path / name / "test_public").is_dir() for name in COUNTS)

    base = find_base(root, ("mvtec_ad_2", "MVTec_AD_2"), fits)
    if base is None:
        raise not_there(root, "MVTec AD 2", "mvtec_ad_2", "none of can, fabric, ... with train/good and test_public/ is there")
    order = {"train": 0, "val": 1, "test": 2}
    samples: list[Sample] = []
    for category in COUNTS:
        found = _category(root, join(base, category), category, params, report)
        samples += sorted(found, key=lambda sample: (order[sample.split], sample.image))
    return samples


def _sample(path: str, category: str, split: Split, label: int, mask: str | None = None, defect: str = "good") -> Sample:
    """`NNN_<lighting>.png`: the scene and its lighting."""
    parts = re.fullmatch(r"(\d+)_(.+)", Path(path).stem)
    scene, lighting = (f"{category}_{split}_{defect}_{parts[1]}", parts[2]) if parts else (None, None)
    return Sample(path, category, split, label, mask, defect, scene, lighting)


def _category(root: Path, folder: str, category: str, params: MvtecAd2Params, report: Report) -> list[Sample]:
    samples = []
    for name, split in NORMAL:
        normal = join(folder, name, "good")
        samples += [_sample(join(normal, image), category, split, 0) for image in images(root, normal, report)]
    public = join(folder, "test_public")
    truth = join(public, "ground_truth", "bad")
    masks: dict[str, list[str]] = {}
    for mask in images(root, truth, report, unreadable="unreadable_mask"):
        masks.setdefault(stem_key(mask), []).append(mask)
    used = set()
    for image in images(root, join(public, "bad"), report):
        found = pair(image, masks)
        if found is None:
            report(Finding(join(public, "bad", image), "missing_mask", f"expected {join(truth, Path(image).stem)}_mask.png"))
        used.add(found)
        samples.append(_sample(join(public, "bad", image), category, "test", 1, join(truth, found) if found else None, "bad"))
    for name in sorted({mask for group in masks.values() for mask in group} - used):
        report(Finding(join(truth, name), "mask_without_image", "no test image has this stem"))
    for name in folders(root / public):
        if name not in ("good", "bad", "ground_truth"):
            report(Finding(join(public, name), "ignored", "test_public holds good, bad and ground_truth"))
    for name in PRIVATE if params.private else ():
        private = join(folder, name)
        samples += [_sample(join(private, image), category, "test", -1, None, name) for image in images(root, private, report)]
    return samples


MVTEC_AD_2 = DatasetInfo(
    name="mvtec_ad_2",
    version=1,
    title="MVTec AD 2 (public test set)",
    scan="inpbench.datasets.mvtec_ad_2:scan",
    params=MvtecAd2Params,
    categories=tuple(COUNTS),
    counts=COUNTS,
    licence="CC BY-NC-SA 4.0",
    homepage="https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
    expected_tree="""\
<root>/<category>/train/good/000_regular.png, <root>/<category>/validation/good/000_regular.png
<root>/<category>/test_public/{good,bad}/000_<lighting>.png
<root>/<category>/test_public/ground_truth/bad/000_<lighting>_mask.png
<root>/<category>/{test_private,test_private_mixed}/*.png      (no labels: --set mvtec_ad_2.private=true lists them)""",
    obtain="fill in the form on the page, fetch mvtec_ad_2.tar.gz "
    "(sha256 c0ded99ef32bfc8e352d52beb44515e5b292b8598cb963aadfa91ca0763505e4) and unpack it",
)
