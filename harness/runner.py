"""One cell from its plan to its record: load, fit, predict, score, and save every piece as soon as it exists.

Work of an unfinished cell lies in `<record>.work/`: a snapshot and then the fitted state of each model, and one file for each
tested category. A killed run loses at most the seconds since the last snapshot; the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import shutil
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from inpbench.harness.api import Alone, Context, Progress
from inpbench.harness.atomic import cannot, sweep
from inpbench.harness.category_result import CategoryResult, measured
from inpbench.harness.claims import ClaimedError, claim
from inpbench.harness.cost import Cost, count_cost
from inpbench.harness.draws import Drawing, seed_of
from inpbench.harness.errors import BenchError, UsageError, WeightsError
from inpbench.harness.evaluation import evaluate_category
from inpbench.harness.image_folder import FolderImages
from inpbench.harness.kept_maps import MapKeeper, MapsOf
from inpbench.harness.loading import prepare
from inpbench.harness.marks import claim_in_words, marks_of
from inpbench.harness.models import kept_state, save_model
from inpbench.harness.plan import Cell
from inpbench.harness.records import Record, RecordStore, new_record, timestamp
from inpbench.harness.references import enter
from inpbench.harness.registry import DATASETS, METHODS, resolve
from inpbench.harness.samples import DRAWS
from inpbench.harness.scratch import Scratch
from inpbench.harness.snapshots import Fitting, FolderSnapshots
from inpbench.harness.sources import is_shared, training_id
from inpbench.harness.stamp import code_in_words, code_so_far, hardware_class, hardware_so_far, make_stamp
from inpbench.harness.training import decoded_for_training, fit, shared_model, snapshots_in, support_of
from inpbench.harness.weights import BesideCheckpoint, WeightStore

if TYPE_CHECKING:
    from inpbench.harness.process_group import Team
    from inpbench.harness.scoring import Scoring

log = logging.getLogger("inpbench")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where and how cells run: nothing here may change a number beyond rounding."""

    device: torch.device
    scoring: Scoring
    weights: WeightStore
    eval_batch: int = 16
    snapshot_every_s: float = 30.0
    pixel_cache: bool = True
    keep_models: bool = True
    intervals: bool = True  # draw the bootstrap behind intervals and paired comparisons
    save_maps: MapsOf | None = None  # keep maps and sheets beside the record
    force: bool = False  # train again what is kept, a model that several cells share once in this process
    renewed: set[str] = field(default_factory=set)  # the shared trainings that were
    dtype: torch.dtype = torch.float32
    team: Team | None = None  # the processes that train together; this is its rank 0, or `followers` has it
    notes: tuple[str, ...] = ()  # what a record should say of how its cell was run
    stamp: dict[str, Any] = field(default_factory=dict)  # facts for the stamp that only the caller knows


_SAYS_NOTHING: dict[type, str] = {MemoryError: "the memory is full: less of it is used by --eval-batch 1 and smaller images"}


@dataclass
class Tally:
    """What a run of several cells came to."""

    done: list[Record] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)
    claimed: list[Cell] = field(default_factory=list)  # another bench is at work on them


def run_cells(cells: Sequence[Cell], store: RecordStore, options: Options, progress: Callable[[Cell], Progress]) -> Tally:
    """Run every `todo` cell; a failing one is recorded and the others go on, as past one that another bench is at work on.

    `KeyboardInterrupt` passes through.
    """
    tally = Tally()
    for cell in cells:
        if cell.status != "todo":
            continue
        try:
            record = run_cell(cell, store, options, progress(cell))
        except ClaimedError:
            tally.claimed.append(cell)
            continue
        (tally.failed if record.status == "failed" else tally.done).append(record)
        if options.team is not None and options.team.lost:
            break
    return tally


def run_cell(cell: Cell, store: RecordStore, options: Options, progress: Progress) -> Record:
    """Run one cell and write its record; an exception of the method becomes a `failed` record, never a lost one.

    Where another bench finished the cell after it was planned, its record is the answer. Raises `ClaimedError` where one is at work
    on it, and `RecordError` where not even the failure can be written.
    """
    path = store.path_of(cell.identity)
    with claim(path.with_suffix(".lock"), what=f"cell {cell.id[:12]} ({cell.label})"):
        earlier = store.find(cell.id)
        if earlier is not None and not options.force and _is_finished(earlier, cell):
            return earlier
        for folder in (path.parent, path.with_suffix(".models")):  # ours is the claim, so their writers were killed
            sweep(folder, path.stem if folder == path.parent else "")
        kept = earlier is not None and earlier.status == "done"  # --force: the old numbers stand until there are new ones
        record = _started(cell, options.notes)
        work, phase = path.with_suffix(".work"), cell.request.phase if cell.request else "both"
        if options.force and phase != "test" and earlier is not None and earlier.status == "trained":
            shutil.rmtree(work, ignore_errors=True)
        if not kept:
            store.write(record)
        if options.team is not None:
            options.team.on_loss = partial(record_failure, cell, store, None, options.notes)
        try:
            hardware_so_far(work, options.device)
            code_so_far(work)
            if phase == "train":
                _train(record, cell, work, options, progress, store)
                record.status, record.finished = "trained", timestamp()
                if kept:  # the numbers of the earlier model are not this one's
                    record.notes.append("trained again with --force --phase train: its earlier numbers are no longer here")
                store.write(record)
                return record
            _fill(record, cell, work, options, progress, store)
            record.status, record.finished = "done", timestamp()
            store.write(record)
        except Exception as error:
            first = options.team.settle(error) if options.team is not None else None
            return record_failure(cell, store, error, options.notes, None if first is None or first["rank"] == 0 else first)
        shutil.rmtree(work, ignore_errors=True)
        if kept:
            _drop_the_earlier(path, phase, options)
    return record


def _check_weights(cell: Cell, options: Options) -> None:
    """Raise `WeightsError` where a file that was just read is not the one of the plan: hours may lie between them."""
    assert cell.request is not None
    store = options.weights if cell.request.checkpoint is None else BesideCheckpoint(options.weights)
    now = {spec.name: store.identity(spec) for spec in cell.method.weights(cell.params)}
    if cell.request.checkpoint is not None:
        now["checkpoint"] = options.weights.hash_file(cell.request.checkpoint)
    then = cell.identity["weights"] | {"checkpoint": cell.identity["checkpoint"]}
    if changed := [name for name, identity in now.items() if identity != then[name]]:
        raise WeightsError(
            f"The file of {changed[0]} is another one than when this run was planned.", "Run the same command again."
        )


def _drop_the_earlier(path: Path, phase: str, options: Options) -> None:
    """What lay beside a record that was run again (--force), where this run kept none: it is not of these numbers."""
    if options.save_maps is None:
        shutil.rmtree(path.with_suffix(".maps"), ignore_errors=True)
    if not options.keep_models and phase == "both":  # `test` was done with them
        shutil.rmtree(path.with_suffix(".models"), ignore_errors=True)


def _is_finished(record: Record, cell: Cell) -> bool:
    """Whether the record is all that was asked for; `--phase train` asks for no numbers."""
    training = cell.request is not None and cell.request.phase == "train"
    return record.status == "done" or (training and record.status == "trained")


def record_failure(
    cell: Cell, store: RecordStore, error: Exception | None, notes: Sequence[str] = (), first: dict[str, Any] | None = None
) -> Record:
    """Write the record of a failure, unless a done one stands: what happened in one line, and of a bug the traceback.

    first: what process_group.Team says of another process that failed before this one; it is what is recorded.
    """
    record = _started(cell, notes)
    record.status, record.finished = "failed", timestamp()
    if first is not None:
        message = f"process {first['rank']}: {first['message']}"
        record.error = {"type": first["type"], "message": message, "traceback": first["traceback"]}
        log.error("%s: %s: %s", cell.label, first["type"], message)
    else:
        trace = "" if isinstance(error, BenchError) else "".join(traceback.format_exception(error))
        record.error = {"type": type(error).__name__, "message": _message(error), "traceback": trace}
    earlier = store.find(cell.id)
    if earlier is None or earlier.status != "done":
        store.write(record)
    return record


def _message(error: Exception | None) -> str:
    """What a record says of an error: all that ours says, the first line of another's."""
    if isinstance(error, BenchError):
        return str(error)
    if isinstance(error, OSError):
        return str(cannot(f"use {error.filename or 'the disk'}", error))
    return (str(error).splitlines() or [_SAYS_NOTHING.get(type(error), "")])[0]


def _started(cell: Cell, notes: Sequence[str]) -> Record:
    assert cell.manifest is not None
    shared = f"model of the training {training_id(cell.identity)[:12]}" if is_shared(cell.identity) else ""
    return new_record(
        cell.identity,
        cell.label,
        marks=marks_of(cell),
        support=[sample.image for sample in support_of(cell) or ()],
        skipped=_skipped(cell),
        notes=[*filter(None, (claim_in_words(cell.identity), shared)), *notes],
        started=timestamp(),
    )


def _skipped(cell: Cell) -> list[dict[str, str]]:
    """The findings about everything that the cell was tested and trained on, each once."""
    manifests = [manifest for manifest in (cell.manifest, *cell.trained_on) if manifest is not None]
    found = dict.fromkeys(finding for manifest in manifests for finding in manifest.findings)
    return [{"file": finding.file, "status": finding.status, "message": finding.message} for finding in found]


class Unit(NamedTuple):
    """The categories that one model of a cell is trained on (where no other data set is), and those that it is tested on."""

    trained: tuple[str, ...]
    tested: tuple[str, ...]


def units_of(cell: Cell) -> dict[str, Unit]:
    """The models of a cell by name: `all`, one for each category, or `objects` and `textures` after what they are trained on."""
    assert cell.manifest is not None
    if cell.setting.unit == "category":
        return {category: Unit((category,), (category,)) for category in cell.manifest.categories}
    if cell.setting.unit == "direction":
        objects, textures = (tuple(cell.identity["groups"][kind]) for kind in ("objects", "textures"))
        units = {"objects": Unit(objects, textures), "textures": Unit(textures, objects)}
        return {kind: unit for kind, unit in units.items() if unit.tested}  # a checkpoint is of one kind
    return {"all": Unit(cell.manifest.categories, cell.manifest.categories)}


def seed_everything(seed: int) -> None:
    """Python, numpy and torch (all devices), as the originals do before each model."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _fill(record: Record, cell: Cell, work: Path, options: Options, progress: Progress, store: RecordStore) -> None:
    """Train and test every model of the cell, then complete the record."""
    assert cell.manifest is not None
    _decode(cell, options, progress)
    results: dict[str, CategoryResult] = {}
    cost = Cost.begin(options.device)
    for name, unit in units_of(cell).items():
        finished = {c: r for c in unit.tested if (r := CategoryResult.read(work / "tested", c)) is not None}
        if options.save_maps is not None:  # tested by a killed run without maps: tested again
            finished = {c: r for c, r in finished.items() if MapKeeper.complete(work.with_suffix(".maps"), c)}
        if options.intervals:  # or without intervals, which would then be missing for the mean, too
            finished = {c: r for c, r in finished.items() if DRAWS in r.samples}
        if len(finished) < len(unit.tested):
            finished |= _run_unit(cell, name, finished, work, options, progress, cost, store)
        results |= finished
    results = {c: results[c] for c in cell.manifest.categories}  # in one order, whatever was interrupted
    record.metrics = measured(results)
    record.samples = store.write_samples(record.identity, {c: r.samples for c, r in results.items()})
    record.cost = cost.as_dict(results.values())
    record.skipped = _skipped(cell)
    record.stamp = _stamp(cell, work, cost, options)


def _stamp(cell: Cell, work: Path, cost: Cost, options: Options) -> dict[str, Any]:
    """Where the cell ended, under which versions, and on what other hardware and versions it began."""
    stamp = make_stamp(options.device, eval_batch=options.eval_batch, team=cost.team, **options.stamp)
    if earlier := sorted(hardware_so_far(work, options.device) - {hardware_class(options.device)}):
        stamp["hardware_before"] = earlier
    if earlier := sorted(code_so_far(work) - {code_in_words()}):
        stamp["code_before"] = earlier
    stamp["packages"] |= METHODS.package(cell.method.name) | DATASETS.package(cell.dataset.name)
    return stamp


def _decode(cell: Cell, options: Options, progress: Progress) -> None:
    """Everything first: a strict run meets a broken test image before it trains, and a resumed one notes it again."""
    assert cell.manifest is not None
    prepare(
        cell.manifest,
        cell.manifest.categories,
        cell.params.preprocess,
        options.scoring,
        cache=options.pixel_cache,
        progress=progress,
        train=decoded_for_training(cell),
    )


def _train(record: Record, cell: Cell, work: Path, options: Options, progress: Progress, store: RecordStore) -> None:
    """`--phase train`: every model of the cell, kept as a killed run would leave it; the record tells its cost and no number."""
    _decode(cell, options, progress)
    cost = Cost()
    for unit in units_of(cell):
        method, _, fitting = _trained_method(cell, unit, work, options, progress, cost, store)
        if options.keep_models and not is_shared(cell.identity):
            save_model(work.with_suffix(".models"), unit, cell.id, method.state(), fitting)
        enter(cell, units_of(cell)[unit].tested[0], method, options, progress)  # whose operations are counted
        count_cost(method, cell.params.preprocess.crop, options, cost)
        del method
        free_memory(options)
    record.cost = cost.as_dict(())
    record.skipped = _skipped(cell)
    record.stamp = _stamp(cell, work, cost, options)


def free_memory(options: Options) -> None:
    """The memory of a model that is no longer needed."""
    gc.collect()
    if options.device.type == "cuda":
        torch.cuda.empty_cache()


def build_method(cell: Cell, options: Options, progress: Progress, setting: str, snapshots: FolderSnapshots) -> Any:
    """The method of a cell, untrained, told to be in `setting`; every generator begins anew."""
    assert cell.request is not None
    seed_everything(cell.seed)
    context = Context(
        device=options.device,
        dtype=options.dtype,
        seed=cell.seed,
        setting=setting,
        weights=options.weights if cell.request.checkpoint is None else BesideCheckpoint(options.weights),
        snapshots=snapshots,
        progress=progress,
        shots=cell.shots,
        engine=cell.request.engine,
        array=Scratch(snapshots.folder / "scratch"),
        images=FolderImages,
        ranks=options.team or Alone(),
    )
    method = resolve(cell.method.target)(cell.params, context)
    _check_weights(cell, options)
    return method


def _trained_method(
    cell: Cell, unit: str, work: Path, options: Options, progress: Progress, cost: Cost, store: RecordStore
) -> tuple[Any, FolderSnapshots, Fitting]:
    """One model of a cell, trained now, earlier or elsewhere; where it leaves its snapshots; what its training took.

    Raises `PrerequisiteError` where it would have to be trained, and `--phase test` forbids it.
    """
    assert cell.request is not None
    testing = cell.request.phase == "test" and cell.request.checkpoint is None
    snapshots = snapshots_in(work / "models" / unit, options)
    build = partial(build_method, cell, options, progress)
    # Before the method of this cell is built: a GPU need not hold both.
    shared = shared_model(cell, store, options, progress, build) if is_shared(cell.identity) else None
    method = build(cell.setting.name, snapshots)
    fitted = snapshots.load_fitted() if shared is None else shared.state
    fitting = Fitting(snapshots.earlier_s, snapshots.facts) if shared is None else shared.fitting
    if fitted is None and testing and cell.setting.name not in cell.method.untrained:
        fitted, fitting = kept_state(store, cell.identity, unit)
    if fitted is not None:
        method.load_state(fitted)
    elif cell.request.checkpoint is not None:
        if not hasattr(method, "load_official"):
            raise UsageError(f"{cell.method.name} has no official checkpoints.", "Leave --checkpoint out.")
        method.load_official(options.weights.read_file(cell.request.checkpoint))
        _check_weights(cell, options)
        fitting = Fitting(0.0)  # whatever it was, it is not known
    elif cell.setting.name not in cell.method.untrained:
        fitting = fit(method, cell, cell.setting.name, units_of(cell)[unit].trained, snapshots, options, progress)
    cost.add_fit(fitting)
    return method, snapshots, fitting


def _run_unit(
    cell: Cell,
    name: str,
    finished: Collection[str],
    work: Path,
    options: Options,
    progress: Progress,
    cost: Cost,
    store: RecordStore,
) -> dict[str, CategoryResult]:
    """One model: build, fit (or take up where it was), test the categories that have no result yet."""
    method, snapshots, fitting = _trained_method(cell, name, work, options, progress, cost, store)
    tested = units_of(cell)[name].tested
    results = {}
    for index, category in enumerate(tested):
        progress(index, len(tested), f"testing {category}")
        if category in finished:
            if options.keep_models and cell.method.told_category:  # the kept model knows all of them
                enter(cell, category, method, options, progress)
            continue
        enter_s = enter(cell, category, method, options, progress)
        maps = MapKeeper(work.with_suffix(".maps"), category, options.save_maps) if options.save_maps is not None else None
        seed = seed_of(cell.identity["manifest"], category)
        drawing = Drawing(work / "draws", seed) if options.intervals else None
        with contextlib.ExitStack() as stack:
            if maps is not None:
                stack.enter_context(contextlib.closing(maps))
            if drawing is not None:
                stack.enter_context(contextlib.closing(drawing))
            results[category] = evaluate_category(cell, category, method, options, cost, maps, drawing)
        results[category].enter_s = enter_s
        results[category].write(work / "tested", category)
    progress(len(tested), len(tested), "tested")
    if options.keep_models and (cell.method.told_category or not is_shared(cell.identity)):
        save_model(work.with_suffix(".models"), name, cell.id, method.state(), fitting)
    count_cost(method, cell.params.preprocess.crop, options, cost)
    snapshots.clear()
    del method
    free_memory(options)
    return results
