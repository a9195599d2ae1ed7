"""`bench run`: plan, print the plan, run what is to do, print the leaderboard of what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inpbench.harness import errors
from inpbench.harness.cli.options import DataRoot, Json, Results, Set, results_folder, split_ints, split_names
from inpbench.harness.errors import NothingError, UsageError

if TYPE_CHECKING:
    import torch

    from inpbench.harness.plan import Cell
    from inpbench.harness.runner import Tally


class MaskRule(str, Enum):
    """How a resized mask becomes binary (spec: which rule a published number used changes its pixel metrics)."""

    gt05 = "gt05"
    gt0 = "gt0"
    crr = "crr"


class Variant(str, Enum):
    """Definitions of the metrics."""

    exact = "exact"
    paper = "paper"
    dinomaly = "dinomaly"


class Engine(str, Enum):
    """How a method trains: the same mathematics, with or without caches."""

    fast = "fast"
    reference = "reference"


class DisplayMode(str, Enum):
    """What is shown while running."""

    auto = "auto"
    full = "full"
    plain = "plain"
    none = "none"


def run(
    methods: Annotated[str, typer.Option("--methods", "-m", help="Methods, separated by commas (bench list methods).")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Data sets, separated by commas (bench list datasets).")],
    setting: Annotated[str, typer.Option("--setting", "-s", help="What is trained on what (bench list settings).")] = "multi_class",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds, separated by commas; the table shows mean and deviation.")] = "1",
    shots: Annotated[str, typer.Option("--shots", help="Numbers of support images for few-shot settings.")] = "",
    preset: Annotated[str, typer.Option("--preset", help="Named parameter values: paper, fast, smoke, demo.")] = "paper",
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Encoder of the methods that have one; `builtin` needs no download.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="FILE|DIR|random", help="Encoder weights [default: $INPBENCH_WEIGHTS].", show_default=False
        ),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Allow missing encoder weights to be fetched by timm.")] = False,
    set_: Set = None,
    data_root: DataRoot = None,
    categories: Annotated[str, typer.Option("--categories", help="Only these categories, separated by commas.")] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many images of each category, split and defect; marked.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="FILE", help="An official model.pth to test instead of training.")
    ] = None,
    variant: Annotated[Variant, typer.Option("--variant", help="Metric definitions (bench list metrics).")] = Variant.exact,
    mask_rule: Annotated[MaskRule, typer.Option("--mask-rule", help="How resized masks become binary.")] = MaskRule.gt05,
    engine: Annotated[Engine, typer.Option("--engine", help="reference trains the originals' way, without caches.")] = Engine.fast,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    eval_batch: Annotated[int, typer.Option("--eval-batch", min=1, help="Images tested at once; changes no number.")] = 16,
    strict: Annotated[
        bool, typer.Option("--strict/--lenient", help="Stop at the first bad file, or skip it and say so in the record.")
    ] = True,
    pixel_cache: Annotated[bool, typer.Option("--pixel-cache/--no-pixel-cache", help="Keep decoded pixels on disk.")] = True,
    results: Results = None,
    force: Annotated[bool, typer.Option("--force", help="Run finished cells again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    json_: Json = False,
    display: Annotated[DisplayMode, typer.Option("--display", help="What is shown while running.")] = DisplayMode.auto,
    snapshot_every: Annotated[
        float, typer.Option("--snapshot-every", min=0.0, metavar="SECONDS", help="Time between two training snapshots.")
    ] = 30.0,
) -> None:
    """Train and test methods on data sets, side by side; running the same command again goes on where it stopped.

    bench run --methods inp_former,dinomaly --dataset visa
    """
    from inpbench.harness.console import Live, print_plan
    from inpbench.harness.params import split_settings
    from inpbench.harness.plan import Request, make_plan
    from inpbench.harness.records import RecordStore
    from inpbench.harness.scoring import Scoring
    from inpbench.harness.weights import WeightStore

    request = Request(
        methods=split_names(methods),
        datasets=split_names(dataset),
        setting=setting,
        seeds=split_ints(seeds, "--seeds"),
        shots=split_ints(shots, "--shots"),
        preset=preset,
        encoder=encoder,
        changes=split_settings(set_ or []),
        data_root=data_root,
        categories=split_names(categories),
        limit=limit,
        strict=strict,
        engine=engine.value,
        variant=variant.value,
        checkpoint=checkpoint,
    )
    store = RecordStore(results_folder(results))
    weight_store = WeightStore(weights, download=download)
    scoring = Scoring(mask_rule=mask_rule.value)
    cells = make_plan(request, store, weight_store, scoring, force=force)
    live = Live(display.value)
    if json_ and dry_run:
        _print_json({"cells": [cell.summary() for cell in cells]})
    elif display is not DisplayMode.none:
        print_plan(cells, live.console)
    _refuse_if_impossible(cells)
    if dry_run:
        return
    tally = _execute(cells, store, live, device, eval_batch, snapshot_every, pixel_cache, weight_store, scoring)
    _print_outcome(cells, store, tally, live, json_, display)
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


def find_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU; a device that is not there is an error, never a silent CPU run."""
    import torch

    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"Unknown device '{name}'.", "Type: --device auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        message = f"--device {name}: torch finds {found} CUDA devices."
        raise errors.PrerequisiteError(message, "Type: --device cpu, or: bench doctor")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: only cpu and cuda are supported.", "Type: --device auto")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _execute(
    cells: Sequence[Cell],
    store: Any,
    live: Any,
    device: str,
    eval_batch: int,
    snapshot_every: float,
    pixel_cache: bool,
    weights: Any,
    scoring: Any,
) -> Tally | None:
    """Run what is to do; imports torch only then."""
    if not any(cell.status == "todo" for cell in cells):
        return None
    from inpbench.harness.runner import Options, run_cells

    options = Options(
        device=find_device(device),
        scoring=scoring,
        weights=weights,
        eval_batch=eval_batch,
        snapshot_every_s=snapshot_every,
        pixel_cache=pixel_cache,
    )
    with live:
        return run_cells(cells, store, options, live.cell)


def _print_outcome(cells: Sequence[Cell], store: Any, tally: Tally | None, live: Any, json_: bool, display: DisplayMode) -> None:
    """The leaderboard of the requested cells on stdout, failures on stderr."""
    from inpbench.harness.leaderboard import build_tables, render

    for record in tally.failed if tally else []:
        assert record.error is not None
        live.console.print(f"failed: {record.label}: {record.error['type']}: {record.error['message']}", markup=False, style="red")
        live.console.print(f"  record: {store.path_of(record.identity)}", markup=False)
    records = [record for cell in cells if cell.id and (record := store.find(cell.id)) is not None]
    tables = build_tables(records)
    if json_:
        typer.echo(render(tables, "json"))
    elif tables:
        typer.echo(render(tables, "terminal"))
    if display is not DisplayMode.none and records:
        live.console.print(f"Records: {store.folder}", markup=False)
