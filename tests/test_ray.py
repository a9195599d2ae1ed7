"""`bench run --ray` on a real cluster of two nodes on this machine: equal records, killed workers, a lost node, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, bench
from interpreter import PYTHON

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'inpbench[ray]')")

# A yardstick with a parameter that names a folder; its `fit` does there what the cell's seed says.
INFO = """
from dataclasses import dataclass, replace
from inpbench.harness.api import MethodInfo, Preprocess
from inpbench.methods.raw_pixel import INFO as RAW, RawPixelParams

@dataclass(frozen=True)
class Params(RawPixelParams):
    folder: str = ""  # where it meets the test

INFO = replace(RAW, name="hazard", target="hazard.model:Hazard", params=Params)
"""
MODEL = """
import os, signal, time
from pathlib import Path
import ray
from inpbench.methods.raw_pixel.model import RawPixel

class Hazard(RawPixel):
    def __init__(self, params, ctx):
        super().__init__(params, ctx)
        self._folder, self._seed = Path(params.folder), ctx.seed

    def fit(self, train):
        before = self._folder / f"began-{self._seed}"
        first = not before.exists()
        before.write_text(ray.get_runtime_context().get_node_id())
        if self._seed == 1 or (self._seed == 2 and first):  # always, once
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.monotonic() + 120
        while self._seed >= 10 and not (self._folder / "go").exists() and time.monotonic() < until:
            time.sleep(0.05)
        super().fit(train)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package `hazard` with a method of that name, as if installed."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "hazard").mkdir()
    for name, text in (("__init__", ""), ("info", INFO), ("model", MODEL)):
        (folder / "hazard" / f"{name}.py").write_text(text)
    info = folder / "hazard-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hazard\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[inpbench.methods]\nhazard = hazard.info:INFO\n")
    return folder


@pytest.fixture(scope="module")
def cluster(plugin: Path) -> Iterator[Any]:
    """Two nodes with one processor each; the environment of the nodes is that of the tests, and knows the plugin."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.syspath_prepend(str(plugin))
        both = Cluster()
        try:
            for extra in ({"include_dashboard": False}, {}):
                add_node(both, **extra)
            yield both
        finally:
            ray.shutdown()
            both.shutdown()


def add_node(cluster: Any, **extra: Any) -> None:
    """One small node; Ray gives a node half a minute to start, which may not be enough on a busy machine."""
    for attempt in range(4):
        try:
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, **extra)
            return
        except Exception:
            if attempt == 3:
                raise


def run(cluster: Any, results: Path, *arguments: object) -> list[object]:
    return ["run", "--preset", "smoke", *TINY, "--results", results, "--ray", cluster.address, *arguments]


def records(folder: Path) -> dict[int, dict[str, Any]]:
    """By seed."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/*/*/*.json")]
    return {record["identity"]["seed"]: record for record in found}


def test_two_nodes_give_the_records_of_one_process_and_go_on_with_them(cluster: Any, tmp_path: Path) -> None:
    both = ["-m", "inp_former", "--encoder", "builtin", "--set", "inp_former.steps=2"]
    here, there = tmp_path / "one", tmp_path / "two"
    outcome = bench(*run(cluster, there, *both, "--seeds", "1,2", "--display", "plain"))
    assert outcome.code == 0, outcome.err
    assert "connected: 2 nodes; a cell gets 1 CPU; 2 cells at a time" in outcome.err
    assert "seed 1: starting on" in outcome.err and "testing weave" in outcome.err
    again = bench("run", "--preset", "smoke", *TINY, "--results", there, *both, "--seeds", "1,2")
    assert again.code == 0 and "2 done, 0 to do" in again.err, "without Ray, too"
    assert bench("run", "--preset", "smoke", *TINY, "--results", here, *both, "--seeds", "1,2").code == 0
    one, two = records(here), records(there)
    for seed in (1, 2):
        for key in ("identity", "metrics", "samples", "marks", "support", "skipped", "label", "status"):
            assert one[seed][key] == two[seed][key], key
        assert two[seed]["stamp"]["ray"] == {"version": ray.__version__, "cpus": 1, "gpus": 0.0}
        assert two[seed]["stamp"]["hardware"] == one[seed]["stamp"]["hardware"]
        assert two[seed]["stamp"]["threads"] == 1 and "raylet" not in two[seed]["stamp"]["command"]


def test_a_killed_worker_is_replaced_and_a_hopeless_cell_fails(cluster: Any, tmp_path: Path) -> None:
    hazard = ["-m", "hazard", "--set", f"hazard.folder={tmp_path}", "--seeds", "1,2,3"]
    outcome = bench(*run(cluster, tmp_path / "runs", *hazard, "--ray-retries", "1"))
    assert outcome.code == 1
    found = records(tmp_path / "runs")
    assert {seed: record["status"] for seed, record in found.items()} == {1: "failed", 2: "done", 3: "done"}
    assert found[1]["error"]["type"] == "WorkerLostError"
    assert "was lost 2 times under Ray; the last time its process died" in found[1]["error"]["message"]
    assert "lost once" in found[2]["notes"][0] and found[3]["notes"] == []
    assert "seed 2: worker lost: its process died" in outcome.err


def test_the_cell_of_a_lost_node_is_run_elsewhere(cluster: Any, tmp_path: Path) -> None:
    """Both cells wait inside their training; the second node is taken away under one of them."""
    (spare,) = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]

    def take_away() -> None:
        until = time.monotonic() + 100
        while len(list(tmp_path.glob("began-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        cluster.remove_node(spare, allow_graceful=False)
        (tmp_path / "go").touch()

    helper = threading.Thread(target=take_away)
    helper.start()
    try:
        outcome = bench(*run(cluster, tmp_path / "runs", "-m", "hazard", "--set", f"hazard.folder={tmp_path}", "--seeds", "10,11"))
    finally:
        helper.join()
        add_node(cluster)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("begun anew") == 1
    found = records(tmp_path / "runs")
    assert [record["status"] for record in found.values()] == ["done", "done"]
    assert sorted(len(record["notes"]) for record in found.values()) == [0, 1]


@pytest.mark.slow
def test_ctrl_c_leaves_work_that_goes_on(cluster: Any, tmp_path: Path) -> None:
    arguments = ["-m", "inp_former", "--encoder", "builtin", "--set", "inp_former.steps=40", "--snapshot-every", "0"]
    command = [*PYTHON, "-c", "from inpbench.harness.cli import main; main()"]
    results = tmp_path / "runs"
    process = subprocess.Popen(
        [*command, *map(str, run(cluster, results, *arguments, "--display", "plain"))],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell starts background jobs without Ctrl-C
    )
    until = time.monotonic() + 120
    while not list(results.rglob("snapshot.pt")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Interrupted." in err
    (record,) = records(results).values()
    assert record["status"] == "started" and len(list(results.rglob("snapshot.pt"))) == 1 and not list(results.glob(".ray-*"))
    for folder, place in ((results, ["--ray", cluster.address]), (tmp_path / "calm", [])):
        assert bench("run", "--preset", "smoke", *TINY, "--results", folder, *arguments, *place).code == 0
    (went_on,), (calm,) = records(results).values(), records(tmp_path / "calm").values()
    assert went_on["metrics"] == calm["metrics"] and went_on["samples"] == calm["samples"]
