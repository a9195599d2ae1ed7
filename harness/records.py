"""Records: one JSON file for each cell that says what was measured and exactly how it came about.

`id = sha256(canonical JSON of the identity)`, checked on every load, so a file whose identity was edited is refused. Writing is
atomic; key order is fixed; floats keep every bit; NaN is forbidden (null, with its reason in `undefined`). A record of a newer
schema is refused, one of an older schema is brought up to date by `MIGRATIONS`. Reading never raises anything but `RecordError`.

Per-image scores lie beside the record, as `<id12>.<hash8>.npz`: a new run never overwrites the scores that an old record points to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness.atomic import write_bytes
from inpbench.harness.errors import RecordError, UsageError
from inpbench.harness.metrics import METRICS
from inpbench.harness.samples import pack, unpack
from inpbench.harness.small_files import parse_json, read_bytes

if TYPE_CHECKING:
    from inpbench.harness.samples import Samples

SCHEMA = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Schema n to the function that turns a document of schema n into one of schema n + 1."""

STATUSES = ("started", "trained", "done", "failed")
_IDENTITY_TYPES: dict[str, tuple[type, ...]] = {
    "v": (int,),
    "method": (str,),
    "method_version": (int,),
    "params": (dict,),
    "setting": (str,),
    "setting_version": (int,),
    "shots": (int,),
    "seed": (int,),
    "source": (dict, type(None)),
    "dataset": (str,),
    "dataset_version": (int,),
    "dataset_params": (dict,),
    "manifest": (str,),
    "categories": (list,),
    "input": (dict,),
    "scoring": (dict,),
    "metrics": (dict,),
    "weights": (dict,),
    "engine": (str,),
    "limit": (int, type(None)),
    "selection": (str,),
    "checkpoint": (str, type(None)),
}
_LARGEST = sys.float_info.max
LARGEST_SAMPLES = 1 << 30  # bytes of the scores of a record; 28 KiB of draws a category are the most of it
_ROUNDING = 1e-9  # of a mean, in any order of its summands
_METRIC_PARTS = ("mean", "categories", "counts", "bounds", "undefined")
_ERROR_PARTS = ("type", "message", "traceback")


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces, ASCII. Raises `RecordError` for NaN and for what JSON cannot say."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"A record holds only finite JSON values: {error}.") from error


def identity_id(identity: Mapping[str, Any]) -> str:
    """The id of an identity: 64 hexadecimal digits of SHA-256."""
    return hashlib.sha256(canonical_json(identity).encode("ascii")).hexdigest()


@dataclass(kw_only=True)
class Record:
    """What is known about one cell; the fields stand in the file in this order, after `schema`.

    metrics: `mean` {metric: fraction or null}, `categories` {category: the same}, `counts` {category: {"normal", "anomalous"}} of
        the tested images, `bounds` {category: {metric: largest possible error}}, `undefined` {category: {metric: why it is null}}.
    """

    id: str  # sha256 of the identity
    status: str  # one of STATUSES; started: running, or interrupted; trained: its model is kept, nothing is tested yet
    label: str  # the method's name in tables, with the parameters that differ from the default
    identity: dict[str, Any]  # everything that may legitimately change a number, in clear
    metrics: dict[str, Any] = field(default_factory=dict)  # fractions: mean, categories, counts, bounds, undefined; {} until done
    samples: dict[str, str] | None = None  # {"file", "sha256"} of the per-image scores beside the record
    support: list[str] = field(default_factory=list)  # the drawn support images, relative to the data root
    skipped: list[dict[str, str]] = field(default_factory=list)  # {"file", "status", "message"} of each finding of a lenient scan
    marks: list[str] = field(default_factory=list)  # why the numbers are not comparable with published ones
    stamp: dict[str, Any] = field(default_factory=dict)  # code, packages, hardware, flags (harness/stamp.py)
    cost: dict[str, Any] = field(default_factory=dict)  # fit_s, predict_images_per_s, peak_memory_mb, parameters_total, ...
    started: str = ""  # UTC, ISO 8601
    finished: str = ""  # UTC, ISO 8601; "" while running
    notes: list[str] = field(default_factory=list)  # what a reader should know, e.g. a halved batch
    error: dict[str, str] | None = None  # {"type", "message", "traceback"} of a failed cell

    @property
    def id12(self) -> str:
        """The id as file names and tables show it."""
        return self.id[:12]

    @property
    def hardware(self) -> str:
        """Hardware class, or "unknown"."""
        return str(self.stamp.get("hardware", "unknown"))

    def mean(self, metric: str) -> float | None:
        """The mean over categories as a fraction, or None where it has no value."""
        value = self.metrics.get("mean", {}).get(metric)
        return None if value is None else float(value)

    def as_document(self) -> dict[str, Any]:
        """The record as the JSON object that is written, in the fixed key order."""
        return {"schema": SCHEMA, **{item.name: getattr(self, item.name) for item in fields(self)}}


_FIELDS = tuple(item.name for item in fields(Record))


def timestamp() -> str:
    """Now, in UTC, as records write it: ISO 8601 to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def new_record(identity: Mapping[str, Any], label: str, **others: Any) -> Record:
    """A `started` record of an identity (its id is computed); the other fields may be given."""
    plain = json.loads(canonical_json(identity))
    return Record(**{"id": identity_id(plain), "status": "started", "label": label, "identity": plain, **others})


# --- text and back --------------------------------------------------------------------------------------------------


def to_text(record: Record) -> str:
    """The record as file text. Raises `RecordError` when it is not a valid record: nothing invalid ever reaches the disk."""
    document = record.as_document()
    _check(document, "record")
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"Record {record.id12} ({record.label}) holds what JSON cannot say: {error}.") from error


def from_bytes(data: bytes, name: str = "record") -> Record:
    """The record in a file's bytes; `name` stands in messages. Raises only `RecordError`."""
    try:
        document = parse_json(data)
    except ValueError as error:
        raise RecordError(f"{name} is not a record: {error}.", "Move the file away, or run the cell again.") from error
    if not isinstance(document, dict) or not _is_int(document.get("schema")):
        raise RecordError(f"{name} is not a record: expected an object with a number 'schema'.", "Move the file away.")
    schema = document["schema"]
    if schema > SCHEMA:
        raise RecordError(f"{name} has schema {schema}, this bench reads <= {SCHEMA}.", "Type: pip install --upgrade inpbench")
    while schema < SCHEMA:
        if schema not in MIGRATIONS:
            raise RecordError(f"{name} has schema {schema}, which no release has written.", "Move the file away.")
        try:
            document = MIGRATIONS[schema](document)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RecordError(f"{name}: schema {schema} cannot be brought up to date: {error!r}.") from error
        schema += 1
    _check(document, name)
    return Record(**{key: document[key] for key in _FIELDS})


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    """A number that a float can hold: JSON also allows 1e999 and integers of a thousand digits."""
    return isinstance(value, (int, float)) and value is not True and value is not False and -_LARGEST <= value <= _LARGEST


def _check(document: dict[str, Any], name: str) -> None:
    """Raise `RecordError` unless the document follows the schema, field by field."""

    def need(condition: bool, text: str) -> None:
        if not condition:
            raise RecordError(f"{name}: {text}.", "Move the file away, or run the cell again.")

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    def text_dict(value: Any, keys: Sequence[str]) -> bool:
        return isinstance(value, dict) and set(value) == set(keys) and all(isinstance(item, str) for item in value.values())

    unknown, absent = set(document) - {"schema", *_FIELDS}, set(_FIELDS) - set(document)
    need(not unknown, f"unknown keys {sorted(map(str, unknown))}")
    need(not absent, f"keys missing: {sorted(absent)}")
    need(document["status"] in STATUSES, f"status must be one of {', '.join(STATUSES)}, found {document['status']!r}")
    for key in ("id", "label", "started", "finished"):
        need(isinstance(document[key], str), f"'{key}' must be a text")
    for key in ("support", "marks", "notes"):
        need(texts(document[key]), f"'{key}' must be a list of texts")
    for key in ("stamp", "cost"):
        need(isinstance(document[key], dict), f"'{key}' must be an object")
        canonical_json(document[key])
    skipped = document["skipped"]
    need(isinstance(skipped, list), "'skipped' must be a list")
    need(all(text_dict(item, ("file", "status", "message")) for item in skipped), "'skipped' holds {file, status, message}")
    error, samples = document["error"], document["samples"]
    need(error is None or text_dict(error, _ERROR_PARTS), "'error' must be null or {type, message, traceback}")
    need((error is not None) == (document["status"] == "failed"), "'error' belongs to the status 'failed', and to no other")
    need(samples is None or text_dict(samples, ("file", "sha256")), "'samples' must be null or {file, sha256}")
    need(samples is None or samples["file"] == Path(samples["file"]).name != "", "'samples.file' must be a plain file name")
    _check_identity(document, need)
    _check_metrics(document, need)


def _check_identity(document: dict[str, Any], need: Callable[[bool, str], None]) -> None:
    identity = document["identity"]
    need(isinstance(identity, dict), "'identity' must be an object")
    for key, types in _IDENTITY_TYPES.items():
        if type(identity.get(key, ...)) not in types:
            need(key in identity, f"identity has no '{key}'")
            need(False, f"identity.{key} must be {' or '.join(t.__name__ for t in types)}, found {type(identity[key]).__name__}")
    need(all(isinstance(item, str) for item in identity["categories"]), "identity.categories must be texts")
    expected = identity_id(identity)
    need(document["id"] == expected, f"id {document['id'][:12]} does not follow from the identity ({expected[:12]}): it was edited")


def _check_metrics(document: dict[str, Any], need: Callable[[bool, str], None]) -> None:
    metrics = document["metrics"]
    need(isinstance(metrics, dict), "'metrics' must be an object")
    if not metrics and document["status"] != "done":
        return
    need(set(metrics) == set(_METRIC_PARTS), f"'metrics' must have {', '.join(_METRIC_PARTS)}")
    need(all(isinstance(metrics[part], dict) for part in _METRIC_PARTS), "the parts of 'metrics' must be objects")

    def numbers(where: str, table: Any, nullable: bool = True) -> None:
        need(isinstance(table, dict), f"metrics.{where} must be an object")
        for key, value in table.items():
            if (value is None and nullable) or _is_finite(value):
                continue
            expected = "a finite number or null" if nullable else "a finite number"
            need(False, f"metrics.{where}.{key} must be {expected}, found {value!r}")

    numbers("mean", metrics["mean"])
    for part in ("categories", "bounds", "counts"):
        for category, table in metrics[part].items():
            numbers(f"{part}.{category}", table, nullable=part != "counts")
    for category, table in metrics["undefined"].items():
        good = isinstance(table, dict) and all(isinstance(reason, str) for reason in table.values())
        need(good, f"metrics.undefined.{category} must hold reasons as texts")
    _check_numbers(metrics, document["identity"]["categories"], need)


def _same(a: float | None, b: float | None) -> bool:
    """Whether two means, or their absences, are one up to rounding."""
    return a is b if a is None or b is None else abs(a - b) <= _ROUNDING * max(1.0, abs(b))


def _check_numbers(metrics: dict[str, Any], categories: list[str], need: Callable[[bool, str], None]) -> None:
    """What one changed digit would break: all categories are there, fractions are fractions, each mean follows from its parts."""
    tables = metrics["categories"]
    need(set(tables) == set(categories), "metrics.categories are not the categories of the identity")
    need(set(metrics["counts"]) == set(categories), "metrics.counts are not of the categories of the identity")
    for category, table in metrics["counts"].items():
        need(all(_is_int(value) and value >= 0 for value in table.values()), f"metrics.counts.{category} must count images")
    for where, table in [("mean", metrics["mean"]), *((f"categories.{name}", table) for name, table in tables.items())]:
        for metric, value in table.items():
            if value is not None and metric in METRICS and not -1e-6 <= value <= 1 + 1e-6:
                need(False, f"metrics.{where}.{metric} must be a fraction, found {value!r}")
    for metric, mean in metrics["mean"].items():
        values = [table.get(metric) for table in tables.values()]
        known = [value for value in values if value is not None]
        expected = math.fsum(known) / len(known) if known and len(known) == len(values) else None
        if not _same(mean, expected):
            found = f"metrics.mean.{metric} {mean!r} does not follow from its categories ({expected!r})"
            need(False, f"{found}: the file was edited or damaged")


# --- the folder -----------------------------------------------------------------------------------------------------


@dataclass
class Listing:
    """Records of a folder, and what could not be read of it."""

    records: list[Record] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


def _folder_name(text: str) -> str:
    """A name as one harmless folder: `package/method` and `a,b` become one level, and nothing climbs out of the store."""
    return re.sub(r"[^\w.+-]+", "_", text).lstrip(".")[:100] or "_"


class RecordStore:
    """A folder of records: `<dataset>/<setting>/<method>/<id12>.json`, and the scores beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def path_of(self, identity: Mapping[str, Any]) -> Path:
        """Where the record of an identity lies, whether it is there or not."""
        levels = (_folder_name(str(identity[key])) for key in ("dataset", "setting", "method"))
        return self.folder.joinpath(*levels, f"{identity_id(identity)[:12]}.json")

    def read(self, path: Path) -> Record:
        """The record in a file; raises `RecordError` for anything else."""
        try:
            data = read_bytes(path)
        except OSError as error:
            raise RecordError(f"Cannot read {path}: {error.strerror or error}.", "Move it away, or run the cell again.") from error
        return from_bytes(data, str(path))

    def write(self, record: Record) -> Path:
        """Write atomically, then drop the scores of earlier runs of this cell. Raises `RecordError`; the old record then stands."""
        path = self.path_of(record.identity)
        text = to_text(record)
        # A path on disk that is no UTF-8 reaches us with lone surrogates; JSON can carry them only as escapes.
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            data = (json.dumps(record.as_document(), ensure_ascii=True, allow_nan=False, indent=1) + "\n").encode("ascii")
        write_bytes(path, data)
        if record.status == "done":
            keep = record.samples["file"] if record.samples else ""
            for old in path.parent.glob(f"{record.id12}.*.npz"):
                if old.name != keep:
                    with contextlib.suppress(OSError):  # a left-over costs space, never correctness
                        old.unlink()
        return path

    def find(self, id: str) -> Record | None:
        """The readable record of a full id, or of a beginning of at least 6 digits; None where there is none.

        Raises `UsageError` when a beginning fits several records. A broken file is no record: its cell counts as not run.
        """
        if not re.fullmatch(r"[0-9a-f]{6,64}", id):
            return None
        found = {}
        for path in sorted(self.folder.glob(f"*/*/*/{id[:12]}*.json")):
            with contextlib.suppress(RecordError):
                record = self.read(path)
                if record.id.startswith(id):
                    found[path] = record
        if len({record.id for record in found.values()}) > 1:
            raise UsageError(f"{id} fits {len(found)} records: {', '.join(r.id12 for r in found.values())}.", "Type more digits.")
        return next((record for path, record in found.items() if path == self.path_of(record.identity)), None)

    def all(self, **filters: Any) -> Listing:
        """All records, sorted by path; what cannot be read becomes a warning and is left where it is.

        filters: `dataset`, `setting`, `method`, `shots`, `seed`, ... (identity keys) or `status`, `label`; a value, or a
        list, tuple or set of accepted values; None accepts everything.
        """
        listing = Listing()
        wanted = {key: _accepted(value) for key, value in filters.items() if value is not None}
        for path in sorted(self.folder.glob("*/*/*/*.json")):
            try:
                record = self.read(path)
            except RecordError as error:
                listing.warnings.append(f"skipped: {error.message}")
                continue
            if path != self.path_of(record.identity):  # a copy of before the cell was run again would pass for its number
                listing.warnings.append(f"skipped: {path} is a copy, record {record.id12} is {self.path_of(record.identity)}.")
                continue
            if all((getattr(record, k) if k in ("status", "label") else record.identity.get(k)) in v for k, v in wanted.items()):
                listing.records.append(record)
        return listing

    def write_samples(self, identity: Mapping[str, Any], samples: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, str]:
        """Save `{category: {"image": paths, "score": floats, "label": ints}}` beside the record; gives `Record.samples`."""
        data = pack(samples)
        digest = hashlib.sha256(data).hexdigest()
        path = self.path_of(identity)
        file = path.with_name(f"{path.stem}.{digest[:8]}.npz")
        write_bytes(file, data)
        return {"file": file.name, "sha256": digest}

    def read_samples(self, record: Record) -> Samples:
        """`{category: {"image", "score", "label"}}`, arrays (N,); raises `RecordError` when the file was changed or is gone."""
        again = "Run the cell again with --force."
        if record.samples is None:
            raise RecordError(f"Record {record.id12} has no per-image scores.", again)
        path = self.path_of(record.identity).with_name(record.samples["file"])
        try:
            data = read_bytes(path, most=LARGEST_SAMPLES)
        except OSError as error:
            raise RecordError(f"Cannot read {path}: {error.strerror or error}.", again) from error
        if hashlib.sha256(data).hexdigest() != record.samples["sha256"]:
            raise RecordError(f"{path} is not the file that record {record.id12} was written with.", again)
        return unpack(data, str(path))


def _accepted(value: Any) -> Sequence[Any]:
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
