"""`bench leaderboard` and `bench check`: read records, print tables and verdicts."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from inpbench.harness.cli.options import Json, Results, results_folder, split_names
from inpbench.harness.console import harmless
from inpbench.harness.errors import NothingError, UsageError

DEFAULT_BASELINES = Path("results") / "baselines"


class By(str, Enum):
    """What a row of a table is."""

    mean = "mean"
    category = "category"


class Format(str, Enum):
    """How a table is written."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    json = "json"


def write_out(text: str, out: Path | None) -> None:
    """To stdout, or to a file, completely or not at all."""
    if out is None:
        typer.echo(text)
        return
    from inpbench.harness.atomic import write_text

    write_text(out, text + "\n")
    typer.echo(f"wrote {out}", err=True)


def chosen_form(form: Format, as_json: bool) -> str:
    """The form of the tables. Raises `UsageError` where --json and --format want two."""
    if as_json and form not in (Format.terminal, Format.json):
        raise UsageError(f"--json and --format {form.value} are two forms.", f"Type one of them: --format {form.value}")
    return "json" if as_json else form.value


def chosen_records(dataset: str, setting: str, methods: str) -> dict[str, list[str]]:
    """The filters of `RecordStore.all` for what was named."""
    named = (("dataset", dataset), ("setting", setting), ("method", methods))
    return {key: list(split_names(text)) for key, text in named if text}


def leaderboard(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Only these data sets.")] = "",
    setting: Annotated[str, typer.Option("--setting", "-s", help="Only these settings.")] = "",
    methods: Annotated[str, typer.Option("--methods", "-m", help="Only these methods.")] = "",
    metrics: Annotated[str, typer.Option("--metrics", help="Only these metrics (bench list metrics).")] = "",
    by: Annotated[By, typer.Option("--by", help="A row is a method's mean, or a category.")] = By.mean,
    reported: Annotated[bool, typer.Option("--reported", help="Published values, where the protocol is the same.")] = False,
    intervals: Annotated[bool, typer.Option("--intervals", help="95 % intervals, and ranks with ties.")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Parameters, FLOPs, speed, memory and fit time, by hardware.")] = False,
    format_: Annotated[Format, typer.Option("--format", "-f", help="How to write the tables.")] = Format.terminal,
    json_: Json = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to a file.")] = None,
    results: Results = None,
) -> None:
    """Tables from records, one for each protocol: numbers that are not comparable never share one.

    bench leaderboard --dataset visa --setting multi_class --reported
    """
    from inpbench.harness.cost_table import cost_tables
    from inpbench.harness.leaderboard import build_tables, render
    from inpbench.harness.records import RecordStore
    from inpbench.harness.statistics import EvidenceStore

    if cost and (reported or intervals or metrics or by is not By.mean):
        raise UsageError(
            "--cost is a table of its own: it has no metrics.", "Leave --reported, --intervals, --metrics and --by out."
        )
    form = chosen_form(format_, json_)
    store = RecordStore(results_folder(results))
    listing = store.all(**chosen_records(dataset, setting, methods))
    for warning in listing.warnings:
        typer.echo(harmless(f"Warning: {warning}"), err=True)
    evidence = EvidenceStore(store) if intervals else None
    build = partial(build_tables, by=by.value, metrics=split_names(metrics), reported=reported, evidence=evidence)
    tables = cost_tables(listing) if cost else build(listing)
    if not tables:
        raise NothingError(
            f"No record in {store.folder} fits.",
            "Type: bench run --methods inp_former --dataset synthetic --encoder builtin --preset demo",
        )
    write_out(render(tables, form), out)


def compare(
    metric: Annotated[str, typer.Option("--metric", help="What is compared (bench list metrics).")] = "i_auroc",
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Only these data sets.")] = "",
    setting: Annotated[str, typer.Option("--setting", "-s", help="Only these settings.")] = "",
    methods: Annotated[str, typer.Option("--methods", "-m", help="Only these methods.")] = "",
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.svg", help="Draw the mean ranks, too.")] = None,
    format_: Annotated[Format, typer.Option("--format", "-f", help="How to write the tables.")] = Format.terminal,
    json_: Json = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to a file.")] = None,
    results: Results = None,
) -> None:
    """Methods in pairs on the same test images, and over data sets; every verdict says how sure it is.

    bench compare --dataset visa --metric p_auroc
    """
    from inpbench.harness.compare import overall, overall_table, pair_tables
    from inpbench.harness.rank_picture import draw
    from inpbench.harness.records import RecordStore
    from inpbench.harness.statistics import EvidenceStore, across, mean_ranks
    from inpbench.harness.tables import render

    form = chosen_form(format_, json_)
    store = RecordStore(results_folder(results))
    listing = store.all(**chosen_records(dataset, setting, methods))
    for warning in listing.warnings:
        typer.echo(harmless(f"Warning: {warning}"), err=True)
    tables = pair_tables(listing, metric, EvidenceStore(store))
    if not tables:
        raise NothingError(
            f"No two methods in {store.folder} have comparable records.",
            "Type: bench run --methods inp_former,dinomaly --dataset synthetic --encoder builtin --preset demo",
        )
    groups = overall(listing, metric)
    over = [overall_table(group, metric) for group in groups if len(group.datasets) > 1]
    if not over and len({table.protocol["dataset"] for table in tables}) > 1:
        typer.echo("Nothing is said over data sets: no two methods were run alike on all of them.", err=True)
    write_out(render([*tables, *over], form), out)
    if picture is not None and not groups:
        raise NothingError(
            "There are no mean ranks to draw: no two methods were run alike on all data sets.", "Name some: --dataset A,B"
        )
    if picture is not None:
        largest = max(groups, key=lambda group: len(group.datasets))
        title = f"Mean rank by {metric} over {len(largest.datasets)} data sets ({largest.title})"
        write_out(draw(mean_ranks(largest.scores), across(largest.scores), title).rstrip("\n"), picture)


def check(
    baselines: Annotated[
        Path, typer.Option("--baselines", metavar="DIR", help="Folder of the committed baselines.")
    ] = DEFAULT_BASELINES,
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Only these data sets.")] = "",
    methods: Annotated[str, typer.Option("--methods", "-m", help="Only these methods.")] = "",
    update: Annotated[bool, typer.Option("--update", help="Make the records the new baselines; needs --reason.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why the numbers change; kept in the baseline.")] = "",
    learn: Annotated[int | None, typer.Option("--learn", metavar="N", help="Learn the tolerances from N runs (seeds).")] = None,
    history: Annotated[
        Path | None, typer.Option("--history", metavar="DIR", help="Append the numbers to DIR and draw their trend.")
    ] = None,
    github: Annotated[bool, typer.Option("--github", help="Also print annotations for GitHub Actions.")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML for a CI service.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a markdown summary.")] = False,
    json_: Json = False,
    results: Results = None,
) -> None:
    """Compare records with committed baselines; exit 1 on a regression, 4 when nothing could be compared.

    bench check --results results/runs
    """
    from inpbench.harness import baselines as kept
    from inpbench.harness.check import check as compare
    from inpbench.harness.records import RecordStore
    from inpbench.harness.tables import render
    from inpbench.harness.verdicts import as_json, check_table, github_lines
    from inpbench.harness.verdicts import junit as as_junit

    if reason and not update:
        raise UsageError("--reason belongs to --update.", 'Type: bench check --update --reason "why the numbers change"')
    store = RecordStore(results_folder(results))
    chosen = {key: list(split_names(text)) for key, text in (("dataset", dataset), ("method", methods)) if text}
    if update:
        changed = kept.update(store, baselines, reason, **chosen)
        for path in changed:
            typer.echo(f"updated {path}", err=True)
        if not changed:
            typer.echo("no baseline changed", err=True)
    elif not baselines.is_dir():
        raise NothingError(f"There are no baselines in {baselines}.", 'Type: bench check --update --reason "first baselines"')
    if learn is not None:
        from inpbench.harness.tolerances import learn as learn_tolerances

        for path in learn_tolerances(store, baselines, learn, **chosen):
            typer.echo(f"learned the tolerances of {path}", err=True)
    result = compare(store, baselines, **chosen)
    if history is not None:
        from inpbench.harness.history import remember

        for path in remember(result, store, baselines, history):
            typer.echo(f"drew {path}", err=True)
    if github:
        typer.echo(github_lines(result, baselines))
    if junit is not None:
        write_out(as_junit(result), junit)
    typer.echo(as_json(result) if json_ else render([check_table(result)], "markdown" if markdown else "terminal"))
    if result.exit_code:
        raise typer.Exit(result.exit_code)
