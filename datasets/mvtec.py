"""MVTec AD: 15 categories, 73 kinds of defects, the tree <root>/<category>/{train/good, test/<defect>, ground_truth/<defect>}.

The archive's own layout, lower-case .png, masks `<stem>_mask.png`. Folders that are not official categories are passed over with
a warning, so that a folder of one's own beside them does not change the mean; trees of other sets are read by `folder`.
"""

from __future__ import annotations

from pathlib import Path

from inpbench.datasets.layouts import Tree, is_category, read_test, read_train
from inpbench.datasets.listing import find_base, folders, join
from inpbench.harness.api import Counts, DatasetInfo, Finding, NoParams, Report, Sample
from inpbench.harness.errors import DataError

COUNTS = {  # train, test normal, test anomalous; in the order that the methods' authors train in
    "carpet": Counts(280, 28, 89),
    "grid": Counts(264, 21, 57),
    "leather": Counts(245, 32, 92),
    "tile": Counts(230, 33, 84),
    "wood": Counts(247, 19, 60),
    "bottle": Counts(209, 20, 63),
    "cable": Counts(224, 58, 92),
    "capsule": Counts(219, 23, 109),
    "hazelnut": Counts(391, 40, 70),
    "metal_nut": Counts(220, 22, 93),
    "pill": Counts(267, 26, 141),
    "screw": Counts(320, 41, 119),
    "toothbrush": Counts(60, 12, 30),
    "transistor": Counts(213, 60, 40),
    "zipper": Counts(240, 32, 119),
}
CATEGORIES = tuple(COUNTS)


def scan(root: Path, params: NoParams, report: Report) -> list[Sample]:
    """The samples of the official categories on disk; `DataError` when there is none."""

    def fits(path: Path) -> bool:
        return any(is_category(path / name) for name in CATEGORIES)

    base = find_base(root, ("mvtec_anomaly_detection", "mvtec_ad", "mvtec", "MVTec-AD", "MVTec"), fits)
    if base is None:
        raise DataError(
            f"{root} holds none of the 15 categories of MVTec AD (carpet, grid, ..., each with train/ and test/).",
            f"Type: --dataset folder --data-root {root} for a tree of your own in this layout.",
        )
    samples: list[Sample] = []
    for name in folders(root / base):
        if name not in CATEGORIES and is_category(root / base / name):
            report(Finding(join(base, name), "ignored", "not a category of MVTec AD; read such trees with --dataset folder"))
    for category in CATEGORIES:
        tree = Tree(root, join(base, category), category)
        samples += read_train(tree, report) + read_test(tree, report)
    return samples


MVTEC_AD = DatasetInfo(
    name="mvtec_ad",
    version=1,
    title="MVTec AD",
    scan="inpbench.datasets.mvtec:scan",
    categories=CATEGORIES,
    textures=frozenset({"carpet", "grid", "leather", "tile", "wood"}),
    counts=COUNTS,
    licence="CC BY-NC-SA 4.0",
    homepage="https://www.mvtec.com/company/research/datasets/mvtec-ad",
    expected_tree="""\
<root>/<category>/train/good/000.png
<root>/<category>/test/good/000.png
<root>/<category>/test/<defect>/000.png
<root>/<category>/ground_truth/<defect>/000_mask.png""",
    obtain="fill in the form on the page, fetch mvtec_anomaly_detection.tar.xz "
    "(sha256 cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d) and unpack it",
)
