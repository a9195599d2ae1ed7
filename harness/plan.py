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
from inpbench.harness.api import DatasetInfo, MethodInfo, Preprocess
from inpbench.harness.errors import BenchError, PrerequisiteError, UsageError, did_you_mean
from inpbench.harness.image_folder import in_identity
from inpbench.harness.registry import DATASETS, METHODS
from inpbench.harness.roots import locate
from inpbench.harness.settings import Setting, get_setting, groups_of
from inpbench.harness.sources import in_words, source_of, stated_source
from inpbench.harness.support import draw_of
from inpbench.harness.weights import TO_DOWNLOAD, BesideCheckpoint

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
    data_roots: dict[str, Path] = field(default_factory=dict)  # --data-root NAME=DIR
    source: str | None = None  # the data set that zero_shot and generalist train on
    source_root: Path | None = None
    categories: tuple[str, ...] = ()  # () is all
    limit: int | None = None
    strict: bool = True
    engine: Literal["fast", "reference"] = "fast"
    variant: Variant = "exact"
    checkpoint: Path | None = None
    prompts: Path | None = None  # a folder of <category>.pt, shown in the place of drawn images
    phase: Literal["both", "train", "test"] = "both"  # train: keep the model, test nothing; test: train nothing
    eval_batch: int = 16  # images tested at once; in the identity of the few methods whose scores depend on it


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
    trained_on: tuple[Manifest, ...] = ()  # the data sets of a shared model; (): the manifest's own images
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
            "source": (self.identity.get("source") or {}).get("dataset"),
            "shots": self.shots,
            "seed": self.seed,
            "status": self.status,
            "reason": self.reason,
            "id": self.id,
            "params": parameters.plain(self.params),
        }


def make_plan(request: Request, store: RecordStore, weights: WeightStore, scoring: Scoring, *, force: bool = False) -> list[Cell]:
    """All cells of a request, in the order they would run. Reads the disk (data listing, weight hashes, records), runs nothing.

    Raises `UsageError` for what no cell could mean (unknown names, bad values) and `DataError` when a data set is absent or,
    in strict mode, broken; a method's own obstacles (weights, setting) make its cells impossible, with the reason.
    """
    setting = get_setting(request.setting)
    _check(request, setting)
    drafts = [_draft(name, request) for name in request.methods]
    refused = bool(setting.refusal)
    manifests = [None if refused else _manifest(DATASETS.get(name), request) for name in request.datasets]
    training = [info for info, _, _ in drafts if setting.name not in info.untrained]
    trained_on = () if refused or not training else _trained_on(setting, request, manifests)
    cells: list[Cell] = []
    for dataset, manifest in zip(map(DATASETS.get, request.datasets), manifests, strict=True):
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
                        trained_on=trained_on if info in training else (),
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
            f"Type: --data-root {request.datasets[0]}=DIR for each, or: export INPBENCH_DATA=DIR, with one folder a data set",
        )
    if request.shots and not setting.shots:
        raise UsageError(f"{setting.name} has no shots.", "Leave --shots out, or type: --setting few_shot")
    one_class = setting.unit == "category" and len(request.categories) == 1  # one of the authors' single-class files
    one_kind = setting.unit == "direction" and bool(request.categories)  # `groups_of` refuses objects with textures
    if request.checkpoint is not None and (len(request.methods) > 1 or not (setting.unit == "dataset" or one_class or one_kind)):
        category = "" if setting.unit == "dataset" else f" --categories {(*request.categories, 'NAME')[0]}"
        raise UsageError(
            "--checkpoint is one model of one method; this run has several.", f"Type: --methods {request.methods[0]}{category}"
        )
    if request.checkpoint is not None and request.phase == "train":
        raise UsageError("--phase train has nothing to train: --checkpoint is a trained model.", "Type: --phase test")
    _check_setting(request, setting)
    owners = {*request.methods, *request.datasets, *([request.source] if request.source else [])}
    for owner in request.changes:
        if owner not in owners:
            raise UsageError(
                f"--set {owner}.…: '{owner}' is not part of this run. {did_you_mean(owner, owners)}",
                f"Type: --set {request.methods[0]}.KEY=VALUE",
            )


def _check_setting(request: Request, setting: Setting) -> None:
    """What the setting needs, and what it has no use for."""
    if request.source is not None and not setting.source:
        raise UsageError(f"{setting.name} has no source data set.", "Leave --source out, or type: --setting zero_shot")
    if request.source_root is not None and request.source is None:
        raise UsageError("--source-root is the root of --source, which is not given.", "Type: --source NAME --source-root DIR")
    for name in request.data_roots:
        known = [*request.datasets, *([request.source] if request.source else [])]
        if name not in known:
            raise UsageError(
                f"--data-root {name}=…: '{name}' is no data set of this run. {did_you_mean(name, known)}",
                f"Type: --data-root {known[0]}=DIR",
            )
    if not setting.working:
        return
    if setting.several_datasets and len(request.datasets) < 2 and request.checkpoint is None:
        raise UsageError(
            f"{setting.name} trains one model on several data sets, found one: {request.datasets[0]}.",
            "Type: --dataset mvtec_ad,visa,real_iad",
        )
    if setting.shots and request.checkpoint is not None and len(request.shots) != 1:
        raise UsageError("--checkpoint is one model, trained with one number of shots.", "Type for example: --shots 4")


def _trained_on(setting: Setting, request: Request, manifests: Sequence[Manifest | None]) -> tuple[Manifest, ...]:
    """The data sets of a model that several cells share; none where each cell has its own, a checkpoint, or (yet) no source."""
    if request.checkpoint is not None:
        return ()
    if setting.several_datasets:
        return tuple(manifest for manifest in manifests if manifest is not None)
    if setting.source and request.source is not None:
        return (_manifest(DATASETS.get(request.source), request, as_source=True),)
    return ()


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


def _manifest(dataset: DatasetInfo, request: Request, *, as_source: bool = False) -> Manifest:
    """The listing of a data set of the request; a source is taken with all its categories."""
    from inpbench.harness.manifest import open_manifest

    dataset_params = parameters.build(dataset.name, dataset.params, request.changes.get(dataset.name, {}))
    given = request.source_root if as_source else request.data_root
    root = locate(dataset, dataset_params, given or request.data_roots.get(dataset.name))
    categories = () if as_source else request.categories
    manifest = open_manifest(dataset, dataset_params, root, request.strict, categories or None)
    if request.limit is not None:
        manifest = manifest.limit(request.limit)
    return manifest


def _decide(cell: Cell, request: Request, store: RecordStore, weights: WeightStore, scoring: Scoring, force: bool) -> Cell:
    """Give a cell its identity and its status."""
    from inpbench.harness.category_result import check_names
    from inpbench.harness.records import identity_id

    if reason := unsupported(cell.method, cell.setting):
        return replace(cell, status="impossible", reason=reason)
    try:
        identity = identity_of(cell, request, weights, scoring)
        _check_alone(cell)
        check_names(identity["categories"], store.folder)
    except BenchError as error:
        return replace(cell, status="impossible", reason=error.message, refusal=error)
    if TO_DOWNLOAD in identity["weights"].values():
        return replace(cell, reason="its weights would be downloaded; whether it is done is known only then")
    cell = replace(cell, identity=identity, id=identity_id(identity))
    known_record = store.find(cell.id)
    if known_record is not None and not force:
        if known_record.status == "done":
            return replace(cell, status="done", reason=f"record {cell.id[:12]}")
        if known_record.status == "trained" and request.phase == "train":
            return replace(cell, status="done", reason=f"trained, not tested yet: record {cell.id[:12]}")
    if request.phase == "test" and request.checkpoint is None and (refusal := _untrained(cell, store)) is not None:
        return replace(cell, status="impossible", reason=refusal.message, refusal=refusal)
    return replace(cell, reason=_earlier(cell, store) if known_record is None else _history(known_record))


def unsupported(method: MethodInfo, setting: Setting) -> str:
    """Why a method cannot run in a setting, or an empty text."""
    if setting.refusal:
        return setting.refusal
    if setting.name not in method.settings:
        return f"{method.name} supports {', '.join(sorted(method.settings))}"
    return ""


def _untrained(cell: Cell, store: RecordStore) -> BenchError | None:
    """Why `--phase test` cannot test a cell; None where its model is kept."""
    from inpbench.harness.models import is_trained

    if cell.setting.name in cell.method.untrained or is_trained(store, cell.identity):
        return None
    return PrerequisiteError(
        f"--phase test trains nothing, and {store.folder} has no model of {cell.label}, {cell.dataset.name}, {setting_of(cell)}.",
        "Type: the same command with --phase train, or without --phase; or give --checkpoint model.pth.",
    )


def _earlier(cell: Cell, store: RecordStore) -> str:
    """That there are numbers of files of these names and sizes, in a record of before manifests saw what is in the files."""
    from inpbench.harness.records import identity_id

    assert cell.manifest is not None
    known = store.find(identity_id(cell.identity | {"manifest": cell.manifest.earlier_identity}))
    if known is None or known.status != "done" or known.id == cell.id:
        return ""
    return f"record {known.id12} knows the names and sizes of its images, not what was in them"


def _history(record: Record) -> str:
    if record.status == "failed":
        what = record.error["type"] if record.error else "an error"
        return f"failed before with {what}, tried again"
    if record.status == "trained":
        return "trained, not tested yet"
    if record.status == "started":
        return "was interrupted, goes on from its last snapshot"
    return "done before, run again (--force)"


def _check_alone(cell: Cell) -> None:
    """Raise `UsageError` where one model would learn the anomalies of each category as normal images of the others."""
    manifest = cell.manifest
    assert manifest is not None
    together = cell.setting.unit == "dataset" and not cell.setting.source and not cell.method.told_category
    if together and getattr(manifest.params, "alone", False) and len(manifest.categories) > 1:
        raise UsageError(
            f"{cell.setting.name}: what is anomalous in one category of {cell.dataset.name} is normal in the others, "
            "so that one model of all of them has seen every anomaly as normal.",
            f"Type: --setting single_class, or: --set {cell.dataset.name}.protocol=multi_class",
        )


def identity_of(cell: Cell, request: Request, weights: WeightStore, scoring: Scoring) -> dict[str, Any]:
    """The identity document of a cell: plain data, in clear, versioned. Raises `WeightsError` when weights are missing."""
    assert cell.manifest is not None
    _check_source(cell, request)
    chosen: dict[str, Any] = {}
    # Which images a checkpoint was trained on is not known; which a method is shown of the category is.
    if request.prompts is not None:
        chosen["prompts"] = _prompts(cell, request.prompts)
    elif cell.setting.shots and (request.checkpoint is None or cell.method.told_category):
        chosen["support"] = draw_of(cell.manifest, cell.shots, cell.seed, prompts=cell.setting.anomalies)
    if getattr(cell.params, "batch_dependent", False):
        chosen["eval_batch"] = request.eval_batch
    if cell.setting.unit == "direction":
        chosen["groups"] = groups_of(cell.dataset, cell.manifest.categories, one=request.checkpoint is not None)
    preprocess = cell.params.preprocess
    source = weights if request.checkpoint is None else BesideCheckpoint(weights)
    return {
        "v": IDENTITY_VERSION,
        "method": cell.method.name,
        "method_version": cell.method.version,
        "params": in_identity(cell.method, parameters.plain(cell.params)),
        "setting": cell.setting.name,
        "setting_version": cell.setting.version,
        "shots": cell.shots,
        "seed": cell.seed,
        "source": _source(cell, request),
        "dataset": cell.dataset.name,
        "dataset_version": cell.dataset.version,
        "dataset_params": parameters.plain(cell.manifest.params),
        "manifest": cell.manifest.identity,
        "categories": list(cell.manifest.categories),
        "input": _input(preprocess),
        "scoring": _jsonable(asdict(scoring)),
        "metrics": {"suite": _suite_version(), "variant": request.variant},
        "weights": {spec.name: source.identity(spec) for spec in cell.method.weights(cell.params)},
        "engine": request.engine,
        "limit": request.limit,
        "selection": getattr(cell.params, "selection", "last"),
        "checkpoint": None if request.checkpoint is None else weights.hash_file(request.checkpoint),
        **chosen,
    }


def _prompts(cell: Cell, folder: Path) -> dict[str, str]:
    """Hashes of the prompt files of the tested categories; `UsageError` where they would not be all that a method sees of them."""
    from inpbench.harness.prompt_files import prompt_hashes

    assert cell.manifest is not None
    trains = not cell.setting.source and cell.setting.name not in cell.method.untrained
    if not cell.method.told_category or not cell.setting.shots or trains:
        raise UsageError(
            f"--prompts are shown to a method that is told the category and learned elsewhere; {cell.method.name} in "
            f"{cell.setting.name} is none.",
            "Type for example: --methods inctrl --setting generalist --shots 2",
        )
    return prompt_hashes(folder, cell.manifest.categories)


def _check_source(cell: Cell, request: Request) -> None:
    """Raise `UsageError` where a setting trains on another data set, and there is none, or one that holds the tested images."""
    assert cell.manifest is not None
    if not cell.setting.source or cell.setting.name in cell.method.untrained:
        return
    if request.checkpoint is not None:
        if request.source == cell.dataset.name and cell.dataset.categories:  # a published set, by its user's own words
            raise UsageError(
                f"{cell.setting.name}: the checkpoint was trained on {request.source}, which is what would be tested.",
                "Test another --dataset, or type: --setting multi_class",
            )
        return
    if not cell.trained_on:
        ours = "real_iad"
        if cell.setting.anomalies:  # InCTRL's rule
            ours = "visa" if cell.dataset.name == "mvtec_ad" else "mvtec_ad"
        raise UsageError(
            f"{cell.setting.name} is trained on another data set than it is tested on, and none is named.",
            f"Type: --source {ours} [--source-root DIR], or: --checkpoint model.pth",
        )
    tested = {sample.image for sample in cell.manifest.samples}
    for source in cell.trained_on:
        if source.root.resolve() == cell.manifest.root.resolve() and not tested.isdisjoint(s.image for s in source.samples):
            raise UsageError(
                f"{cell.setting.name}: source and target are the same images ({cell.dataset.name} in {cell.manifest.root}).",
                "Choose another --source, or type: --setting multi_class",
            )
        missing = [name for name, label in (("normal", 0), ("anomalous", 1)) if all(s.label != label for s in source.samples)]
        if cell.setting.anomalies and missing:
            raise UsageError(
                f"{cell.setting.name} learns from normal and anomalous images; {source.info.name} in {source.root} has no "
                f"{missing[0]} one.",
                "Choose another data set: --source NAME",
            )


def _source(cell: Cell, request: Request) -> dict[str, Any] | None:
    """What was trained on, where it is not the data set that is tested."""
    if cell.setting.name in cell.method.untrained:
        return None
    if cell.trained_on:
        return source_of(cell.setting, cell.trained_on)
    shared = cell.setting.source or cell.setting.several_datasets
    return stated_source(request.source) if shared else None


def _input(preprocess: Preprocess) -> dict[str, Any]:
    """The preprocessing in clear; a field that came later enters only where it is used, so that earlier records keep their id."""
    fields: dict[str, Any] = _jsonable(asdict(preprocess))
    if not preprocess.own_mode:
        del fields["own_mode"]
    return fields


def _suite_version() -> int:
    from inpbench.harness.metrics import SUITE_VERSION

    return SUITE_VERSION


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


def setting_of(cell: Cell) -> str:
    """The setting in words: `few_shot k=4`, `zero_shot from real_iad`."""
    shots = f"k={cell.shots}" if cell.shots else ""
    source = in_words(cell.identity) if cell.identity else ""
    return " ".join(filter(None, (cell.setting.name, shots, source)))


def counts(cells: Sequence[Cell]) -> dict[str, int]:
    """Number of cells by status, for the headline of a plan."""
    return {status: sum(cell.status == status for cell in cells) for status in ("done", "todo", "impossible")}
