"""kill -9 at a random moment: no record lost or broken, and the final numbers are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import TINY, bench
from interpreter import PYTHON

KILLS = int(os.environ.get("INPBENCH_KILLS", "2"))
RUN = [
    *("run", "--methods", "inp_former,dinomaly", "--encoder", "builtin", "--preset", "smoke", *TINY),
    *("--set", "inp_former.steps=60", "--set", "dinomaly.steps=60", "--display", "plain"),
]


def records(folder: Path) -> dict[str, dict]:
    """Every record, read whole: a broken one fails here."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("*.json") if ".work" not in str(path)}


def numbers(folder: Path) -> dict[str, tuple[str, object]]:
    return {name: (record["status"], record["metrics"]) for name, record in records(folder).items()}


def wait_for_work(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Return when the process has written something new of its own: it is in the middle of a cell."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    while process.poll() is None:
        for path in list(folder.rglob("*")):
            try:
                if path.is_file() and before.get(path) != path.stat().st_mtime_ns:
                    return
            except FileNotFoundError:  # renamed or removed while we looked
                continue
        time.sleep(0.01)


@pytest.mark.slow
def test_kill_9_changes_nothing(tmp_path: Path) -> None:
    """The undisturbed run takes no snapshot, and the one that ends the killed one's work is of another process."""
    assert bench(*RUN, "--results", tmp_path / "calm").code == 0
    undisturbed = numbers(tmp_path / "calm")
    assert {status for status, _ in undisturbed.values()} == {"done"} and len(undisturbed) == 2

    generator = random.Random(int(os.environ.get("INPBENCH_KILL_SEED", "0")))
    command = [*RUN, "--snapshot-every", "0", "--results", str(tmp_path / "killed")]
    killed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            [*PYTHON, "-c", "from inpbench.harness.cli import main; main()", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_work(process, tmp_path / "killed")
        time.sleep(generator.uniform(0.0, 2.0))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        for record in records(tmp_path / "killed").values():
            assert record["status"] in ("started", "done")
    assert killed, "no run lived long enough to be killed"
    assert bench(*command).code == 0
    assert numbers(tmp_path / "killed") == undisturbed
    assert not list((tmp_path / "killed").rglob("*.work"))
