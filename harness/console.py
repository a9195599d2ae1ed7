"""What a person sees while the bench works: the plan, a live line in a terminal, plain lines in a log.

Talk goes to stderr, data to stdout. The only module that knows rich besides the tables; rich is imported when it is needed.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from inpbench.harness.api import Progress
    from inpbench.harness.plan import Cell

Display = Literal["auto", "full", "plain", "none"]
FILE_WIDTH = 140  # characters


def describe_seconds(seconds: float) -> str:
    """Seconds as a person says them: `41 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


def talk() -> Console:
    """The console for talk (stderr); colours are off outside a terminal and with NO_COLOR."""
    from rich.console import Console

    # A file has no width: rich would assume 80 columns and fold the plan's notes.
    width = None if sys.stderr.isatty() or os.environ.get("COLUMNS") else FILE_WIDTH
    return Console(stderr=True, highlight=False, width=width)


def print_error(message: str, hint: str) -> None:
    """The two lines of a user error, on stderr."""
    from rich.text import Text

    console = talk()
    console.print(Text("Error: ", style="bold red") + Text(harmless(message)), soft_wrap=True)
    if hint:
        console.print(Text(harmless(hint)), soft_wrap=True)


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def harmless(text: str) -> str:
    """A text whose control characters are written out: a file may have a name that moves the cursor or clears the screen."""
    return text.translate(_CONTROL)


def _as_json_escapes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


def accept_any_text() -> None:
    """Let stdout and stderr write what their encoding does not know as JSON escapes it, which keeps JSON valid, and never fail."""
    codecs.register_error("inpbench", _as_json_escapes)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="inpbench")


STATUS_STYLE = {"done": "green", "todo": "bold", "impossible": "yellow"}


def print_plan(cells: Sequence[Cell], console: Console) -> None:
    """The plan as a table: every cell with its status and reason."""
    from rich.table import Table
    from rich.text import Text

    from inpbench.harness.plan import counts, setting_of

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "method", "dataset", "setting", "seed", "note"):
        table.add_column(name, overflow="fold")
    shown = {"done": "done", "todo": "to do", "impossible": "impossible"}
    for cell in cells:
        status = Text(shown[cell.status], style=STATUS_STYLE[cell.status])
        table.add_row(status, Text(cell.label), cell.dataset.name, setting_of(cell), str(cell.seed), Text(cell.reason))
    number = counts(cells)
    console.print(table)
    console.print(f"{number['done']} done, {number['todo']} to do, {number['impossible']} impossible")


class LogHandler(logging.Handler):
    """Warnings as one clean line each, above a live progress line."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        from rich.text import Text

        self._console.print(Text(f"Warning: {harmless(record.getMessage())}", style="yellow"), soft_wrap=True)


class Live:
    """Progress of several cells. In a terminal one moving line a cell, elsewhere a plain line every few seconds."""

    PLAIN_EVERY_S = 10.0

    def __init__(self, display: Display) -> None:
        self.console = talk()
        if display == "auto":
            display = "full" if self.console.is_terminal and os.environ.get("TERM") != "dumb" else "plain"
        self._display = display
        self._progress: Any = None
        self._handler = LogHandler(self.console)

    def __enter__(self) -> Live:
        logging.getLogger("inpbench").addHandler(self._handler)
        if self._display == "full":
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.fields[cell]}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}", style="dim"),
                console=self.console,
            )
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()
        logging.getLogger("inpbench").removeHandler(self._handler)

    def cell(self, cell: Cell) -> Progress:
        """A progress reporter for one cell."""
        return self.task(f"{cell.method.name} {cell.dataset.name}{f' k={cell.shots}' if cell.shots else ''} seed {cell.seed}")

    def task(self, name: str) -> Progress:
        """A progress reporter for one piece of work."""
        return _Bar(self._progress, name) if self._progress is not None else _Lines(self, name, self._display == "none")

    def end(self, line: Progress | None, said: str) -> None:
        """Take away the moving line of a piece of work, if it has one, and leave a plain one, where many more are to come."""
        if isinstance(line, _Bar):
            line.remove()
        if self._display != "none":
            self.console.print(said, markup=False, soft_wrap=True)


def _describe(text: str, numbers: dict[str, float]) -> str:
    return harmless(" ".join([text, *(f"{key} {value:.4g}" for key, value in numbers.items())]).strip())


class _Bar:
    """A moving line in a terminal."""

    def __init__(self, progress: Any, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, cell=name)
        self._stage = ""

    def __call__(self, done: int, total: int, text: str = "", **numbers: float) -> None:
        stage = text.split(" ")[0]
        if stage != self._stage:  # a new stage restarts the clock, so that the time left means something
            self._progress.reset(self._task, total=total)
            self._stage = stage
        self._progress.update(self._task, completed=done, total=total, description=_describe(text, numbers))

    def remove(self) -> None:
        """Leave the screen."""
        self._progress.remove_task(self._task)


class _Lines:
    """Plain lines for logs and pipes: the first, then one every few seconds, then the last."""

    def __init__(self, live: Live, name: str, silent: bool) -> None:
        self._live = live
        self._name = name
        self._silent = silent
        self._stage = ""
        self._last = 0.0

    def __call__(self, done: int, total: int, text: str = "", **numbers: float) -> None:
        now = time.monotonic()
        stage = text.split(" ")[0]
        if self._silent or (stage == self._stage and done < total and now - self._last < Live.PLAIN_EVERY_S):
            return
        self._stage, self._last = stage, now
        self._live.console.print(f"{self._name}: {_describe(text, numbers)} {done}/{total}", markup=False)
