"""`bench run`: plan, print the plan, run what is to do, print the leaderboard of what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from inpbench.harness import errors
from inpbench.harness.cli import run_options as option
from inpbench.harness.cli.options import Json, Results, Set, results_folder, split_ints, split_names
from inpbench.harness.cli.where import Where, check_device, execute, follow_team, gather_team
from inpbench.harness.errors import NothingError

if TYPE_CHECKING:
    from inpbench.harness.console import Live
    from inpbench.harness.plan import Cell, Request
    from inpbench.harness.records import RecordStore
    from inpbench.harness.runner import Tally
    from inpbench.harness.scale.shares import Wish


def run(
    methods: option.Methods,
    dataset: option.Datasets,
    setting: option.SettingName = "multi_class",
    seeds: option.Seeds = "1",
    shots: option.Shots = "",
    preset: option.Preset = "paper",
    encoder: option.Encoder = None,
    weights: option.Weights = None,
    download: option.Download = False,
    set_: Set = None,
    data_root: option.DataRoots = None,
    source: option.Source = None,
    source_root: option.SourceRoot = None,
    categories: option.Categories = "",
    limit: option.Limit = None,
    checkpoint: option.Checkpoint = None,
    prompts: option.Prompts = None,
    phase: option.PhaseName = option.Phase.both,
    variant: option.VariantName = option.Variant.exact,
    mask_rule: option.MaskRuleName = option.MaskRule.gt05,
    engine: option.EngineName = option.Engine.fast,
    device: option.Device = "auto",
    eval_batch: option.EvalBatch = 16,
    strict: option.Strict = True,
    pixel_cache: option.PixelCache = True,
    keep_models: option.KeepModels = True,
    intervals: option.Intervals = True,
    save_maps: option.SaveMaps = False,
    maps_of: option.MapsOfText = option.SOME_MAPS,
    results: Results = None,
    force: option.Force = False,
    dry_run: option.DryRun = False,
    json_: Json = False,
    display: option.Display = option.DisplayMode.auto,
    snapshot_every: option.SnapshotEvery = 30.0,
    ray: option.Ray = None,
    ray_gpus: option.RayGpus = None,
    ray_cpus: option.RayCpus = None,
    ray_retries: option.RayRetries = None,
) -> None:
    """Train and test methods on data sets, side by side; running the same command again goes on where it stopped.

    bench run --methods inp_former,dinomaly --dataset visa
    """
    from inpbench.harness.params import split_settings
    from inpbench.harness.plan import Request

    wish = option.ray_wish(ray, ray_gpus, ray_cpus, ray_retries)
    root, roots = option.split_roots(data_root or [], [*split_names(dataset), *split_names(source)])
    request = Request(
        methods=split_names(methods),
        datasets=split_names(dataset),
        setting=setting,
        seeds=option.some_ints(seeds, "--seeds"),
        shots=split_ints(shots, "--shots"),
        preset=preset,
        encoder=encoder,
        changes=split_settings(set_ or []),
        data_root=root,
        data_roots=roots,
        source=source,
        source_root=source_root,
        categories=split_names(categories),
        limit=limit,
        strict=strict,
        engine=engine.value,
        variant=variant.value,
        checkpoint=checkpoint,
        prompts=prompts,
        phase=phase.value,
        eval_batch=eval_batch,
    )
    options = {
        "snapshot_every_s": option.seconds(snapshot_every, "--snapshot-every"),
        "pixel_cache": pixel_cache,
        "keep_models": keep_models,
        "intervals": intervals,
        **_made(weights, download, dry_run, mask_rule.value, option.wanted_maps(maps_of, save_maps), force),
    }
    _begin(request, options, results_folder(results), device, wish, display=display, dry_run=dry_run, json_=json_)


def _begin(request: Request, options: dict[str, Any], folder: Path, device: str, wish: Wish | None, **shown: Any) -> None:
    """Lead the run, or follow the process of torchrun's team that does."""
    check_device(device)
    with gather_team() as team:
        begin = _run if team is None or team.rank == 0 else follow_team
        begin(request, options | {"eval_batch": request.eval_batch}, folder, Where(device, wish, team), **shown)


def _made(weights: str | None, download: bool, dry: bool, mask_rule: Any, maps_of: str | None, force: bool) -> dict[str, Any]:
    """The options that are objects of their own, and `force`."""
    from inpbench.harness.kept_maps import parse_maps_of
    from inpbench.harness.scoring import Scoring
    from inpbench.harness.weights import WeightStore

    return {
        "save_maps": None if maps_of is None else parse_maps_of(maps_of),
        "weights": WeightStore(weights, download=download, dry=dry),
        "scoring": Scoring(mask_rule=mask_rule),
        "force": force,
    }


def _run(
    request: Request,
    options: dict[str, Any],
    folder: Path,
    where: Where,
    *,
    display: option.DisplayMode,
    dry_run: bool,
    json_: bool,
) -> None:
    """Plan, show the plan, run what is to do, show what came of it."""
    from inpbench.harness.console import Live, print_plan
    from inpbench.harness.followers import refuse_single
    from inpbench.harness.plan import make_plan
    from inpbench.harness.records import RecordStore

    store = RecordStore(folder)
    cells = make_plan(request, store, options["weights"], options["scoring"], force=options["force"])
    live = Live(display.value)
    if json_ and dry_run:
        _print_json({"cells": [cell.summary() for cell in cells]})
    elif display is not option.DisplayMode.none:
        print_plan(cells, live.console)
    _refuse_if_impossible(cells)
    if dry_run:
        return
    if options["save_maps"] is not None:
        _say_without_maps(cells, store, live)
    team = where.team
    if team is not None:
        refuse_single(cells, team)
        team.announce()
    tally = execute(cells, store, live, options, where)
    _print_outcome(cells, store, tally, live, json_, display)
    if team is not None and team.lost:
        left = len([cell for cell in cells if cell.status == "todo"]) - len(tally.done + tally.failed) if tally else 0
        live.console.print(f"The processes were ended, {left} cells were not begun: the same command goes on.", markup=False)
    if tally is not None and tally.claimed:
        names = ", ".join(f"{cell.label} on {cell.dataset.name}, seed {cell.seed}" for cell in tally.claimed)
        raise errors.BenchError(
            f"Another bench is at work on {len(tally.claimed)} of these cells: {names}.",
            "Wait for it, then run the same command again: it shows all of them.",
        )
    if tally is not None and tally.failed:
        raise typer.Exit(errors.EXIT_NEGATIVE)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def _refuse_if_impossible(cells: Sequence[Cell]) -> None:
    """When no cell can run, the first obstacle is the error; otherwise impossible cells are only part of the plan."""
    if all(cell.status == "impossible" for cell in cells):
        for cell in cells:
            if cell.refusal is not None:
                raise cell.refusal
        reasons = dict.fromkeys(f"{cell.method.name} {cell.setting.name}: {cell.reason}" for cell in cells)
        raise NothingError("Nothing can run: " + "; ".join(reasons), "Type: bench list settings")


def _say_without_maps(cells: Sequence[Cell], store: RecordStore, live: Live) -> None:
    """Cells that are done are not run again for their maps alone, unless they are forced."""
    for cell in cells:
        if cell.status == "done" and not store.path_of(cell.identity).with_suffix(".maps").is_dir():
            message = f"{cell.label} on {cell.dataset.name} is done and has no maps; --force runs it again and keeps them."
            live.console.print(message, markup=False, style="yellow", soft_wrap=True)


def _print_outcome(
    cells: Sequence[Cell], store: RecordStore, tally: Tally | None, live: Live, json_: bool, display: option.DisplayMode
) -> None:
    """The leaderboard of the requested cells on stdout, failures on stderr."""
    from inpbench.harness.console import harmless
    from inpbench.harness.leaderboard import build_tables, render

    for record in tally.failed if tally else []:
        assert record.error is not None
        message = harmless(f"failed: {record.label}: {record.error['type']}: {record.error['message']}")
        live.console.print(message, markup=False, style="red", soft_wrap=True)
        live.console.print(f"  record: {store.path_of(record.identity)}", markup=False, soft_wrap=True)
    records = [found for cell in cells if cell.id and (found := store.find(cell.id)) is not None]
    for record in (record for record in records if record.status == "trained"):
        message = (
            f"trained, not tested: {record.label} on {record.identity['dataset']}, record {record.id12}; --phase test tests it"
        )
        live.console.print(message, markup=False, soft_wrap=True)
    tables = build_tables([record for record in records if record.status != "trained"])
    if json_:
        typer.echo(render(tables, "json"))
    elif tables:
        typer.echo(render(tables, "terminal"))
    if display is not option.DisplayMode.none and records:
        live.console.print(f"Records: {store.folder}", markup=False)
