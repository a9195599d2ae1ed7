"""BTAD (BTech): three industrial products, 01 to 03, in the layout of MVTec AD with folders ok and ko (`layouts`).

Images and masks are .bmp or .png, masks have the image's name and hold 0/255 or 0/1. Eleven anomalous images have an empty mask as
published (and 8 more after the 448/392 crop): they count as anomalous, their pixels as normal.
"""

from __future__ import annotations

from pathlib import Path

from inpbench.datasets.layouts import Tree, is_category, read_test, read_train
from inpbench.datasets.listing import find_base, join
from inpbench.datasets.prepared import not_there
from inpbench.harness.api import Archive, Counts, DatasetInfo, NoParams, Report, Sample

COUNTS = {"01": Counts(400, 21, 49), "02": Counts(399, 30, 200), "03": Counts(1000, 400, 41)}
TOP = "BTech_Dataset_transformed"


def scan(root: Path, params: NoParams, report: Report) -> list[Sample]:
    """The samples of the official categories on disk; `DataError` when there is none."""
    base = find_base(root, (TOP, "BTAD", "btad"), lambda path: any(is_category(path / name) for name in COUNTS))
    if base is None:
        raise not_there(root, "BTAD", "btad", "none of 01, 02, 03 with train/ok and test/ko is there")
    trees = [Tree(root, join(base, name), name, normal=frozenset({"ok"})) for name in COUNTS]
    return [sample for tree in trees for sample in read_train(tree, report) + read_test(tree, report)]


BTAD = DatasetInfo(
    name="btad",
    version=1,
    title="BTAD (BTech)",
    scan="inpbench.datasets.btad:scan",
    categories=tuple(COUNTS),
    counts=COUNTS,
    licence="CC BY-NC-SA 4.0",
    homepage="https://avires.dimi.uniud.it/papers/btad/btad.zip",
    expected_tree=f"""\
<root>/{{01,02,03}}/train/ok/0000.bmp            (or <root>/{TOP}/01/...)
<root>/{{01,02,03}}/test/{{ok,ko}}/0000.bmp
<root>/{{01,02,03}}/ground_truth/ko/0000.png     (.bmp or .png)""",
    archives=(
        Archive(
            url="https://avires.dimi.uniud.it/papers/btad/btad.zip",
            file="btad.zip",
            sha256="461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
        ),
    ),
)
