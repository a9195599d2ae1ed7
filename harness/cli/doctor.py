"""`bench doctor [NAME]`: is this machine ready, and does a method keep the contract."""

from __future__ import annotations

from typing import Annotated

import typer

from inpbench.harness.cli.options import Json, Results, results_folder
from inpbench.harness.errors import EXIT_NEGATIVE


def doctor(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="A method: run the conformance checks on it.")] = None,
    results: Results = None,
    json_: Json = False,
) -> None:
    """Examine this machine, or check that a method keeps the contract.

    bench doctor inp_former
    """
    if name is None:
        from inpbench.harness.doctor import examine

        _print([finding._asdict() for finding in examine(results_folder(results))], json_)
        return
    rows = _conformance(name)
    _print(rows, json_)
    if any(row["ok"] is False for row in rows):
        raise typer.Exit(EXIT_NEGATIVE)


def _conformance(name: str) -> list[dict[str, object]]:
    from inpbench.harness.errors import BenchError
    from inpbench.harness.testing import checks

    rows: list[dict[str, object]] = []
    for check in checks(name):
        try:
            check()
            rows.append({"ok": True, "what": check.name, "detail": check.doc, "advice": ""})
        except (AssertionError, BenchError) as error:
            rows.append({"ok": False, "what": check.name, "detail": str(error), "advice": check.doc})
        except Exception as error:  # a plugin may fail in any way; the report names the check and goes on
            rows.append({"ok": False, "what": check.name, "detail": f"{type(error).__name__}: {error}", "advice": check.doc})
    return rows


def _joined(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows of one kind that say the same (a file that three methods miss, data sets that are not there), as one row for reading."""
    found: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for place, row in enumerate(rows):
        name, colon, kind = str(row["what"]).partition(": ")
        alike = (row["ok"], kind, row["detail"], str(row["advice"]).replace(name, "NAME"))
        found.setdefault(alike if colon and row["ok"] is not True else (place,), []).append(row)
    shown = []
    for key, same in found.items():
        names = ", ".join(str(row["what"]).partition(": ")[0] for row in same)
        joined = {"what": f"{len(same)} x {key[1]}", "detail": f"{names}: {key[2]}", "advice": key[3]} if len(same) > 1 else {}
        shown.append(same[0] | joined)
    return shown


def _print(rows: list[dict[str, object]], json_: bool) -> None:
    if json_:
        import json

        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    sign = {True: Text("ok", style="green"), False: Text("no", style="red"), None: Text("-", style="dim")}
    for row in _joined(rows):
        ok = row["ok"]
        assert ok is None or isinstance(ok, bool)
        detail = Text(str(row["detail"]), overflow="fold")
        if ok is not True and row["advice"]:
            detail.append(f"\n{row['advice']}", style="dim")
        table.add_row(sign[ok], Text(str(row["what"])), detail)
    Console().print(table)
