"""The command line `bench`: parses, calls, prints. Every heavy import is inside a function.

Data goes to stdout, talk to stderr. User errors are two lines, without a traceback (`bench --traceback ...` shows it).
Exit codes are those of `harness.errors`.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from inpbench.harness.cli import app as app_verb
from inpbench.harness.cli import data, doctor, export, lists, predict, report, reproduce, rescore, run, tables
from inpbench.harness.cli.options import Verb
from inpbench.harness.errors import EXIT_INTERRUPTED, EXIT_NEGATIVE, EXIT_USAGE, BenchError

app = typer.Typer(
    name="bench",
    help="Trains and tests visual anomaly-detection methods side by side under one protocol; every number leads to a record.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_traceback = False


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"inpbench {version('inpbench')}")
        raise typer.Exit


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of a user error, too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of every verb."""
    global _traceback
    _traceback = traceback


app.command("run", cls=Verb, rich_help_panel="Run")(run.run)
app.command("predict", cls=Verb, rich_help_panel="Run")(predict.predict)
app.command("reproduce", cls=Verb, rich_help_panel="Run")(reproduce.reproduce)
app.command("export", cls=Verb, rich_help_panel="Run")(export.export)
app.command("app", cls=Verb, rich_help_panel="Run")(app_verb.app)
app.command("leaderboard", cls=Verb, rich_help_panel="Read")(tables.leaderboard)
app.command("compare", cls=Verb, rich_help_panel="Read")(tables.compare)
app.command("report", cls=Verb, rich_help_panel="Read")(report.report)
app.command("rescore", cls=Verb, rich_help_panel="Read")(rescore.rescore)
app.command("check", cls=Verb, rich_help_panel="Read")(tables.check)
app.command("list", cls=Verb, rich_help_panel="Look up")(lists.list_)
app.command("doctor", cls=Verb, rich_help_panel="Look up")(doctor.doctor)
app.add_typer(data.app, name="data", rich_help_panel="Look up")


def main() -> None:
    """The console script: turns errors into two lines and an exit code."""
    from inpbench.harness.console import print_error

    try:
        code = app(standalone_mode=False)
    except BenchError as error:
        if _traceback:
            raise
        print_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print_error("Interrupted.", "What was finished is recorded; the same command goes on from there.")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `bench leaderboard | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        _exit_on_click(error)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _exit_on_click(error: Exception) -> None:
    """Typer's own errors: usage errors print like ours, an abort is an interruption; anything else is a bug and goes on up."""
    from inpbench.harness.console import print_error

    kind = type(error).__name__
    if kind == "Abort":
        sys.exit(EXIT_INTERRUPTED)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "bench"
        print_error(error.format_message(), f"Type: {where} --help")
        sys.exit(EXIT_USAGE if "Usage" in kind or "Param" in kind or "Option" in kind or "Argument" in kind else EXIT_NEGATIVE)
