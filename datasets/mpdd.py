"""MPDD: painted metal parts in 6 categories, in the layout of MVTec AD (`layouts`)."""

from __future__ import annotations

from pathlib import Path

from inpbench.datasets.layouts import Tree, is_category, read_test, read_train
from inpbench.datasets.listing import find_base, join
from inpbench.datasets.prepared import not_there
from inpbench.harness.api import Counts, DatasetInfo, NoParams, Report, Sample

COUNTS = {  # train, test normal, test anomalous
    "bracket_black": Counts(289, 32, 47),
    "bracket_brown": Counts(185, 26, 51),
    "bracket_white": Counts(110, 30, 30),
    "connector": Counts(128, 30, 14),
    "metal_plate": Counts(54, 26, 71),
    "tubes": Counts(122, 32, 69),
}


def scan(root: Path, params: NoParams, report: Report) -> list[Sample]:
    """The samples of the official categories on disk; `DataError` when there is none."""
    base = find_base(root, ("MPDD", "mpdd"), lambda path: any(is_category(path / name) for name in COUNTS))
    if base is None:
        raise not_there(root, "MPDD", "mpdd", "none of bracket_black, bracket_brown, ... with train/ and test/ is there")
    trees = [Tree(root, join(base, category), category) for category in COUNTS]
    return [sample for tree in trees for sample in read_train(tree, report) + read_test(tree, report)]


MPDD = DatasetInfo(
    name="mpdd",
    version=1,
    title="MPDD (metal parts)",
    scan="inpbench.datasets.mpdd:scan",
    categories=tuple(COUNTS),
    counts=COUNTS,
    licence="CC BY-NC-SA 4.0",
    homepage="https://github.com/stepanje/MPDD",
    expected_tree="""\
<root>/<category>/train/good/000.png           (or <root>/MPDD/<category>/...)
<root>/<category>/test/{good,<defect>}/000.png
<root>/<category>/ground_truth/<defect>/000_mask.png""",
    obtain="the link on https://github.com/stepanje/MPDD opens a SharePoint folder: fetch MPDD.zip by hand and unpack it",
)
