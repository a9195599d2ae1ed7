"""Any tree in the manner of MVTec AD, with or without masks; the categories are what lies on disk.

The root holds categories, or is itself one (then the category has the root's name). Normal images lie in a folder good, ok or
normal, or directly in train/. Every other folder of test/ is a kind of defect. A category whose ground_truth holds no mask at all
is tested at image level only; where it holds some, a missing one is an error. BTAD (ok/ko) and MPDD are read as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inpbench.datasets.layouts import MaskPolicy, Tree, is_category, read_test, read_train
from inpbench.datasets.listing import find_base, folders, join
from inpbench.harness.api import DatasetInfo, Finding, Report, Sample
from inpbench.harness.errors import DataError

NORMAL = frozenset({"good", "ok", "normal"})


@dataclass(frozen=True, kw_only=True)
class FolderParams:
    """How the tree is read."""

    masks: MaskPolicy = "auto"  # auto: masks where ground_truth has some; required: everywhere; none: image level only


def scan(root: Path, params: FolderParams, report: Report) -> list[Sample]:
    """The samples of every category below the root; `DataError` when there is none."""
    if is_category(root):
        return _read(root, "", root.resolve().name, params, report)
    base = find_base(root, (), lambda path: any(is_category(path / name) for name in folders(path)))
    if base is None:
        there = ", ".join(folders(root)[:8]) or "no folder"
        raise DataError(
            f"{root} holds no category: a folder with train/ and test/ inside. Found: {there}.",
            "Type: bench data show folder, for the layout that is expected.",
        )
    samples: list[Sample] = []
    for name in folders(root / base):
        folder = join(base, name)
        found = _read(root, folder, name, params, report) if is_category(root / folder) else []
        if not found:
            report(Finding(folder, "ignored", "no image in train/ or test/: not a category"))
        samples += found
    if not samples:
        raise DataError(f"{root} holds categories, but not a single image.", "Type: bench data show folder, for the layout.")
    return samples


def _read(root: Path, folder: str, category: str, params: FolderParams, report: Report) -> list[Sample]:
    tree = Tree(root, folder, category, normal=NORMAL, masks=params.masks)
    return read_train(tree, report, loose=True) + read_test(tree, report)


FOLDER = DatasetInfo(
    name="folder",
    version=1,
    title="A folder in the layout of MVTec AD",
    scan="inpbench.datasets.folder:scan",
    params=FolderParams,
    licence="the user's own",
    expected_tree="""\
<root>/<category>/train/good/*.png             (or train/ok, train/normal, train/*.png)
<root>/<category>/test/good/*.png
<root>/<category>/test/<defect>/NAME.png
<root>/<category>/ground_truth/<defect>/NAME_mask.png    (or NAME.png; optional)
.png .jpg .jpeg .bmp .tif .tiff .webp .ppm .pgm in any case; the root may itself be one category""",
)
