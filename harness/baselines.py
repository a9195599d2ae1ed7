"""Baselines: the committed numbers that a change must not make worse, one file for each cell in `results/baselines`.

A file says what was asked for (`key`), and for each class of hardware (`entries`) under which protocol, by which record and with
what values; its diff is what a reviewer reads. `update` replaces the values; tolerances that were edited by hand stay.

Default tolerances are for small trained cells on a CPU, where another processor's rounding alone moves a metric (image metrics on
a few dozen images move in steps: one swapped pair of 20 x 20 images is 0.0025 of AUROC). `bench check --learn N` replaces them by
what repeated runs show (harness/tolerances.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from inpbench.harness.atomic import write_text
from inpbench.harness.errors import NothingError, RecordError, UsageError
from inpbench.harness.metrics import METRICS
from inpbench.harness.records import Record, RecordStore, canonical_json
from inpbench.harness.small_files import read_json

SCHEMA = 1
TOLERANCES: Mapping[str, float] = {
    "i_auroc": 0.01,
    "i_ap": 0.01,
    "i_f1max": 0.02,
    "p_auroc": 0.005,
    "p_ap": 0.02,
    "p_f1max": 0.02,
    "aupro": 0.01,
}
OTHER_TOLERANCE = 0.01

# What was asked for: a record and a baseline with the same key are about the same cell. The label, not the parameters, so that a
# changed default is found as another method_version instead of as another cell.
_ASKED = ("method", "label", "dataset", "dataset_params", "setting", "shots", "source", "seed", "engine", "limit", "selection")
KEY = (*_ASKED, "checkpoint", "input", "categories", "mask_rule", "variant", "weight_sources")
# What must agree before two numbers of one cell may be compared.
_VERSIONS = ("method_version", "setting_version", "dataset_version")
PROTOCOL = (*_VERSIONS, "manifest", "scoring", "metrics", "weights", "prompts", "eval_batch")


def metric_hardware(hardware: str) -> str:
    """The hardware class without the numbers of CPU cores and processes, which move timings, not metrics beyond their tolerances.

    >>> metric_hardware("cpu-x86_64-2"), metric_hardware("cuda-h100-x4")
    ('cpu-x86_64', 'cuda-h100')
    """
    hardware = re.sub(r"-x\d+$", "", hardware)
    return re.sub(r"-\d+$", "", hardware) if hardware.startswith("cpu-") else hardware


@dataclass(frozen=True)
class Value:
    """One metric of a baseline."""

    value: float  # a fraction
    tolerance: float  # absolute; a difference of exactly this much is still ok
    higher_is_better: bool = True


@dataclass(frozen=True)
class Entry:
    """The values on one kind of hardware; a file has one entry for each `metric_hardware`."""

    hardware: str  # class, with the cores it was measured on
    protocol: dict[str, Any]  # PROTOCOL of the identity
    metrics: dict[str, Value]
    record: str  # id of the record that the values come from
    reason: str  # of the last update
    date: str  # of the last update, UTC
    learned: dict[str, Any] | None = None  # what the tolerances come from: {"seeds", "level"}; None: judgement


@dataclass(frozen=True)
class Baseline:
    """One file."""

    name: str
    key: dict[str, Any]
    entries: tuple[Entry, ...]


def key_of(record: Record) -> dict[str, Any]:
    """What was asked for, as data."""
    identity = record.identity
    own = {
        "label": record.label,
        "mask_rule": identity["scoring"].get("mask_rule"),
        "variant": identity["metrics"].get("variant"),
        # file, random or builtin: which of them is a choice, the bytes are not.
        "weight_sources": {name: str(value).partition(":")[0] for name, value in identity["weights"].items()},
    }
    return {name: own[name] if name in own else identity[name] for name in KEY}


def protocol_of(record: Record) -> dict[str, Any]:
    """What must agree for a comparison, as data; the last two only where the identity has them."""
    return {name: record.identity[name] for name in PROTOCOL if name in record.identity}


def load(folder: Path) -> list[Baseline]:
    """All baselines of a folder, sorted by name. Raises `RecordError` naming the file when one is broken or newer."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def read(path: Path) -> Baseline:
    """One baseline file."""
    try:
        document = read_json(path)
        if document["schema"] > SCHEMA:
            raise RecordError(f"{path} has schema {document['schema']}, this bench reads <= {SCHEMA}.", "Upgrade inpbench.")
        if set(document["key"]) != set(KEY):
            raise RecordError(f"{path}: the key must have {', '.join(KEY)}.", "Type: bench check --update --reason TEXT")
        entries = tuple(_entry(item) for item in document["entries"])
        if not entries:
            raise ValueError("no entries")
        if len({metric_hardware(entry.hardware) for entry in entries}) != len(entries):
            raise ValueError("two entries for one kind of hardware")
        return Baseline(path.name, {name: document["key"][name] for name in KEY}, entries)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise RecordError(f"{path} is no baseline: {error!r}.", "Restore it: git checkout -- results/baselines") from error


def _entry(item: Any) -> Entry:
    values = {}
    for metric, row in item["metrics"].items():
        numbers = (row["value"], row["tolerance"])
        if row["direction"] not in ("higher", "lower") or any(type(n) not in (int, float) for n in numbers) or numbers[1] < 0:
            raise ValueError(f"{metric}: value {numbers[0]!r}, tolerance {numbers[1]!r}, direction {row['direction']!r}")
        values[metric] = Value(float(row["value"]), float(row["tolerance"]), row["direction"] == "higher")
    names = ("hardware", "protocol", "record", "reason", "date")
    for name in names:
        if not isinstance(item[name], dict if name == "protocol" else str):
            raise TypeError(f"'{name}' is a {type(item[name]).__name__}")
    if not isinstance(item.get("learned"), (dict, type(None))):
        raise TypeError("'learned' is no object")
    return Entry(metrics=values, learned=item.get("learned"), **{name: item[name] for name in names})


def update(store: RecordStore, folder: Path, reason: str, **filters: Any) -> list[Path]:
    """Make the newest done record of each cell and hardware the baseline; gives the files that changed.

    Entries of other hardware, and tolerances, stay. Raises `UsageError` without a reason, `NothingError` without a record.
    """
    if not reason.strip():
        raise UsageError("A baseline changes only with a reason.", 'Type: bench check --update --reason "why the numbers change"')
    newest: dict[tuple[str, str], Record] = {}
    for record in store.all(status="done", **filters):
        place = (canonical_json(key_of(record)), metric_hardware(record.hardware))
        if place not in newest or newest[place].finished <= record.finished:
            newest[place] = record
    if not newest:
        raise NothingError(f"No finished record in {store.folder} to take baselines from.", "Type: bench run, then check again")
    changed = []
    for record in newest.values():
        path = folder / file_name(record)
        old = read(path) if path.is_file() else Baseline(path.name, key_of(record), ())
        kind = metric_hardware(record.hardware)
        before = next((entry for entry in old.entries if metric_hardware(entry.hardware) == kind), None)
        entry = _new_entry(record, before or (old.entries[0] if old.entries else None), reason.strip())
        if before is not None and (before.metrics, before.protocol) == (entry.metrics, entry.protocol):
            continue
        others = [item for item in old.entries if metric_hardware(item.hardware) != kind]
        write_text(path, to_text(Baseline(path.name, old.key, tuple(sorted([*others, entry], key=lambda e: e.hardware)))))
        changed.append(path)
    return sorted(set(changed))


def _new_entry(record: Record, before: Entry | None, reason: str) -> Entry:
    values = {}
    for metric in record.metrics["mean"]:
        value = record.mean(metric)
        if value is not None:
            earlier = before.metrics.get(metric) if before else None
            tolerance = earlier.tolerance if earlier else TOLERANCES.get(metric, OTHER_TOLERANCE)
            values[metric] = Value(value, tolerance, METRICS[metric].higher_is_better if metric in METRICS else True)
    date = datetime.now(timezone.utc).date().isoformat()
    return Entry(record.hardware, protocol_of(record), values, record.id, reason, date, before.learned if before else None)


def file_name(record: Record) -> str:
    """`synthetic-multi_class-inp_former-s0-1a2b3c4d.json`: readable, and unique by the hash of the key."""
    key = key_of(record)
    digest = hashlib.sha256(canonical_json(key).encode("ascii")).hexdigest()[:8]
    words = (key["dataset"], key["setting"], key["method"], f"s{key['seed']}", digest)
    return "-".join(re.sub(r"[^\w.+]+", "_", str(word)).lstrip(".") for word in words) + ".json"


def to_text(baseline: Baseline) -> str:
    """The file's text: fixed key order, floats with every bit."""
    document = {"schema": SCHEMA, "key": baseline.key, "entries": [_as_data(entry) for entry in baseline.entries]}
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _as_data(entry: Entry) -> dict[str, Any]:
    return {
        "hardware": entry.hardware,
        "record": entry.record,
        "reason": entry.reason,
        "date": entry.date,
        **({} if entry.learned is None else {"learned": entry.learned}),
        "metrics": {
            metric: {"value": v.value, "tolerance": v.tolerance, "direction": "higher" if v.higher_is_better else "lower"}
            for metric, v in entry.metrics.items()
        },
        "protocol": entry.protocol,
    }
