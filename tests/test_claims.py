"""A claim excludes, and a killed process gives it back."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from interpreter import PYTHON

from inpbench.harness.claims import ClaimedError, claim

HOLD = """
import sys, time
from pathlib import Path
from inpbench.harness.claims import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([*PYTHON, "-c", HOLD, str(tmp_path / "x.lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_process_is_refused(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(ClaimedError, match="at work on the cell"), claim(tmp_path / "x.lock", what="the cell"):
        pass


def test_kill_9_gives_the_claim_back(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claim(tmp_path / "x.lock"):
        pass


def test_claim_is_free_again_after_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with claim(tmp_path / "x.lock"):
            pass
