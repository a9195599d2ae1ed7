"""`bench rescore`: metrics again from kept maps."""

from __future__ import annotations

from typing import Annotated

import typer

from inpbench.harness.cli.options import Results, results_folder
from inpbench.harness.cli.run_options import Variant
from inpbench.harness.errors import EXIT_NEGATIVE, UsageError


def rescore(
    record: Annotated[str, typer.Argument(metavar="RECORD", help="Id of a record that was run with --save-maps.")],
    variant: Annotated[
        Variant | None,
        typer.Option("--variant", help="Definitions of the metrics (default: the record's own).", show_default=False),
    ] = None,
    results: Results = None,
) -> None:
    """Compute the metrics of a record again, without its model and its data; exit 1 where the same maps give other numbers.

    Adds what intervals are made of (bench leaderboard --intervals) to a confirmed record that was run without it.

    bench rescore 3f9c1a20

    bench rescore 3f9c1a20 --variant paper
    """
    from inpbench.harness.leaderboard import build_tables, render
    from inpbench.harness.records import RecordStore
    from inpbench.harness.rescore import add_evidence, changes
    from inpbench.harness.rescore import rescore as again

    store = RecordStore(results_folder(results))
    found = store.find(record)
    if found is None or found.status != "done":
        raise UsageError(f"There is no finished record {record} in {store.folder}.", "Type: bench leaderboard --json")
    new = again(store, found, variant.value if variant is not None else found.identity["metrics"]["variant"])
    if new.id != found.id:
        typer.echo(f"wrote {store.write(new)}", err=True)
        typer.echo(render(build_tables([new]), "terminal"))
        return
    different = changes(found, new)
    for change in different:
        typer.echo(f"{change.category} {change.metric}: recorded {change.recorded!r}, from the maps {change.again!r}")
    numbers = sum(len(table) for table in found.metrics["categories"].values())
    if different:
        typer.echo(f"record {found.id12}: {len(different)} of {numbers} numbers do not follow from its maps.", err=True)
        raise typer.Exit(EXIT_NEGATIVE)
    typer.echo(f"record {found.id12}: all {numbers} numbers follow from its kept maps.")
    if added := add_evidence(store, found, new):
        typer.echo(f"record {found.id12}: {added} added. Type: bench leaderboard --intervals", err=True)
