"""HeadCT: 200 slices, half of them with a haemorrhage, image level only (there are no masks).

labels.csv (a header, then id,label) says which of head_ct/head_ct/000.png is which. A quarter of the ids of label 0, in the order
of the table, is tested (`splits`), all of label 1 is anomalous. A tree that `bench data prepare` or InCTRL's script made is read
as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from inpbench.datasets.listing import Listing, find_base, join, read_text
from inpbench.datasets.prepared import expected_tree, not_there, pieces, read_prepared
from inpbench.datasets.splits import tested
from inpbench.harness.api import Counts, DatasetInfo, Decoder, Finding, NoParams, Piece, Report, Sample
from inpbench.harness.errors import DataError

CATEGORY = "headct"


def scan(root: Path, params: NoParams, report: Report) -> list[Sample]:
    """The slices of a prepared or the published tree; `DataError` when the root is neither."""
    samples = read_prepared(root, CATEGORY, ("headct", "HeadCT"), "none", report)
    return samples if samples is not None else read_raw(root, report)


def read_raw(root: Path, report: Report) -> list[Sample]:
    """The slices that labels.csv lists."""
    base = find_base(root, ("headct", "HeadCT", "head-ct-hemorrhage"), lambda path: (path / "labels.csv").is_file())
    if base is None:
        raise not_there(root, "HeadCT", "headct", "neither labels.csv nor train/good and test/ is there")
    table, listing = join(base, "labels.csv"), Listing(root)
    normal: list[str] = []
    samples: list[Sample] = []
    for number, label in _rows(root, table, report):
        names = [join(base, folder, f"{number:03d}.png") for folder in ("head_ct/head_ct", "head_ct")]
        image = next((found for found in map(listing.find, names) if found), None)
        if image is None:
            report(Finding(names[0], "missing_image", f"{table} lists it, it is not there"))
        elif label:
            samples.append(Sample(image, CATEGORY, "test", 1, None, "defect"))
        else:
            normal.append(image)
    test = tested(normal)
    samples += [Sample(path, CATEGORY, "test" if path in test else "train", 0) for path in normal]
    return sorted(samples, key=lambda sample: (sample.split != "train", sample.image))


def _rows(root: Path, table: str, report: Report) -> Iterator[tuple[int, int]]:
    """(id, label) of each line; the header, blank lines and (after a report) broken ones are passed over."""
    try:
        lines = read_text(root, table).splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{table} cannot be read: {error}.", "Fetch the data set again.") from error
    seen: set[int] = set()
    for number, line in enumerate(lines[1:], start=2):
        fields = [field.strip() for field in line.split(",")]
        if fields == [""]:
            continue
        if len(fields) != 2 or not fields[0].isdecimal() or fields[1] not in ("0", "1"):
            report(Finding(table, "bad_entry", f"{table}:{number}: expected id,0|1; found '{line[:80]}'"))
        elif int(fields[0]) in seen:
            report(Finding(table, "bad_entry", f"{table}:{number} lists {fields[0]} a second time"))
        else:
            seen.add(int(fields[0]))
            yield int(fields[0]), int(fields[1])


def prepare(raw: Path, params: NoParams, read: Decoder, report: Report) -> Iterator[Piece]:
    """The same split as a tree of files, copied byte for byte."""
    yield from pieces(raw, read_raw(raw, report), read)


HEADCT = DatasetInfo(
    name="headct",
    version=1,
    title="HeadCT",
    scan="inpbench.datasets.headct:scan",
    categories=(CATEGORY,),
    counts={CATEGORY: Counts(75, 25, 100)},
    licence="see the page",
    homepage="https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
    expected_tree=expected_tree("headct", False, "or as published: <root>/labels.csv, <root>/head_ct/head_ct/000.png"),
    prepare="inpbench.datasets.headct:prepare",
    obtain="a Kaggle account: kaggle datasets download felipekitamura/head-ct-hemorrhage",
)
