"""Published numbers, and whether a measured one may be put beside them.

`results/reported/*.json` holds every transcribed number as a fraction: `entries` (one for each method, data set, setting, number of
shots and category; `category` null is the mean), `facts` (sizes, speeds, constants) and `notes`. `kind` says whose number it is
(paper, authors, reproduction), `verified` how it was read, `reference` marks the one entry that `--reported` uses for a cell.

A difference is shown only where the protocol is the same: same data set, categories, setting, shots; the paper's parameters and
weights; nothing limited or skipped. Pixel metrics also need the same mask rule and the same definition: INP-Former's paper used
`gt0` (any touched grey pixel is foreground), its public code `gt05`, which alone moves P-AP on Real-IAD from 47.5 to 44.2 and
P-AUROC and AUPRO by up to 0.15: as much as the gains that papers report. So under `gt05` only image metrics are compared.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any

from inpbench.harness.api import FINDINGS
from inpbench.harness.errors import BenchError, RecordError
from inpbench.harness.marks import obstacles
from inpbench.harness.metrics import PIXEL_METRICS
from inpbench.harness.records import Record
from inpbench.harness.small_files import parse_json

SCHEMA = 1
KINDS = ("paper", "authors", "reproduction")
VERIFIED = {
    "paper_table": "read from the paper's table",
    "source_text": "text of the official repository",
    "quoted": "the paper's number as others quote it",
    "third_party_log": "log or table of somebody else's run",
    "third_party_doc": "documentation of another project",
    "issue": "posted in an issue",
    "recalled_unverified": "from memory, not checked",
    "not_available": "known to exist, could not be read",
}
# How each variant of our metrics defines the pixel metrics. strips200: 200 strips, interpolated at 0.3 (INP-Former's code today);
# strips1000: the same with 1,000 (CRR); steps200: 200 thresholds, FPR rescaled by its maximum (Dinomaly). The 1e-7 in the papers'
# F1 is below what they print.
DEFINITIONS: dict[str, dict[str, str]] = {
    "exact": {"p_auroc": "exact", "p_ap": "exact", "p_f1max": "exact", "aupro": "exact"},
    "dinomaly": {"p_auroc": "exact", "p_ap": "exact", "p_f1max": "exact", "aupro": "steps200"},
    "paper": {"p_auroc": "strips200", "p_ap": "strips200", "p_f1max": "exact", "aupro": "strips200"},
    "crr": {"p_auroc": "strips1000", "p_ap": "strips1000", "p_f1max": "exact", "aupro": "strips1000"},
}
# The constants of the originals' evaluation (harness/scoring.py, which imports torch); other constants give other numbers.
OFFICIAL_SCORING: dict[str, Any] = {"metric_size": [256, 256], "kernel": 5, "sigma": 4.0, "top_ratio": 0.01}
_RESTORE = "Restore it: git checkout -- results/reported, or: pip install --force-reinstall inpbench"
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("method", "display", "dataset", "kind", "verified", "source", "note"), (str,)),
    **dict.fromkeys(("setting", "category"), (str, type(None))),
    **dict.fromkeys(("metrics", "std", "protocol"), (dict,)),
    "shots": (int,),
    "reference": (bool,),
}
SUPER_MULTI_CLASS = ("mvtec_ad", "visa", "real_iad")  # INP-Former's, in the order of training


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of a published table."""

    method: str  # our registry name where it is one of ours, else the display name
    display: str  # as published
    dataset: str
    setting: str | None  # ours; None where it is none of ours (see protocol["stated"])
    shots: int
    category: str | None  # None: the mean over the categories
    metrics: dict[str, float | None]  # fractions
    std: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)  # mask_rule, definitions, encoder, resize, crop, ... where known
    kind: str = "paper"
    verified: str = "paper_table"
    reference: bool = False
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Published values beside a measured row, and why others have none."""

    values: dict[str, float]  # metric -> published fraction, only where the protocol is the same
    reasons: dict[str, str]  # metric -> why it is not shown
    source: str = ""


@functools.cache
def load_reported() -> tuple[Entry, ...]:
    """All entries that ship with the package. Raises `RecordError` naming the file when one is broken."""
    entries: list[Entry] = []
    folder = resources.files("inpbench.results").joinpath("reported")
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".json"):
            entries += parse(file.read_text(encoding="utf-8"), file.name)
    return tuple(entries)


def parse(text: str, name: str) -> list[Entry]:
    """The entries of one file; unknown or missing keys raise `RecordError`."""
    known = {item.name for item in fields(Entry)}
    try:
        document = parse_json(text)
        if document["schema"] != SCHEMA:
            raise RecordError(f"{name} has schema {document['schema']}, this bench reads {SCHEMA}.", _RESTORE)
        rows = document["entries"]
        for index, row in enumerate(rows):
            if set(row) != known:
                raise RecordError(f"{name}: entry {index} must have the keys {sorted(known)}, found {sorted(row)}.", _RESTORE)
            if row["kind"] not in KINDS or row["verified"] not in VERIFIED:
                raise RecordError(f"{name}: entry {index} has kind {row['kind']!r} and verified {row['verified']!r}.", _RESTORE)
            for key, kinds in _TYPES.items():
                if type(row[key]) not in kinds:
                    raise RecordError(f"{name}: entry {index} has {key} {row[key]!r}.", _RESTORE)
            numbers = [*row["metrics"].values(), *row["std"].values()]
            if not all(value is None or (type(value) in (int, float) and 0 <= value <= 1) for value in numbers):
                raise RecordError(f"{name}: entry {index} holds a metric that is no fraction.", _RESTORE)
        return [Entry(**row) for row in rows]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecordError(f"{name} is no table of published numbers: {error!r}.", _RESTORE) from error


def compare(
    record: Record,
    metrics: Sequence[str],
    category: str | None = None,
    entries: Sequence[Entry] | None = None,
    *,
    vouched: bool = False,
) -> Comparison:
    """The published values for a record's row (any one seed stands for all of them).

    category: one category, or None for the mean. entries: default all that ship with the package. vouched: the user says that the
    checkpoint is the authors' and the source data set theirs, which nothing here can check.
    """
    identity = record.identity
    known = load_reported() if entries is None else entries
    entry = _reference(identity, category, known)
    reason = "no published number for this method, data set and setting" if entry is None else _obstacle(record, vouched)
    if entry is None or reason:
        return Comparison({}, dict.fromkeys(metrics, reason), "" if entry is None else entry.source)
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for metric in metrics:
        value = entry.metrics.get(metric)
        if value is None:
            reasons[metric] = f"not published ({entry.source})"
        elif why := _metric_obstacle(metric, identity, entry):
            reasons[metric] = why
        else:
            values[metric] = value
    return Comparison(values, reasons, entry.source)


def _reference(identity: Mapping[str, Any], category: str | None, entries: Sequence[Entry]) -> Entry | None:
    cell = (identity["method"], identity["dataset"], identity["setting"], identity["shots"] or 0)
    for entry in entries:
        if entry.reference and entry.category == category and cell == (entry.method, entry.dataset, entry.setting, entry.shots):
            return entry
    return None


def _obstacle(record: Record, vouched: bool) -> str:
    """Why no number of this record may stand beside a published one, or an empty text."""
    identity = record.identity
    if marks := obstacles(record.marks):
        return ", ".join(marks)
    within = identity["checkpoint"] is not None
    if within and not vouched:
        return "how a checkpoint was trained is not known (bench reproduce --checkpoint)"
    if any(not str(value).startswith("sha256:") and not within for value in identity["weights"].values()):
        return "the encoder has not the official weights"
    if identity["limit"] is not None:
        return f"limited to {identity['limit']} images a group"
    if record.label != identity["method"] or not _of_the_paper(identity):
        return "parameters differ from the paper's"
    if identity["selection"] != "last":
        return "checkpoint chosen on the test set"
    if any(identity["scoring"].get(key, value) != value for key, value in OFFICIAL_SCORING.items()):
        return "scoring constants differ from the papers'"
    if why := _source_obstacle(identity, vouched):
        return why
    skipped = sum(FINDINGS.get(item["status"], "error") == "error" for item in record.skipped)
    if skipped:
        return f"{skipped} files of the data set could not be used"
    return _data_obstacle(identity)


def _of_the_paper(identity: Mapping[str, Any]) -> bool:
    """Whether the parameters are the defaults of this version of the method, also the encoder, which no label names."""
    from inpbench.harness.params import plain
    from inpbench.harness.registry import METHODS

    try:
        info = METHODS.get(identity["method"])
    except (BenchError, ImportError):  # a method of another machine: nothing here says what its defaults are
        return False
    return bool(identity["params"] == json.loads(json.dumps(plain(info.params()))))


def _source_obstacle(identity: Mapping[str, Any], vouched: bool) -> str:
    """Super-multi-class is published for the three data sets together, each whole; other sources are not stated."""
    source = identity["source"]
    if source is None or (vouched and identity["checkpoint"] is not None):
        return ""
    if identity["setting"] != "super_multi_class":
        why = "" if vouched else "the published source data set is not stated"
        return why or next((found for item in source.get("sets", []) if (found := _data_obstacle(item))), "")
    if tuple(item["dataset"] for item in source.get("sets", [])) != SUPER_MULTI_CLASS:
        return f"published for one model of {', '.join(SUPER_MULTI_CLASS)}"
    return next((why for item in source["sets"] if (why := _data_obstacle(item))), "")


def _data_obstacle(identity: Mapping[str, Any]) -> str:
    from inpbench.harness.params import plain
    from inpbench.harness.registry import DATASETS

    try:
        info = DATASETS.get(identity["dataset"])
    except BenchError:
        return f"the data set {identity['dataset']} is not known here, so its categories cannot be checked"
    if not info.categories or set(info.categories) != set(identity["categories"]):
        return "not the official categories"
    if identity["dataset_params"] != json.loads(json.dumps(plain(info.params()))):
        return "options of the data set differ from the default"
    return ""


def _metric_obstacle(metric: str, identity: Mapping[str, Any], entry: Entry) -> str:
    """Image metrics are the same in all code bases; pixel metrics depend on the mask rule and on the definition."""
    if metric not in PIXEL_METRICS:
        return ""
    ours, theirs = identity["scoring"].get("mask_rule"), entry.protocol.get("mask_rule")
    if theirs is None:
        return "the published mask rule is not known"
    if ours != theirs:
        return f"published with mask rule {theirs}, measured with {ours} (bench run --mask-rule {theirs})"
    variant = identity["metrics"].get("variant", "")
    measured, published = DEFINITIONS.get(variant, {}).get(metric), entry.protocol.get("definitions", {}).get(metric)
    if measured is None or measured != published:
        fitting = [name for name, table in DEFINITIONS.items() if published is not None and table[metric] == published]
        hint = f" (bench run --variant {fitting[0]})" if fitting else ""
        return f"published with another definition of the metric: {published or 'unknown'}, not {measured or variant}{hint}"
    return ""
