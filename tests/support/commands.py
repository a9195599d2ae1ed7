"""Call the command line in this process, as a person would type it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any, NamedTuple

import pytest

# A data set of three categories that is drawn and measured in seconds.
TINY = [
    "--dataset",
    "synthetic",
    *("--set", "synthetic.size=64", "--set", "synthetic.train=6", "--set", "synthetic.normal=3", "--set", "synthetic.defective=1"),
    *("--categories", "weave,nut"),
]


class Outcome(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def bench(*arguments: object) -> Outcome:
    """`bench ARGUMENTS`; never raises for a user error."""
    from inpbench.harness import cli

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code or 0
    return Outcome(int(code), out.getvalue(), err.getvalue())
