"""`bench` with a fault in one process: $FAULT is RANK:STEP:KIND:NETWORK, KIND raise or kill (SIGKILL), NETWORK what is trained."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from inpbench.harness.cli import main
from inpbench.harness.errors import DataError
from inpbench.methods.training import Trainer

real = Trainer.step


def step(self: Trainer, number: int) -> Any:
    rank, when, kind, network = os.environ["FAULT"].split(":")
    if os.environ["RANK"] == rank and number == int(when) and type(self.module).__name__ == network:
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("A file vanished.", "Put it back.")
    return real(self, number)


Trainer.step = step  # type: ignore[method-assign]
sys.argv[0] = "bench"
main()
