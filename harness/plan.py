"""From a request to cells: what would be run, what is done, and what is impossible and why, before any work.

A cell is one method (with resolved parameters) x data set x setting x shots x seed. Its identity holds, in clear, everything
that may change its numbers; `id = sha256(canonical identity)`. Where it ran (device, host, batch of evaluation) is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inpbench.harness import params as parameters
from inpbench.harness.api import DatasetInfo, MethodInfo
from inpbench.harness.errors import BenchError, UsageError, did_you_mean
from inpbench.harness.registry import DATASETS, METHODS
from inpbench.harness.roots import locate
from inpbench.harness.settings import Setting, get_setting

if TYPE_CHECKING:
    from inpbench.harness.manifest import Manifest
    from inpbench.harness.metrics import Variant
    from inpbench.harness.records import Record, RecordStore
    from inpbench.harness.scoring import Scoring
    from inpbench.harness.weights import WeightStore

IDENTITY_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; every field is one option of `bench run`."""

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    setting: str = "multi_class"
    seeds: tuple[int, ...] = (1,)  # 1 is the originals' seed
    shots: tuple[int, ...] = ()
    preset: str = "paper"
    encoder: str | None = None
    changes: dict[str, dict[str, str]] = field(default_factory=dict)  # --set, by method or data set
    data_root: Path | None = None
    categories: tuple[str, ...] = ()  # () is all
    limit: int | None = None
    strict: bool = True
    engine: Literal["fast", "reference"] = "fast"
    variant: Variant = "exact"
    checkpoint: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number-giving unit of work, or the reason why there is none."""

    method: MethodInfo
    params: Any
    label: str
    dataset: DatasetInfo
    setting: Setting
    seed: int
    shots: int
    status: Literal["todo", "done", "impossible"]
    reason: str = ""  # why it is impossible, or what is known of earlier tries
    manifest: Manifest | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    refusal: BenchError | None = None  # the error behind `impossible`
    request: Request | None = None

    def summary(self) -> dict[str, Any]:
        """The cell as JSON-able data, for `--dry-run --json`."""
        return {
            "method": self.method.name,
            "label": self.label,
            "dataset": self.dataset.name,
            "setting": self.setting.name,
            "shots": self.shots,
            "seed": self.seed,
            "status": self.status,
            "reason": self.reason,
            "id": self.id,
            "params": parameters.plain(self.params),
        }


def marks_of(cell: Cell) -> list[str]:
    """Why the cell's numbers are not comparable with published ones; shown in every table."""
    marks = []
    weights = cell.identity.get("weights", {})
    if any(str(value).startswith("builtin") for value in weights.values()):
        marks.append("built-in encoder")
    if "random" in weights.values():
        marks.append("random weights")
    if cell.identity.get("limit") is not None:
        marks.append(f"limited to {cell.identity['limit']} images a group")
    return marks


def make_plan(request: Request, store: RecordStore, weights: WeightStore, scoring: Scoring, *, force: bool = False) -> list[Cell]:
    """All cells of a request, in the order they would run. Reads the disk (data listing, weight hashes, records), runs nothing.

    Raises `UsageError` for what no cell could mean (unknown names, bad values) and `DataError` when a data set is absent or,
    in strict mode, broken; a method's own obstacles (weights, setting) make its cells impossible, with the reason.
    """
    setting = get_setting(request.setting)
    _check(request, setting)
    drafts = [_draft(name, request) for name in request.methods]
    cells: list[Cell] = []
    for dataset_name in request.datasets:
        dataset = DATASETS.get(dataset_name)
        refused = bool(setting.refusal)
        manifest = None if refused else _manifest(dataset, request)
        for info, params, label in drafts:
            for shots in request.shots or setting.shots or (0,):
                for seed in request.seeds:
                    cell = Cell(
                        method=info,
                        params=params,
                        label=label,
                        dataset=dataset,
                        setting=setting,
                        seed=seed,
                        shots=shots,
                        status="todo",
                        manifest=manifest,
                        request=request,
                    )
                    cells.append(_decide(cell, request, store, weights, scoring, force))
    return cells


def _check(request: Request, setting: Setting) -> None:
    if not request.methods or not request.datasets:
        raise UsageError("bench run needs --methods and --dataset.", "Type for example: bench run -m inp_former -d synthetic")
    if len(request.datasets) > 1 and request.data_root is not None:
        raise UsageError(
            "--data-root names one data set, but several are asked for.",
            "Type: export INPBENCH_DATA=DIR, with one folder a data set",
        )
    if request.shots and not setting.shots:
        raise UsageError(f"{setting.name} has no shots.", "Leave --shots out, or type: --setting few_shot")
    if request.checkpoint is not None and (len(request.methods) > 1 or setting.unit == "category"):
        raise UsageError(
            "--checkpoint is one model of one method; this run has several.", "Type: --methods NAME --setting multi_class"
        )
    owners = {*request.methods, *request.datasets}
    for owner in request.changes:
        if owner not in owners:
            raise UsageError(
                f"--set {owner}.…: '{owner}' is not part of this run. {did_you_mean(owner, owners)}",
                f"Type: --set {request.methods[0]}.KEY=VALUE",
            )


def _draft(name: str, request: Request) -> tuple[MethodInfo, Any, str]:
    """A method's info, its resolved parameters and its name in tables."""
    info = METHODS.get(name)
    if request.preset not in info.presets:
        raise UsageError(
            f"{name} has no preset '{request.preset}'. {did_you_mean(request.preset, info.presets)}", "Type: bench list methods"
        )
    encoder = {}
    if request.encoder is not None and "encoder" in parameters.field_types(info.params):
        encoder = {"encoder": request.encoder}
    preset = info.presets[request.preset]
    params = parameters.build(name, info.params, preset, encoder, request.changes.get(name, {}))
    # The yardsticks' presets change nothing: they are called by their name alone.
    shown = request.preset if preset else "paper"
    return info, params, parameters.label(name, shown, params, info.params(**preset))


def _manifest(dataset: DatasetInfo, request: Request) -> Manifest:
    from inpbench.harness.manifest import open_manifest

    dataset_params = parameters.build(dataset.name, dataset.params, request.changes.get(dataset.name, {}))
    root = locate(dataset, dataset_params, request.data_root)
    manifest = open_manifest(dataset, dataset_params, root, request.strict, request.categories or None)
    if request.limit is not None:
        manifest = manifest.limit(request.limit)
    return manifest


def _decide(cell: Cell, request: Request, store: RecordStore, weights: WeightStore, scoring: Scoring, force: bool) -> Cell:
    """Give a cell its identity and its status."""
    if cell.setting.refusal:
        return replace(cell, status="impossible", reason=cell.setting.refusal)
    if cell.setting.name not in cell.method.settings:
        known = ", ".join(sorted(cell.method.settings))
        return replace(cell, status="impossible", reason=f"{cell.method.name} supports {known}")
    try:
        identity = identity_of(cell, request, weights, scoring)
    except BenchError as error:
        return replace(cell, status="impossible", reason=error.message, refusal=error)
    from inpbench.harness.records import identity_id

    cell = replace(cell, identity=identity, id=identity_id(identity))
    known_record = store.find(cell.id)
    if known_record is None:
        return cell
    if known_record.status == "done" and not force:
        return replace(cell, status="done", reason=f"record {cell.id[:12]}")
    return replace(cell, reason=_history(known_record))


def _history(record: Record) -> str:
    if record.status == "failed":
        what = record.error["type"] if record.error else "an error"
        return f"failed before with {what}, tried again"
    if record.status == "started":
        return "was interrupted, goes on from its last snapshot"
    return "done before, run again (--force)"


def identity_of(cell: Cell, request: Request, weights: WeightStore, scoring: Scoring) -> dict[str, Any]:
    """The identity document of a cell: plain data, in clear, versioned. Raises `WeightsError` when weights are missing."""
    assert cell.manifest is not None
    preprocess = cell.params.preprocess
    return {
        "v": IDENTITY_VERSION,
        "method": cell.method.name,
        "method_version": cell.method.version,
        "params": parameters.plain(cell.params),
        "setting": cell.setting.name,
        "setting_version": cell.setting.version,
        "shots": cell.shots,
        "seed": cell.seed,
        "source": None,
        "dataset": cell.dataset.name,
        "dataset_version": cell.dataset.version,
        "dataset_params": parameters.plain(cell.manifest.params),
        "manifest": f"sha256:{cell.manifest.sha256}",
        "categories": list(cell.manifest.categories),
        "input": _jsonable(asdict(preprocess)),
        "scoring": _jsonable(asdict(scoring)),
        "metrics": {"suite": _suite_version(), "variant": request.variant},
        "weights": {
            # An official checkpoint holds its encoder: no other file is looked for.
            spec.name: "in the checkpoint" if request.checkpoint and spec.source == "file" else weights.identity(spec)
            for spec in cell.method.weights(cell.params)
        },
        "engine": request.engine,
        "limit": request.limit,
        "selection": "last",
        "checkpoint": None if request.checkpoint is None else weights.hash_file(request.checkpoint),
    }


def _suite_version() -> int:
    from inpbench.harness.metrics import SUITE_VERSION

    return SUITE_VERSION


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


def counts(cells: Sequence[Cell]) -> dict[str, int]:
    """Number of cells by status, for the headline of a plan."""
    return {status: sum(cell.status == status for cell in cells) for status in ("done", "todo", "impossible")}
