"""CIFAR-10: 60,000 photographs, 32 x 32; classes as categories, or animals against vehicles (`semantic`).

Read are PNG folders train/<class>, test/<class>; `prepare` makes them from the published batches, binary or Python
(`cifar_batches`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inpbench.datasets.listing import find_base
from inpbench.datasets.prepared import not_there
from inpbench.datasets.semantic import Classes, ClassParams, class_pieces, scan_prepared
from inpbench.harness.api import Archive, DatasetInfo, Decoder, Piece, Report, Sample

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = (tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",))
ABOUT = Classes(
    name="cifar10",
    title="CIFAR-10",
    classes=CLASSES,
    together="animal",
    normal=frozenset({"bird", "cat", "deer", "dog", "frog", "horse"}),
    train=dict.fromkeys(CLASSES, 5000),
    test=dict.fromkeys(CLASSES, 1000),
    splits=(("train",), ("test",)),
    tops=("cifar10", "cifar-10", "CIFAR-10", "CIFAR10"),
)


@dataclass(frozen=True, kw_only=True)
class CifarParams(ClassParams):
    """Which protocol; multi_class: animals normal, vehicles anomalous."""

    ABOUT = ABOUT


def scan(root: Path, params: CifarParams, report: Report) -> list[Sample]:
    """The samples of a tree of PNG folders; `DataError` otherwise, also for batches, which have to be prepared."""
    return scan_prepared(root, params, report, _base, "batches")


def _file(folder: Path, stem: str) -> Path | None:
    return next((folder / name for name in (f"{stem}.bin", stem) if (folder / name).is_file()), None)


def _base(root: Path) -> str | None:
    tops = ("cifar-10-batches-py", "cifar-10-batches-bin")
    return find_base(root, tops, lambda path: all(_file(path, stem) for stems in BATCHES for stem in stems))


def prepare(raw: Path, params: CifarParams, read: Decoder, report: Report) -> Iterator[Piece]:
    """PNG folders of the training and test images."""
    from inpbench.datasets.cifar_batches import read_batch

    base = _base(raw)
    if base is None:
        raise not_there(raw, "CIFAR-10", "cifar10", "data_batch_1 to data_batch_5 and test_batch (or .bin) are not there")
    for which, stems in enumerate(BATCHES):
        first = 0
        for stem in stems:
            file = _file(raw / base, stem)
            assert file is not None, "found by _base"
            pixels, labels = read_batch(file)
            yield from class_pieces(ABOUT, which, list(pixels), labels, first)
            first += len(labels)


CIFAR10 = DatasetInfo(
    name="cifar10",
    version=1,
    title="CIFAR-10 (classes as categories)",
    scan="inpbench.datasets.cifar10:scan",
    params=CifarParams,
    categories=CLASSES,
    counts=ABOUT.counts("one_vs_all"),
    licence="none stated; cite Krizhevsky 2009",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    expected_tree="""\
<root>/train/<class>/00000.png, <root>/test/<class>/00000.png
for bench data prepare: data_batch_1 ... data_batch_5, test_batch (the Python version), or the same with .bin (the binary one)
--set cifar10.protocol=multi_class: animals normal, vehicles anomalous""",
    prepare="inpbench.datasets.cifar10:prepare",
    archives=(
        Archive(
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            file="cifar-10-python.tar.gz",
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    ),
)
