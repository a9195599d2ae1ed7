"""The errors a user meets: what is wrong, and what to type next.

Every user error derives from `BenchError` and is printed as two lines, without a traceback. The exit codes are frozen:
0 ok, 1 the verb's own negative answer, 2 usage, 3 a prerequisite is missing, 4 nothing was compared or run, 130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_NEGATIVE = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_NOTHING = 4
EXIT_INTERRUPTED = 130


class BenchError(Exception):
    """A user error: `message` says what was expected and found, `hint` the next command to type."""

    exit_code = EXIT_NEGATIVE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(BenchError):
    """The command line asks for something that does not exist or does not fit."""

    exit_code = EXIT_USAGE


class PrerequisiteError(BenchError):
    """Data, weights or an extra package is missing."""

    exit_code = EXIT_MISSING


class DataError(PrerequisiteError):
    """A data set on disk is not what its layout says: the message names the file."""


class WeightsError(PrerequisiteError):
    """A weight file is missing, broken, hostile or of another architecture."""


class RecordError(BenchError):
    """A record cannot be read, written or trusted."""


class MetricError(BenchError):
    """A metric has no value on this input (one class only, NaN scores, ...), and says which."""


class ExportError(BenchError):
    """A model cannot be written as a graph, or the written graph computes something else."""


class NothingError(BenchError):
    """Nothing was run or compared, which is never a success."""

    exit_code = EXIT_NOTHING


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Did you mean: x, y?` with the closest known names, or the whole list when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"Did you mean: {', '.join(close)}?"
    return f"Known: {', '.join(known)}." if known else "None is registered."
