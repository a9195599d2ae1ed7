"""`bench report`: one HTML page of everything that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inpbench.harness.cli.options import Results, results_folder
from inpbench.harness.cli.tables import chosen_records
from inpbench.harness.console import harmless
from inpbench.harness.errors import NothingError


def report(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Only these data sets.")] = "",
    setting: Annotated[str, typer.Option("--setting", "-s", help="Only these settings.")] = "",
    methods: Annotated[str, typer.Option("--methods", "-m", help="Only these methods.")] = "",
    images: Annotated[int, typer.Option("--images", min=0, max=4, help="Most pictures of a category, of kept maps.")] = 4,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the page.")] = Path("report.html"),
    results: Results = None,
) -> None:
    """One self-contained HTML page: leaderboards, curves, pictures, costs, and the record behind every number.

    bench report --dataset visa --out visa.html
    """
    from inpbench.harness.atomic import write_text
    from inpbench.harness.records import RecordStore
    from inpbench.harness.report.content import gather
    from inpbench.harness.report.page import page

    store = RecordStore(results_folder(results))
    listing = store.all(**chosen_records(dataset, setting, methods))
    for warning in listing.warnings:
        typer.echo(harmless(f"Warning: {warning}"), err=True)
    if not any(record.status == "done" for record in listing):
        raise NothingError(
            f"No finished record in {store.folder} fits.",
            "Type: bench run --methods inp_former --dataset synthetic --encoder builtin --preset demo",
        )
    text = page(gather(store, listing.records, images=images))
    write_text(out, text)
    typer.echo(f"wrote {out} ({len(text) / 1e6:.1f} MB)", err=True)
