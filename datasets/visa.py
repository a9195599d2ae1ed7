"""VisA: 12 objects, read from the archive as it is (split_csv and index masks), or from a converted tree.

Raw: <root>/split_csv/<split>.csv lists every image; the images end in .JPG, the masks hold class numbers 1..9 (black to the eye).
Converted (`VisA_pytorch`, with or without the level 1cls; the folder of anomalies is bad or defect): the tree of MVTec AD, masks
without a suffix. Where both lie under one root, the raw files are taken; a csv without its files is not in the way. Training
anomalies of the 2cls splits are listed with label 1; unsupervised training leaves them out. The kind of defect is "bad" throughout,
so that both forms count alike.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inpbench.datasets.layouts import Tree, is_category, pair, read_test, read_train
from inpbench.datasets.listing import Listing, find_base, folders, images, in_order, join, path_problem, read_text, stem_key
from inpbench.datasets.prepared import as_mask
from inpbench.harness.api import Archive, Counts, DatasetInfo, Decoder, Finding, Piece, Report, Sample, Split
from inpbench.harness.errors import DataError

ANOMALOUS = "bad"
ANOMALOUS_FOLDERS = ("bad", "defect")  # spot-diff's conversion, InCTRL's
SPLITS: dict[str, Split] = {"train": "train", "test": "test"}
COLUMNS = ("object", "split", "label", "image", "mask")

# Per object: 1cls train, test normal, test anomalous; then the normal images of highshot and fewshot (train, test).
_TABLE = {
    "candle": (900, 100, 100, 600, 400, 200, 800),
    "capsules": (542, 60, 100, 361, 241, 120, 482),
    "cashew": (450, 50, 100, 300, 200, 100, 400),
    "chewinggum": (453, 50, 100, 302, 201, 101, 402),
    "fryum": (450, 50, 100, 300, 200, 100, 400),
    "macaroni1": (900, 100, 100, 600, 400, 200, 800),
    "macaroni2": (900, 100, 100, 600, 400, 200, 800),
    "pcb1": (904, 100, 100, 602, 402, 201, 803),
    "pcb2": (901, 100, 100, 601, 400, 200, 801),
    "pcb3": (905, 101, 100, 604, 402, 201, 805),
    "pcb4": (904, 101, 100, 603, 402, 201, 804),
    "pipe_fryum": (450, 50, 100, 300, 200, 100, 400),
}
CATEGORIES = tuple(_TABLE)
_TRAIN_ANOMALIES = {"1cls": 0, "2cls_highshot": 60, "2cls_fewshot": 20}


def _counts(split: str) -> dict[str, Counts]:
    """Published numbers of a split; the training images include the anomalous ones of the 2cls splits."""
    if split == "1cls":
        return {name: Counts(*row[:3]) for name, row in _TABLE.items()}
    first, extra = (3 if split == "2cls_highshot" else 5), _TRAIN_ANOMALIES[split]
    return {name: Counts(row[first] + extra, row[first + 1], 100 - extra) for name, row in _TABLE.items()}


@dataclass(frozen=True, kw_only=True)
class VisaParams:
    """Which of the three published splits."""

    split: Literal["1cls", "2cls_highshot", "2cls_fewshot"] = "1cls"  # 1cls: normal training images only

    @property
    def published(self) -> Mapping[str, Counts]:
        """The counts of this split, for the audit."""
        return _counts(self.split)


def raw_base(root: Path, split: str) -> str | None:
    """Where the published tree lies below the root, or None."""
    return find_base(root, ("VisA_20220922", "VisA", "visa"), lambda path: (path / "split_csv" / f"{split}.csv").is_file())


def scan(root: Path, params: VisaParams, report: Report) -> list[Sample]:
    """The samples of a raw or a converted tree; `DataError` when the root is neither."""
    raw, converted = raw_base(root, params.split), _converted_base(root, params.split)
    if raw is not None and (converted is None or any((root / raw / name / "Data").is_dir() for name in folders(root / raw))):
        return _scan_raw(root, raw, params.split, report)
    if converted is not None:
        return _scan_converted(root, converted, params.split, report)
    raise DataError(
        f"{root} is no VisA tree: neither split_csv/{params.split}.csv nor a converted {params.split}/<object>/train is there. "
        f"Found: {', '.join(folders(root)[:8]) or 'no folder'}.",
        "Type: bench data show visa, for the layouts that are read.",
    )


# --- the archive as it is -------------------------------------------------------------------------------------------


def _read_rows(root: Path, name: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a split csv; line ends CRLF or LF, with or without a byte order mark."""
    try:
        text = read_text(root, name)
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        rows = [(reader.line_num, {key: (row[key] or "").strip() for key in COLUMNS}) for row in reader] if not missing else []
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{name} cannot be read: {error}.", "Unpack VisA_20220922.tar again.") from error
    if missing:
        raise DataError(
            f"{name}: expected the columns {','.join(COLUMNS)}; missing: {', '.join(missing)}.", "Unpack VisA_20220922.tar again."
        )
    return [(line, row) for line, row in rows if any(row.values())]


def _scan_raw(root: Path, base: str, split: str, report: Report) -> list[Sample]:
    table = join(base, "split_csv", f"{split}.csv")
    listing, seen = Listing(root), set[str]()
    samples: dict[str, list[Sample]] = {}
    rows = _read_rows(root, table)
    objects = {row["object"] for _, row in rows if not path_problem(row["object"])}
    absent = {name for name in objects if not (root / base / name).is_dir()}
    for name in in_order(absent, CATEGORIES):
        report(Finding(join(base, name), "missing_category", f"{table} lists it, the folder is not there"))
    for line, row in rows:
        if row["object"] in absent:
            continue
        sample = _raw_sample(f"{table}:{line}", base, row, listing, report)
        if sample is None:
            continue
        if sample.image in seen:
            report(Finding(sample.image, "bad_entry", f"{table}:{line} lists it a second time"))
            continue
        seen.add(sample.image)
        samples.setdefault(sample.category, []).append(sample)
    _report_stray(root, samples, report)
    return [
        sample
        for category in in_order(samples, CATEGORIES)
        for sample in sorted(samples[category], key=lambda s: (s.split != "train", s.image))
    ]


def _raw_sample(where: str, base: str, row: dict[str, str], listing: Listing, report: Report) -> Sample | None:
    """One row as a sample, or None after a report."""
    if (
        not row["object"]
        or "/" in row["object"]
        or path_problem(row["object"])
        or row["split"] not in SPLITS
        or row["label"] not in ("normal", "anomaly")
    ):
        report(Finding(where.rpartition(":")[0], "bad_entry", f"{where}: object, split or label is not of the schema: {row}"))
        return None
    for column in ("image", "mask"):
        problem = path_problem(row[column]) if row[column] or column == "image" else ""
        if problem:
            report(Finding(row[column] or where, "bad_path", f"{where}, {column}: {problem}"))
            return None
    image = listing.find(join(base, row["image"]))
    if image is None:
        report(Finding(join(base, row["image"]), "missing_image", f"{where} lists it, it is not there"))
        return None
    split = SPLITS[row["split"]]
    if row["label"] == "normal":
        if row["mask"]:
            report(Finding(image, "ignored", f"{where}: the mask of a normal image is not used"))
        return Sample(image, row["object"], split, 0)
    mask = listing.find(join(base, row["mask"])) if row["mask"] else None
    if mask is None:
        report(Finding(image, "missing_mask", f"expected {join(base, row['mask']) or 'a mask in ' + where}"))
    return Sample(image, row["object"], split, 1, mask, ANOMALOUS)


def _report_stray(root: Path, samples: Mapping[str, list[Sample]], report: Report) -> None:
    """Masks in the folders of used masks that no row names."""
    used = {sample.mask for group in samples.values() for sample in group if sample.mask}
    for folder in sorted({str(Path(mask).parent) for mask in used}):
        for name in images(root, folder, lambda finding: None):
            if join(folder, name) not in used:
                report(Finding(join(folder, name), "mask_without_image", "no row of the csv names it"))


# --- converted trees ------------------------------------------------------------------------------------------------


def _converted_base(root: Path, split: str) -> str | None:
    """Where a converted tree of the split lies below the root, or None."""
    tops = ("", "VisA_pytorch", "visa_pytorch", "VisA", "visa")
    names = [join(top, split) for top in tops] + ([*tops] if split == "1cls" else [])
    fits = (base for base in names if any(is_category(root / base / name) for name in folders(root / base)))
    return next(fits, None)


def _scan_converted(root: Path, base: str, split: str, report: Report) -> list[Sample]:
    samples: list[Sample] = []
    level = "" if split == "1cls" else "test"
    for category in in_order((name for name in folders(root / base) if is_category(root / base / name)), CATEGORIES):
        tree = Tree(root, join(base, category), category, defect=ANOMALOUS, mask_level=level)
        if split == "1cls":
            samples += read_train(tree, report)
        else:
            normal = read_train(tree, report, known=ANOMALOUS_FOLDERS)
            samples += sorted(normal + _train_anomalies(tree, report), key=lambda sample: sample.image)
        samples += read_test(tree, report)
    return samples


def _train_anomalies(tree: Tree, report: Report) -> list[Sample]:
    """train/bad with the masks of ground_truth/train/bad."""
    samples = []
    for name in (n for n in folders(tree.root / tree.folder / "train") if n in ANOMALOUS_FOLDERS):
        folder, truth = join(tree.folder, "train", name), join(tree.folder, "ground_truth", "train", name)
        masks: dict[str, list[str]] = {}
        for mask in images(tree.root, truth, report, unreadable="unreadable_mask"):
            masks.setdefault(stem_key(mask), []).append(mask)
        for image in images(tree.root, folder, report):
            found = pair(image, masks)
            if found is None:
                report(Finding(join(folder, image), "missing_mask", f"expected {join(truth, Path(image).stem)}.png"))
            path = join(truth, found) if found else None
            samples.append(Sample(join(folder, image), tree.category, "train", 1, path, ANOMALOUS))
    return samples


def prepare(raw: Path, params: VisaParams, read: Decoder, report: Report) -> Iterator[Piece]:
    """The converted tree of a split: images byte for byte, masks as 0 and 255 under their own name."""
    if raw_base(raw, params.split) is None:
        raise DataError(
            f"{raw} holds no split_csv/{params.split}.csv: not the published tree.", "Unpack VisA_20220922.tar and name its folder."
        )
    level = "" if params.split == "1cls" else "{split}"
    for sample in scan(raw, params, report):
        top, name = join(params.split, sample.category), Path(sample.image).name
        yield Piece(join(top, sample.split, sample.defect, name), raw / sample.image)
        if sample.mask is not None:
            truth = join(top, "ground_truth", level.format(split=sample.split), ANOMALOUS)
            yield Piece(join(truth, f"{Path(sample.mask).stem}.png"), as_mask(read.mask(sample.mask, sample.image)))


VISA = DatasetInfo(
    name="visa",
    version=1,
    title="VisA",
    scan="inpbench.datasets.visa:scan",
    params=VisaParams,
    categories=CATEGORIES,
    counts=_counts("1cls"),
    licence="CC BY 4.0",
    homepage="https://github.com/amazon-science/spot-diff",
    expected_tree="""\
<root>/split_csv/1cls.csv                       raw: the archive VisA_20220922.tar as it unpacks
<root>/<object>/Data/Images/{Normal,Anomaly}/0000.JPG
<root>/<object>/Data/Masks/Anomaly/000.png
or converted: <root>[/VisA_pytorch][/1cls]/<object>/{train/good,test/good,test/bad,ground_truth/bad}""",
    prepare="inpbench.datasets.visa:prepare",
    archives=(
        Archive(
            url="https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
            file="VisA_20220922.tar",
            sha256="2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
        ),
    ),
)
