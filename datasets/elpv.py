"""ELPV: electroluminescence images of solar cells, image level only (there are no masks).

`labels.csv` (path, probability, mono|poly; separated by blanks, no header) rates each cell. InCTRL's conversion, redone in memory:
normal are the cells of probability exactly 0, in the table's order, a quarter of them to the test set (`splits`); anomalous are
those of probability exactly 1; the others are left out. A tree that `bench data prepare` or InCTRL's script made is read as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from inpbench.datasets.listing import Listing, find_base, folders, join, path_problem, read_text
from inpbench.datasets.prepared import pieces, read_prepared
from inpbench.datasets.splits import split_normals
from inpbench.harness.api import Archive, Counts, DatasetInfo, Decoder, Finding, NoParams, Piece, Report, Sample
from inpbench.harness.errors import DataError

CATEGORY = "elpv"
KINDS = ("mono", "poly")
INSIDE = "src/elpv_dataset/data"  # of the published repository


def scan(root: Path, params: NoParams, report: Report) -> list[Sample]:
    """Normal and certainly defective cells; `DataError` when there is neither a labels.csv nor a prepared tree."""
    samples = read_prepared(root, CATEGORY, ("elpv", "ELPV"), "none", report)
    return samples if samples is not None else read_raw(root, report)


def read_raw(root: Path, report: Report) -> list[Sample]:
    """The cells that labels.csv lists."""
    tops = [join(name, INSIDE) for name in ("", *folders(root))]
    base = find_base(root, tops, lambda p: (p / "labels.csv").is_file())
    if base is None:
        raise DataError(f"{root} holds no labels.csv.", "Type: bench data show elpv, for the layout that is expected.")
    table, listing = join(base, "labels.csv"), Listing(root)
    try:
        lines = read_text(root, table).splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{table} cannot be read: {error}.", "Fetch the data set again.") from error
    normal: list[str] = []
    samples: list[Sample] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        row = _row(table, number, line, report)
        if row is None:
            continue
        path, probability, kind = row
        if path in seen:
            report(Finding(join(base, path), "bad_entry", f"{table}:{number} lists it a second time"))
            continue
        seen.add(path)
        image = listing.find(join(base, path))
        if image is None:
            report(Finding(join(base, path), "missing_image", f"{table}:{number} lists it, it is not there"))
        elif probability == 1:
            samples.append(Sample(image, CATEGORY, "test", 1, None, kind))
        elif probability == 0:
            normal.append(image)
    train, test = split_normals(normal)
    return sorted((Sample(image, CATEGORY, "train", 0) for image in train), key=lambda sample: sample.image) + sorted(
        samples + [Sample(image, CATEGORY, "test", 0) for image in test], key=lambda sample: sample.image
    )


def _row(table: str, number: int, line: str, report: Report) -> tuple[str, float, str] | None:
    """(path, probability, kind) of a line, or None after a report; blank lines are passed over."""
    fields = line.split()
    if not fields:
        return None
    try:
        path, probability, kind = fields[0], float(fields[1]), fields[2]
    except (IndexError, ValueError):
        path, probability, kind = "", math.nan, ""
    if not 0 <= probability <= 1 or kind not in KINDS or len(fields) != 3:
        report(Finding(table, "bad_entry", f"{table}:{number}: expected path, probability, mono|poly; found '{line[:80]}'"))
        return None
    problem = path_problem(path)
    if problem:
        report(Finding(path, "bad_path", f"{table}:{number}: {problem}"))
        return None
    return path, probability, kind


def prepare(raw: Path, params: NoParams, read: Decoder, report: Report) -> Iterator[Piece]:
    """The same split as a tree of files, copied byte for byte."""
    yield from pieces(raw, read_raw(raw, report), read)


ELPV = DatasetInfo(
    name="elpv",
    version=1,
    title="ELPV (solar cells)",
    scan="inpbench.datasets.elpv:scan",
    categories=(CATEGORY,),
    counts={CATEGORY: Counts(1131, 377, 715)},
    licence="CC BY-NC-SA 4.0",
    homepage="https://github.com/zae-bayern/elpv-dataset",
    expected_tree="""\
<root>/labels.csv                  images/cell0001.png  1.0  mono
<root>/images/cell0001.png         (or both in src/elpv_dataset/data/)
or prepared: <root>/{train/good,test/good,test/mono,test/poly}""",
    prepare="inpbench.datasets.elpv:prepare",
    archives=(Archive(url="https://github.com/zae-bayern/elpv-dataset/archive/HEAD.zip", file="elpv-dataset.zip"),),
)
