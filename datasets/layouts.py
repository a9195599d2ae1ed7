"""The layout that MVTec AD began and most sets follow: train/good, test/<defect>, ground_truth/<defect>.

Masks are paired with images by name, never by position: the mask of `s.<ext>` is `s_mask.<ext>`, else `s.<ext>`, of any image
extension. The label comes from the folder, never from the mask. A missing mask is reported; it never becomes an empty one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from inpbench.datasets.listing import check_folder, folders, images, join, stem_key
from inpbench.harness.api import Finding, Report, Sample

MaskPolicy = Literal["required", "auto", "none"]  # auto: a category without a single mask is a category without masks


class Tree(NamedTuple):
    """Where one category lies and what its folders are called."""

    root: Path
    folder: str  # of the category, relative to the root; "" when the root is the category
    category: str
    normal: frozenset[str] = frozenset({"good"})  # names of folders of normal images, lower case
    masks: MaskPolicy = "required"
    defect: str | None = None  # one name for all defects, or None: the folder's
    mask_level: str = ""  # a folder between ground_truth and the defects (VisA's 2cls trees)


def is_category(path: Path) -> bool:
    """Whether the folder holds train/ or test/."""
    return (path / "train").is_dir() or (path / "test").is_dir()


def read_train(tree: Tree, report: Report, *, loose: bool = False, known: Sequence[str] = ()) -> list[Sample]:
    """Normal training images.

    loose: images may lie in train/ itself when it has no folder of normal images.
    known: folders of train/ that the data set has for another purpose, and that are not worth a warning.
    """
    train = join(tree.folder, "train")
    for place in (tree.folder, train, *(join(train, name) for name in sorted(tree.normal))):
        check_folder(tree.root, place, report)
    names = folders(tree.root / train)
    normal = [name for name in names if name.lower() in tree.normal]
    samples = []
    for name in normal:
        folder = join(train, name)
        samples += [Sample(join(folder, image), tree.category, "train", 0) for image in images(tree.root, folder, report)]
    for name in names:
        if name not in normal and name not in known and not _looks_like_image(name):
            report(Finding(join(train, name), "ignored", "training uses the folder of normal images only"))
    direct = images(tree.root, train, report)
    if direct and loose and not normal:
        samples += [Sample(join(train, image), tree.category, "train", 0) for image in direct]
    else:
        _report_loose(train, direct, report)
    return sorted(samples, key=lambda sample: sample.image)


def read_test(tree: Tree, report: Report) -> list[Sample]:
    """Test images of every folder of test/, with their masks."""
    test = join(tree.folder, "test")
    truth = join(tree.folder, "ground_truth", tree.mask_level)
    names = folders(tree.root / test)
    masked = folders(tree.root / truth) if tree.masks != "none" else []
    for place in (
        test,
        *(join(test, name) for name in sorted({*tree.normal, *masked})),
        *([truth] if tree.masks != "none" else []),
    ):
        check_folder(tree.root, place, report)
    defects = [name for name in names if name.lower() not in tree.normal and not _looks_like_image(name)]
    found = {name: _masks(tree, join(truth, name), report) for name in defects} if tree.masks != "none" else {}
    expected = tree.masks == "required" or any(found.values())
    samples = []
    for name in names:
        folder = join(test, name)
        if name in defects:
            defect = tree.defect or name
            for image in images(tree.root, folder, report):
                mask = pair(image, found.get(name, {}))
                if mask is None and expected:
                    wanted = join(truth, name, f"{Path(image).stem}_mask.png")
                    report(Finding(join(folder, image), "missing_mask", f"expected {wanted}"))
                path = join(truth, name, mask) if mask else None
                samples.append(Sample(join(folder, image), tree.category, "test", 1, path, defect))
        elif name.lower() in tree.normal:
            samples += [Sample(join(folder, image), tree.category, "test", 0) for image in images(tree.root, folder, report)]
        elif images(tree.root, folder, lambda finding: None):
            report(Finding(folder, "ignored", "a folder with the name of an image file"))
    _report_loose(test, images(tree.root, test, lambda finding: None), report)
    if tree.masks != "none":
        _report_stray_masks(tree, truth, found, samples, report)
    return sorted(samples, key=lambda sample: sample.image)


def pair(image: str, masks: dict[str, list[str]]) -> str | None:
    """The mask of an image by its stem: `s_mask` before `s`; among extensions the first by name."""
    stem = stem_key(image)
    for key in (f"{stem}_mask", stem):
        if key in masks:
            return masks[key][0]
    return None


def _masks(tree: Tree, folder: str, report: Report) -> dict[str, list[str]]:
    """Mask names of a folder by stem."""
    by_stem: dict[str, list[str]] = {}
    for name in images(tree.root, folder, report, unreadable="unreadable_mask"):
        by_stem.setdefault(stem_key(name), []).append(name)
    if not by_stem and folders(tree.root / folder):
        report(Finding(folder, "ignored", "a folder of masks per image (MVTec LOCO) is not read by this data set"))
    return by_stem


def _looks_like_image(name: str) -> bool:
    return Path(name).suffix.lower() in {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def _report_loose(folder: str, names: Sequence[str], report: Report) -> None:
    for name in names:
        report(Finding(join(folder, name), "ignored", "an image outside the folders that say what it shows"))


def _report_stray_masks(
    tree: Tree, truth: str, found: dict[str, dict[str, list[str]]], samples: Sequence[Sample], report: Report
) -> None:
    used = {sample.mask for sample in samples}
    for defect, masks in found.items():
        for name in sorted(name for names in masks.values() for name in names):
            path = join(truth, defect, name)
            if path not in used:
                report(Finding(path, "mask_without_image", "no test image has this stem"))
    for name in folders(tree.root / truth):
        if name not in found and any(images(tree.root, join(truth, name), lambda finding: None)):
            if name.lower() in tree.normal:
                report(Finding(join(truth, name), "ignored", "masks of normal images are not used"))
            else:
                report(Finding(join(truth, name), "mask_without_image", f"there is no folder test/{name} for these masks"))
