"""`bench reproduce METHOD`: the paper's recipe, and its numbers beside the published ones."""

from __future__ import annotations

from typing import Annotated

import typer

from inpbench.harness import errors
from inpbench.harness.cli import run_options as option
from inpbench.harness.cli.options import DataRoot, Json, Results, Set, results_folder


def reproduce(
    method: Annotated[str, typer.Argument(help="The method (bench list methods).")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="The data set of the published number.")],
    setting: option.SettingName = "multi_class",
    shots: Annotated[int, typer.Option("--shots", min=0, help="Number of support images, for settings that have them.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="1 is the originals' seed.")] = 1,
    checkpoint: option.Checkpoint = None,
    tolerance: Annotated[
        str | None,
        typer.Option("--tolerance", metavar="POINTS", help="Accepted difference in per cent points: 0.5, or p_ap=1.5,aupro=0.5."),
    ] = None,
    set_: Set = None,
    data_root: DataRoot = None,
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
    """
    from inpbench.harness import reproduce as work
    from inpbench.harness.params import split_settings
    from inpbench.harness.plan import Request
    from inpbench.harness.registry import DATASETS, METHODS
    from inpbench.harness.settings import get_setting

    METHODS.get(method)
    DATASETS.get(dataset)
    get_setting(setting)
    tolerances = work.parse_tolerances(tolerance, trained=checkpoint is None)
    entry = work.published(method, dataset, setting, shots)

    from inpbench.harness.cli.run import find_device
    from inpbench.harness.console import Live, print_plan
    from inpbench.harness.records import RecordStore
    from inpbench.harness.runner import Options
    from inpbench.harness.scoring import Scoring
    from inpbench.harness.tables import render
    from inpbench.harness.weights import WeightStore

    request = Request(
        methods=(method,),
        datasets=(dataset,),
        setting=setting,
        seeds=(seed,),
        shots=(shots,) if shots else (),
        changes=split_settings(set_ or []),
        data_root=data_root,
        checkpoint=checkpoint,
    )
    store = RecordStore(results_folder(results))
    options = Options(
        device=find_device(device), scoring=Scoring(), weights=WeightStore(weights, download=download), eval_batch=eval_batch
    )
    live = Live(display.value)
    cells = work.plan_protocols(request, store, options)
    if display is not option.DisplayMode.none:
        print_plan(cells, live.console)
    with live:
        records = work.run_protocols(cells, store, options, live.cell)
    lines = work.compare_records(records, entry, tolerances)
    table = work.table_of(lines, cells[0].label, entry)
    typer.echo(render([table], "json" if json_ else "terminal"))
    if not work.judge(lines):
        raise typer.Exit(errors.EXIT_NEGATIVE)
