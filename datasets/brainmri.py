"""BrainMRI: 98 scans without and 155 with a tumour, image level only (there are no masks).

The published folders no/ and yes/ are read as they are: a quarter of the sorted names of no/ is tested (`splits`), all of yes/ is
anomalous. So is a tree that `bench data prepare` or InCTRL's script made. Known deviation: the authors split in the order of the
file system; sizes agree, members differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from inpbench.datasets.listing import find_base, images, join
from inpbench.datasets.prepared import expected_tree, not_there, pieces, read_prepared
from inpbench.datasets.splits import tested
from inpbench.harness.api import Counts, DatasetInfo, Decoder, NoParams, Piece, Report, Sample

CATEGORY = "brainmri"


def scan(root: Path, params: NoParams, report: Report) -> list[Sample]:
    """The scans of a prepared or the published tree; `DataError` when the root is neither."""
    samples = read_prepared(root, CATEGORY, ("brainmri", "BrainMRI"), "none", report)
    return samples if samples is not None else read_raw(root, report)


def read_raw(root: Path, report: Report) -> list[Sample]:
    """The scans of the published folders."""
    base = find_base(root, ("brain_tumor_dataset",), lambda path: (path / "no").is_dir() and (path / "yes").is_dir())
    if base is None:
        raise not_there(root, "BrainMRI", "brainmri", "neither no/ and yes/ nor train/good and test/ is there")
    normal = [join(base, "no", name) for name in images(root, join(base, "no"), report)]
    test = tested(normal)
    samples = [Sample(path, CATEGORY, "test" if path in test else "train", 0) for path in normal]
    samples += [
        Sample(join(base, "yes", name), CATEGORY, "test", 1, None, "defect") for name in images(root, join(base, "yes"), report)
    ]
    return sorted(samples, key=lambda sample: (sample.split != "train", sample.image))


def prepare(raw: Path, params: NoParams, read: Decoder, report: Report) -> Iterator[Piece]:
    """The same split as a tree of files, copied byte for byte."""
    yield from pieces(raw, read_raw(raw, report), read)


BRAINMRI = DatasetInfo(
    name="brainmri",
    version=1,
    title="BrainMRI",
    scan="inpbench.datasets.brainmri:scan",
    categories=(CATEGORY,),
    counts={CATEGORY: Counts(73, 25, 155)},
    licence="see the page",
    homepage="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
    expected_tree=expected_tree("brainmri", False, "or as published: <root>/no/*.jpg, <root>/yes/*.jpg"),
    prepare="inpbench.datasets.brainmri:prepare",
    obtain="a Kaggle account: kaggle datasets download navoneel/brain-mri-images-for-brain-tumor-detection",
)
