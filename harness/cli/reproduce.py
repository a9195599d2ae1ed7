"""`bench reproduce METHOD`: the paper's recipe, and its numbers beside the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inpbench.harness import errors
from inpbench.harness.cli import run_options as option
from inpbench.harness.cli.options import Json, Results, Set, results_folder, split_names
from inpbench.harness.errors import UsageError

if TYPE_CHECKING:
    from inpbench.harness.plan import Request
    from inpbench.harness.records import Record
    from inpbench.harness.reported import Entry
    from inpbench.harness.weights import WeightStore


def reproduce(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="The method (bench list methods).")],
    dataset: Annotated[
        str, typer.Option("--dataset", "-d", help="The data set of the published number; all of them for super_multi_class.")
    ],
    setting: option.SettingName = "multi_class",
    shots: Annotated[int, typer.Option("--shots", min=0, help="Number of support images, for settings that have them.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="1 is the originals' seed.")] = 1,
    source: option.Source = None,
    source_root: option.SourceRoot = None,
    checkpoint: option.Checkpoint = None,
    tolerance: Annotated[
        str | None,
        typer.Option("--tolerance", metavar="POINTS", help="Accepted difference in per cent points: 0.5, or p_ap=1.5,aupro=0.5."),
    ] = None,
    set_: Set = None,
    data_root: option.DataRoots = None,
    weights: option.Weights = None,
    download: option.Download = False,
    device: option.Device = "auto",
    eval_batch: option.EvalBatch = 16,
    results: Results = None,
    json_: Json = False,
    display: option.Display = option.DisplayMode.auto,
) -> None:
    """Run a paper's recipe once and compare every metric, under both mask rules, with the published table.

    Exit 0: reproduced. 1: a difference above its tolerance. 3: data or weights are missing. 4: nothing is published for this.

    bench reproduce inp_former --dataset visa --setting multi_class

    bench reproduce inp_former --dataset visa --setting few_shot --shots 4 --checkpoint model.pth

    bench reproduce inp_former --dataset mvtec_ad --setting zero_shot --source real_iad

    bench reproduce inp_former --dataset mvtec_ad,visa,real_iad --setting super_multi_class
    """
    from inpbench.harness import reproduce as work
    from inpbench.harness.params import split_settings
    from inpbench.harness.plan import Request
    from inpbench.harness.registry import DATASETS, METHODS
    from inpbench.harness.settings import get_setting
    from inpbench.harness.tables import render

    METHODS.get(method)
    datasets = split_names(dataset)
    for name in datasets:
        DATASETS.get(name)
    if get_setting(setting).shots and not shots:
        raise UsageError(f"A number of {setting} is published for each number of shots.", "Type for example: --shots 4")
    tolerances = work.parse_tolerances(tolerance, trained=checkpoint is None)
    entries = {name: work.published(method, name, setting, shots) for name in datasets}
    root, roots = option.split_roots(data_root or [], [*datasets, *split_names(source)])
    from inpbench.harness.weights import WeightStore

    request = Request(
        methods=(method,),
        datasets=datasets,
        setting=setting,
        seeds=(seed,),
        shots=(shots,) if shots else (),
        changes=split_settings(set_ or []),
        data_root=root,
        data_roots=roots,
        source=source,
        source_root=source_root,
        checkpoint=checkpoint,
        eval_batch=eval_batch,
    )
    store = WeightStore(weights, download=download)
    records = _records(request, entries, results_folder(results), store, device, eval_batch, display)
    tables, lines = [], []
    for name, entry in entries.items():
        own = [record for record in records if record.identity["dataset"] == name]
        found = work.compare_records(own, entry, tolerances)
        tables.append(work.table_of(found, own[0], entry))
        lines += found
    typer.echo(render(tables, "json" if json_ else "terminal"))
    if not work.judge(lines):
        raise typer.Exit(errors.EXIT_NEGATIVE)


def _records(
    request: Request,
    entries: dict[str, Entry],
    results: Path,
    weights: WeightStore,
    device: str,
    eval_batch: int,
    display: option.DisplayMode,
) -> list[Record]:
    """Train and test what is not done, under every protocol."""
    from inpbench.harness import reproduce as work
    from inpbench.harness.cli.where import find_device
    from inpbench.harness.console import Live, print_plan
    from inpbench.harness.records import RecordStore
    from inpbench.harness.runner import Options
    from inpbench.harness.scoring import Scoring

    store = RecordStore(results)
    options = Options(device=find_device(device), scoring=Scoring(), weights=weights, eval_batch=eval_batch)
    live = Live(display.value)
    cells = work.plan_protocols(request, store, options)
    if display is not option.DisplayMode.none:
        print_plan(cells, live.console)
    work.check_comparable(cells, entries)
    with live:
        return work.run_protocols(cells, store, options, live.cell)
