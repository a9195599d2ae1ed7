"""The command line `bench`: parses, calls, prints. Every heavy import is inside a function.

Data goes to stdout, talk to stderr. User errors are two lines, without a traceback (`bench --traceback ...` shows it).
Exit codes are those of `harness.errors`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated, NoReturn

import typer

from inpbench.harness.cli import app as app_verb
from inpbench.harness.cli import data, doctor, export, lists, predict, report, reproduce, rescore, run, tables
from inpbench.harness.cli.options import Verb
from inpbench.harness.cli.run_options import RunVerb
from inpbench.harness.errors import EXIT_INTERRUPTED, EXIT_NEGATIVE, EXIT_USAGE, BenchError, UsageError

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
    context: typer.Context,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of a user error, too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of every verb."""
    from inpbench.harness.process_group import processes

    global _traceback
    _traceback = traceback
    if context.invoked_subcommand != "run" and processes() > 1:
        raise UsageError(
            f"torchrun started {processes()} processes of bench {context.invoked_subcommand}; only bench run trains on several.",
            f"Type it without torchrun: bench {context.invoked_subcommand} ...",
        )


app.command("run", cls=RunVerb, rich_help_panel="Run")(run.run)
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
    from inpbench.harness.console import accept_any_text, print_error

    accept_any_text()
    try:
        code = app(prog_name="bench", standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # Typer makes this of Ctrl-C, and says nothing
            _exit_interrupted()
        if sys.stdout is not None:  # closed by the one who started us
            sys.stdout.flush()  # a full disk or a closed pipe is met here, not when nobody can be told any more
    except BenchError as error:
        if _traceback:
            raise
        print_error(error.message, error.hint)
        _tell_torchrun(error.message, error.hint)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _exit_interrupted()
    except BrokenPipeError:  # `bench leaderboard | head`: the reader has enough
        _write_nowhere()
        sys.exit(0)
    except (OSError, MemoryError) as error:  # of the machine, not of the bench; what a module expects it reports itself
        if _traceback:
            raise
        _write_nowhere()
        print_error(*_of_the_machine(error))
        _tell_torchrun(*_of_the_machine(error))
        sys.exit(EXIT_NEGATIVE)
    except Exception as error:
        _exit_on_click(error)
        raise
    if code == EXIT_INTERRUPTED:  # what Typer makes of Ctrl-C
        _exit_interrupted()
    sys.exit(code if isinstance(code, int) else 0)


def _exit_interrupted() -> NoReturn:
    from inpbench.harness.console import print_error

    print_error("Interrupted.", "What was finished is recorded; the same command goes on from there.")
    sys.exit(EXIT_INTERRUPTED)


def _tell_torchrun(message: str, hint: str) -> None:
    """Leave the error where torchrun looks for it, so that the summary with which it ends says what happened, not where to look."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    import json
    import time
    from pathlib import Path

    text = f"Error: {message}\n{hint}"
    told = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
    with contextlib.suppress(OSError):  # the error itself stands on stderr
        Path(file).write_text(json.dumps({"message": told}), encoding="utf-8")


def _write_nowhere() -> None:
    """Drop what stdout still holds, so that Python does not fail on it a second time at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _of_the_machine(error: OSError | MemoryError) -> tuple[str, str]:
    """What and what next for an error that no module foresaw: disk, permissions, limits, memory."""
    from inpbench.harness.atomic import cannot

    if isinstance(error, MemoryError):
        return "The memory is full.", "Type: --eval-batch 1, or run fewer things at once."
    known = cannot(f"use {error.filename}" if error.filename else "go on", error)
    return known.message, f"{known.hint} (bench --traceback shows where.)"


def _exit_on_click(error: Exception) -> None:
    """Typer's own errors: usage errors print like ours, an abort is an interruption; anything else is a bug and goes on up."""
    from inpbench.harness.console import print_error

    kind = type(error).__name__
    if kind == "Abort":
        _exit_interrupted()
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "bench"
        if error.format_message():  # `bench` alone prints its help, which says all
            print_error(error.format_message(), f"Type: {where} --help")
            _tell_torchrun(error.format_message(), f"Type: {where} --help")
        sys.exit(EXIT_USAGE if any(word in kind for word in ("Usage", "Param", "Option", "Arg")) else EXIT_NEGATIVE)
