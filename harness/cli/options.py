"""Options that several verbs share, declared once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from inpbench.harness.errors import UsageError
from inpbench.harness.user_paths import expanded

DEFAULT_RESULTS = Path("results") / "runs"

Results = Annotated[
    Path | None,
    typer.Option(
        "--results", metavar="DIR", help="Folder of the records (default: $INPBENCH_RESULTS or results/runs).", show_default=False
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", metavar="DIR", help="Root of the data set (default: $INPBENCH_DATA/NAME).", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME.KEY=VALUE", help="Change a parameter of a method or data set; may be repeated."),
]


class Verb(TyperCommand):
    """A verb whose --help is plain text in a narrow terminal, where boxes of four columns would leave no room for words."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Typer's, with or without boxes."""
        if shutil.get_terminal_size().columns < 100:
            self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Without boxes: the same groups, one below the other."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if param.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(param, "rich_help_panel", None) or default, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def results_folder(given: Path | None) -> Path:
    """The folder of the records: option, then environment, then the default."""
    return expanded(given if given is not None else Path(os.environ.get("INPBENCH_RESULTS") or DEFAULT_RESULTS))


def split_names(text: str | None) -> tuple[str, ...]:
    """`"a, b"` as ("a", "b"), in order, without repeats."""
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def split_ints(text: str, option: str) -> tuple[int, ...]:
    """`"0,1,2"` as ints; raises `UsageError` naming the option."""
    try:
        values = tuple(dict.fromkeys(int(name) for name in split_names(text)))
    except ValueError:
        raise UsageError(f"{option} takes whole numbers separated by commas, found '{text}'.", f"Type: {option} 0,1,2") from None
    if any(not 0 <= value < 2**32 for value in values):
        raise UsageError(f"{option} takes numbers from 0 to 2^32 - 1, found '{text}'.", f"Type: {option} 0,1,2")
    return values
