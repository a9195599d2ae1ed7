"""MNIST: 70,000 handwritten digits, 28 x 28 grey; digits as categories, or even digits against odd ones (`semantic`).

Read are PNG folders training/<digit>, testing/<digit>; `prepare` makes them from the four published idx files (`idx_files`), packed
(.gz) or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inpbench.datasets.listing import find_base
from inpbench.datasets.prepared import not_there
from inpbench.datasets.semantic import Classes, ClassParams, class_pieces, scan_prepared
from inpbench.harness.api import Archive, DatasetInfo, Decoder, Piece, Report, Sample
from inpbench.harness.errors import DataError

DIGITS = tuple("0123456789")
FILES = (("train-images", "train-labels"), ("t10k-images", "t10k-labels"))
ABOUT = Classes(
    name="mnist",
    title="MNIST",
    classes=DIGITS,
    together="even_digit",
    normal=frozenset("02468"),
    train=dict(zip(DIGITS, (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949), strict=True)),
    test=dict(zip(DIGITS, (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009), strict=True)),
    splits=(("training", "train"), ("testing", "test")),
    tops=("mnist_png", "mnist", "MNIST"),
)


@dataclass(frozen=True, kw_only=True)
class MnistParams(ClassParams):
    """Which protocol; multi_class: even digits normal, odd digits anomalous."""

    ABOUT = ABOUT


def scan(root: Path, params: MnistParams, report: Report) -> list[Sample]:
    """The samples of a tree of PNG folders; `DataError` otherwise, also for idx files, which have to be prepared."""
    return scan_prepared(root, params, report, _base, "idx files")


def _file(folder: Path, stem: str) -> Path | None:
    """The idx file of a name: with - or . before idx, packed or not."""
    rank = "idx3" if "images" in stem else "idx1"
    names = [f"{stem}{sep}{rank}-ubyte{end}" for sep in "-." for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _base(root: Path) -> str | None:
    return find_base(root, ("MNIST/raw", "raw"), lambda path: all(_file(path, stem) for pair in FILES for stem in pair))


def prepare(raw: Path, params: MnistParams, read: Decoder, report: Report) -> Iterator[Piece]:
    """PNG folders of the training and test images."""
    from inpbench.datasets.idx_files import read_idx

    base = _base(raw)
    if base is None:
        raise not_there(raw, "MNIST", "mnist", "the four files train-images-idx3-ubyte[.gz], ... are not there")
    for which, stems in enumerate(FILES):
        pictures, labels = (_file(raw / base, stem) for stem in stems)
        assert pictures is not None and labels is not None, "found by _base"
        pixels, digits = read_idx(pictures, 3), read_idx(labels, 1)
        if len(pixels) != len(digits) or (len(digits) and digits.max() > 9):
            raise DataError(f"{pictures.name} and {labels.name}: {len(pixels)} images, {len(digits)} labels, or a label above 9.")
        yield from class_pieces(ABOUT, which, list(pixels), digits.tolist())


_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST = DatasetInfo(
    name="mnist",
    version=1,
    title="MNIST (digits as categories)",
    scan="inpbench.datasets.mnist:scan",
    params=MnistParams,
    categories=DIGITS,
    counts=ABOUT.counts("one_vs_all"),
    licence="CC BY-SA 3.0",
    homepage="http://yann.lecun.com/exdb/mnist/",
    expected_tree="""\
<root>/training/<digit>/00000.png, <root>/testing/<digit>/00000.png     (or train/ and test/)
for bench data prepare: train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], t10k-...
--set mnist.protocol=multi_class: even digits normal, odd ones anomalous""",
    prepare="inpbench.datasets.mnist:prepare",
    archives=tuple(
        Archive(url=f"{_MIRROR}{file}", file=file, sha256=sha256)
        for file, sha256 in {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        }.items()
    ),
)
