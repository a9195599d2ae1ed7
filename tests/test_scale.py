"""`bench run --ray` without Ray: shares, handing out, what a node checks, and a driver whose workers are of this process."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from commands import TINY, bench

from inpbench.harness.claims import claim
from inpbench.harness.errors import BenchError, PrerequisiteError, UsageError
from inpbench.harness.scale import driver, worker
from inpbench.harness.scale.cluster import LostError, target_of
from inpbench.harness.scale.handout import Handout
from inpbench.harness.scale.job import Contract, Job, Message, NodeError, contract_of
from inpbench.harness.scale.shares import Node, Share, Wish, choose_share, describe
from inpbench.methods.raw_pixel.model import RawPixel

REPOSITORY = Path(__file__).resolve().parents[1]
RAW = ["run", "-m", "raw_pixel", "--preset", "smoke", *TINY]


# --- shares ---------------------------------------------------------------------------------------------------------

CPU2, CPU64 = Node("a", "a", 2, 0), Node("b", "b", 64, 0)
GPU4 = Node("c", "c", 64, 4)


@pytest.mark.parametrize(
    ("wish", "nodes", "device", "share"),
    [
        (Wish(), [CPU2], "auto", Share(2, 0)),
        (Wish(), [CPU2, CPU64], "auto", Share(64, 0)),
        (Wish(cpus=1), [CPU2, CPU2], "auto", Share(1, 0)),
        (Wish(), [CPU64, GPU4], "auto", Share(16, 1)),
        (Wish(gpus=0.5), [GPU4], "auto", Share(8, 0.5)),
        (Wish(gpus=0), [GPU4], "auto", Share(64, 0)),
        (Wish(), [GPU4], "cpu", Share(64, 0)),
        (Wish(cpus=3), [GPU4], "cuda", Share(3, 1)),
        (Wish(gpus=1), [Node("d", "d", 1, 8)], "auto", Share(1, 1)),  # fewer processors than GPUs: one all the same
        (Wish(gpus=0.5), [Node("d", "d", 8, 0.5)], "auto", Share(8, 0.5)),  # a node that offers half a GPU
    ],
)
def test_the_share_of_a_cell(wish: Wish, nodes: list[Node], device: str, share: Share) -> None:
    wish.check(device)
    assert choose_share(wish, nodes, device, grows=False) == share


def test_a_share_that_no_node_has_is_refused_unless_nodes_may_join() -> None:
    with pytest.raises(PrerequisiteError, match="1 GPU and 1 CPU for a cell; the largest has 0 GPU and 2 CPUs"):
        choose_share(Wish(), [CPU2], "cuda", grows=False)
    share = choose_share(Wish(gpus=1, cpus=4), [CPU2], "auto", grows=True)
    assert share == Share(4, 1) and "waiting for one to join" in describe(share, [CPU2])


def test_the_description_counts_cells_and_names_idle_nodes() -> None:
    assert Share(8, 0.5).fits(GPU4) == 8 and Share(32, 0.5).fits(GPU4) == 2
    text = describe(Share(16, 1), [CPU2, GPU4])
    assert text == "2 nodes; a cell gets 1 GPU and 16 CPUs; 4 cells at a time (--ray-gpus, --ray-cpus); too small for a cell: a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray-gpus", "0.5"], "--ray-gpus is of use only with --ray"),
        (["--ray-retries", "1"], "--ray-retries is of use only with --ray"),
        (["--ray", "auto", "--ray-gpus", "2"], "a cell uses at most one GPU"),
        (["--ray", "auto", "--device", "cuda:1"], "which GPU a cell gets is Ray's to choose"),
        (["--ray", "auto", "--device", "cpu", "--ray-gpus", "1"], "--device cpu has no use for --ray-gpus 1"),
        (["--ray", "auto", "--device", "cuda", "--ray-gpus", "0"], "--device cuda needs a share of a GPU"),
        (["--ray", "ray://head:10001"], "does not see the cluster's folders"),
    ],
)
def test_wishes_that_make_no_sense(results: Path, arguments: list[str], message: str) -> None:
    outcome = bench(*RAW, "--results", results, *arguments)
    assert outcome.code == 2 and message in outcome.err and not list(results.rglob("*.json"))


def test_ray_under_torchrun_is_refused(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    outcome = bench(*RAW, "--results", results, "--ray", "auto")
    assert outcome.code == 2 and "--ray under torchrun" in outcome.err


def test_an_address_where_nothing_listens_is_an_answer_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray itself tries for five minutes, with a line of log every few seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        silent = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(PrerequisiteError, match=f"No Ray cluster answers at {silent}: Connection refused"):
        target_of(silent)
    with pytest.raises(PrerequisiteError, match="an address is HOST:PORT"):
        target_of("head")
    assert target_of("local") is None and target_of("auto") is None, "no cluster: one is started here"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(silent)
    assert target_of("auto") is None, "of a cluster that is gone"
    with socket.create_server(("127.0.0.1", 0)) as head:
        alive = f"127.0.0.1:{head.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"{alive}\n")
        assert target_of("auto") == alive == target_of(alive)
        monkeypatch.setenv("RAY_ADDRESS", silent)
        with pytest.raises(PrerequisiteError, match=silent):
            target_of("auto")  # who names a cluster never gets another one
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(PrerequisiteError, match="does not see the cluster's folders"):
        target_of("auto")


def test_without_ray_the_command_that_installs_it_is_named(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = bench(*RAW, "--results", results, "--ray", "auto")
    assert outcome.code == 3 and "pip install 'inpbench[ray]'" in outcome.err and not results.exists()


# --- handing out ----------------------------------------------------------------------------------------------------


def nothing_kept(cell: int) -> bool:
    return False


def test_cells_of_their_own_go_at_once() -> None:
    handout = Handout([None, None, None], 2, nothing_kept)
    assert handout.take() == [0, 1, 2] and handout.take() == [] and handout.left == (3, 0)
    for cell in (2, 0, 1):
        handout.finished(cell, well=cell != 0)
    assert not handout.open


def test_cells_of_one_training_wait_for_the_first() -> None:
    handout = Handout(["x", "x", "y", "x", None], 2, nothing_kept)
    assert handout.take() == [0, 2, 4] and handout.take() == []
    handout.finished(0, well=True)
    assert handout.take() == [1, 3] and handout.trained == {"x"}


def test_after_a_failure_the_next_one_trains_alone() -> None:
    handout = Handout(["x", "x", "x"], 2, nothing_kept)
    assert handout.take() == [0]
    handout.finished(0, well=False)
    assert handout.take() == [1] and handout.trained == set()


def test_a_kept_model_sets_the_others_free_before_the_first_has_ended() -> None:
    kept: set[int] = set()
    handout = Handout(["x", "x", "x"], 2, kept.__contains__)
    assert handout.take() == [0]
    kept |= {1, 2}
    assert handout.take() == [1, 2]


def test_a_lost_cell_goes_back_a_bounded_number_of_times() -> None:
    handout = Handout(["x", "x"], 1, nothing_kept)
    assert handout.take() == [0]
    assert handout.lost(0, "killed") and handout.losses(0) == ["killed"]
    assert handout.take() == [0], "in the order of the plan, and still the only one of its training"
    assert not handout.lost(0, "killed again") and handout.losses(0) == ["killed", "killed again"]
    assert handout.take() == [1] and handout.open


# --- a node ---------------------------------------------------------------------------------------------------------


def test_a_node_that_does_not_share_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contract_of(tmp_path / "runs") as contract:
        worker.examine(contract, "n1")
        with monkeypatch.context() as patch:
            patch.setattr(worker, "sources_digest", lambda: "0" * 64)
            with pytest.raises(NodeError, match="Node n1 has other sources of inpbench"):
                worker.examine(contract, "n1")
        (tmp_path / "runs" / contract.token).write_text("another folder's")
        with pytest.raises(NodeError, match="Node n1 sees another folder"):
            worker.examine(contract, "n1")
    assert not list((tmp_path / "runs").iterdir()), "the token is gone with the run"
    with pytest.raises(NodeError, match="Node n1 does not see the results folder"):
        worker.examine(contract, "n1")


def test_progress_is_sent_no_faster_than_one_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.1, 0.7, 0.8, 0.9])
    monkeypatch.setattr(worker.time, "monotonic", lambda: next(clock))
    sent: list[Message] = []
    progress = worker.Reporter(4, sent.append)
    for done, text in ((1, "epoch 1"), (2, "epoch 1"), (3, "epoch 2"), (9, "epoch 2"), (0, "testing")):
        progress(done, 9, text, loss=0.5)
    assert [message.done for message in sent] == [1, 3, 9, 0], "a new stage, half a second, the end, a new stage"
    assert sent[1] == Message(4, 3, 9, "epoch 2", {"loss": 0.5})


# --- a driver whose workers are functions of this process -----------------------------------------------------------


class Inline:
    """Stands for `cluster.Cluster`: cells run when their result is asked for; `hazards` come first, by the cell's number."""

    hazards: ClassVar[dict[int, list[BaseException]]] = {}
    jobs: ClassVar[list[Job]] = []
    cancelled: ClassVar[list[int]] = []
    started_here = True

    def __init__(self, address: str) -> None:
        assert address == "auto"
        self._messages: list[Message] = []

    def nodes(self) -> list[Node]:
        return [Node("1", "here", 2, 0)]

    def version(self) -> str:
        return "0"

    def examine(self, contract: Contract, nodes: Sequence[Node]) -> None:
        worker.examine(contract, nodes[0].name)

    def submit(self, job: Job, share: Share) -> int:
        self.jobs.append(pickle.loads(pickle.dumps(job)))
        return len(self.jobs) - 1

    def wait(self, handles: Sequence[int], timeout_s: float) -> list[int]:
        return [min(handles)]

    def result(self, handle: int) -> Any:
        job = self.jobs[handle]
        if self.hazards.get(job.number):
            raise self.hazards[job.number].pop(0)
        return pickle.loads(pickle.dumps(worker.work(job, self._messages.append, "here")))

    def messages(self) -> list[Message]:
        taken, self._messages = self._messages, []
        return taken

    def cancel(self, handles: Sequence[int]) -> None:
        self.cancelled.extend(self.jobs[handle].number for handle in handles)

    def close(self) -> None:
        pass


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> type[Inline]:
    monkeypatch.setattr(driver, "Cluster", Inline)
    for name, value in (("hazards", {}), ("jobs", []), ("cancelled", [])):
        monkeypatch.setattr(Inline, name, value)
    return Inline


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/*/*.json"))}


SAME = ("status", "label", "identity", "metrics", "samples", "support", "skipped", "marks")


def numbers(folder: Path) -> dict[str, Any]:
    return {name: {key: record[key] for key in SAME} for name, record in records(folder).items()}


def test_the_records_are_those_of_one_process(inline: type[Inline], tmp_path: Path) -> None:
    command = ["run", "-m", "raw_pixel,inp_former", "--encoder", "builtin", "--preset", "smoke", *TINY]
    command += ["--set", "inp_former.steps=2"]
    assert bench(*command, "--results", tmp_path / "one").code == 0
    outcome = bench(*command, "--results", tmp_path / "ray", "--ray", "auto", "--display", "plain")
    assert outcome.code == 0, outcome.err
    assert "a cell gets 2 CPUs; 1 cell at a time" in outcome.err and "done: raw_pixel:smoke synthetic seed 1" in outcome.err
    assert len(records(tmp_path / "ray")) == 2 and numbers(tmp_path / "ray") == numbers(tmp_path / "one")
    for record in records(tmp_path / "ray").values():
        assert record["stamp"]["ray"] == {"version": "0", "cpus": 2, "gpus": 0.0}
        assert record["stamp"]["command"].startswith("bench run") and record["notes"] == []
        assert record["stamp"]["hardware"].startswith("cpu-")
    assert not list((tmp_path / "ray").glob(".ray-*"))
    again = bench(*command, "--results", tmp_path / "ray", "--ray", "auto")
    assert again.code == 0 and "2 done, 0 to do" in again.err and len(inline.jobs) == 2


def test_a_lost_worker_is_replaced_and_the_record_says_so(inline: type[Inline], results: Path) -> None:
    inline.hazards[0] = [LostError("its node was lost")]
    outcome = bench(*RAW, "--seeds", "1,2", "--results", results, "--ray", "auto")
    assert outcome.code == 0, outcome.err
    assert "raw_pixel:smoke synthetic seed 1: worker lost: its node was lost; begun anew" in outcome.err
    by_seed = {record["identity"]["seed"]: record for record in records(results).values()}
    assert by_seed[1]["notes"] == ["worker lost once under Ray (its node was lost); taken up again"] and by_seed[2]["notes"] == []
    assert [(job.number, job.attempt) for job in inline.jobs] == [(0, 1), (1, 1), (0, 2)]


def test_a_cell_whose_workers_are_always_lost_fails_and_the_others_go_on(inline: type[Inline], results: Path) -> None:
    inline.hazards[0] = [LostError("its process died") for _ in range(9)]
    outcome = bench(*RAW, "--seeds", "1,2", "--results", results, "--ray", "auto", "--ray-retries", "1")
    assert outcome.code == 1
    by_seed = {record["identity"]["seed"]: record for record in records(results).values()}
    assert (by_seed[1]["status"], by_seed[2]["status"]) == ("failed", "done")
    assert by_seed[1]["error"]["type"] == "WorkerLostError" and by_seed[1]["error"]["traceback"] == ""
    assert "was lost 2 times under Ray; the last time its process died" in by_seed[1]["error"]["message"]
    inline.hazards[0] = []
    assert bench(*RAW, "--seeds", "1,2", "--results", results).code == 0, "and one process takes it up"


def test_a_record_that_was_finished_before_its_worker_was_lost_is_not_made_again(inline: type[Inline], results: Path) -> None:
    assert bench(*RAW, "--results", results, "--ray", "auto").code == 0
    (job,) = inline.jobs
    (before,) = records(results).values()
    with contract_of(results) as contract:
        again = worker.work(pickle.loads(pickle.dumps(replaced(job, contract, 2))), lambda message: None, "here")
    assert again.finished == before["finished"] and records(results) == {f"{again.id12}.json": before}


def replaced(job: Job, contract: Contract, attempt: int) -> Job:
    from dataclasses import replace

    return replace(job, contract=contract, attempt=attempt)


def test_a_failing_method_is_a_failed_record(inline: type[Inline], results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(self: RawPixel, train: Any) -> None:
        raise ValueError("no good")

    monkeypatch.setattr(RawPixel, "fit", fit)
    assert bench(*RAW, "--results", results, "--ray", "auto").code == 1
    (record,) = records(results).values()
    assert record["status"] == "failed" and record["error"]["message"] == "no good" and "Traceback" in record["error"]["traceback"]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), BenchError("the disk is full")], ids=["ctrl-c", "error"])
def test_what_ends_the_run_stops_the_cells_that_are_out(inline: type[Inline], results: Path, end: BaseException) -> None:
    inline.hazards[0] = [end]
    outcome = bench(*RAW, "--seeds", "1,2,3", "--results", results, "--ray", "auto")
    assert outcome.code == (130 if isinstance(end, KeyboardInterrupt) else 1) and inline.cancelled == [1, 2]
    assert ("Interrupted." if outcome.code == 130 else "the disk is full") in outcome.err
    assert bench(*RAW, "--seeds", "1,2,3", "--results", results, "--ray", "auto").code == 0


def test_a_cell_that_another_bench_works_on_is_left_to_it_as_in_one_process(inline: type[Inline], results: Path) -> None:
    plan = bench(*RAW, "--seeds", "1,2", "--results", results, "--dry-run", "--json").json()["cells"][0]
    lock = results / "synthetic" / "multi_class" / "raw_pixel" / f"{plan['id'][:12]}.lock"
    with claim(lock):
        outcome = bench(*RAW, "--seeds", "1,2", "--results", results, "--ray", "auto")
    assert outcome.code == 1 and "Another bench is at work on 1 of these cells" in outcome.err
    assert [record["identity"]["seed"] for record in records(results).values()] == [2], "the record is the other bench's to write"


@pytest.mark.parametrize("force", [False, True])
def test_cells_of_one_training_train_once(
    inline: type[Inline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    fits: list[list[str]] = []
    original = RawPixel.fit

    def fit(self: RawPixel, train: Any) -> None:
        fits.append(list(train.categories))
        original(self, train)

    monkeypatch.setattr(RawPixel, "fit", fit)
    drawn(tmp_path / "a", "weave,nut"), drawn(tmp_path / "b", "tile")
    command = ["run", "-m", "raw_pixel", "--preset", "smoke", "-s", "super_multi_class", "-d", "folder,mvtec_ad"]
    command += ["--data-root", f"folder={tmp_path / 'a'}", "--data-root", f"mvtec_ad={tmp_path / 'b'}"]
    command += ["--results", str(tmp_path / "runs"), "--ray", "auto"]
    outcome = bench(*command)
    assert outcome.code == 0, outcome.err
    assert len(fits) == 1 and [job.number for job in inline.jobs] == [0, 1]
    if force:
        assert bench(*command, "--force").code == 0 and len(fits) == 2, "again, and once for both"


def drawn(folder: Path, categories: str) -> None:
    from inpbench.datasets.synthetic import SyntheticParams, generate

    generate(folder, SyntheticParams(size=64, train=3, normal=2, defective=1, categories=categories))


def test_a_node_with_other_data_is_named(inline: type[Inline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data changes between the plan here and the plan there, as if two machines had two copies."""
    drawn(tmp_path / "set", "weave")
    monkeypatch.chdir(tmp_path)
    command = ["run", "-m", "raw_pixel", "--preset", "smoke", "-d", "folder", "--results", "runs", "--ray", "auto"]
    command += ["--data-root", "set"]
    original = Inline.submit

    def submit(self: Inline, job: Job, share: Share) -> int:
        assert job.request.data_root == tmp_path / "set", "a relative path travels whole"
        (tmp_path / "set/weave/train/good/0000.png").unlink(missing_ok=True)
        return original(self, job, share)

    with monkeypatch.context() as patch:
        patch.setattr(Inline, "submit", submit)
        outcome = bench(*command)
        assert outcome.code == 3 and "Node here would run another cell than" in outcome.err
        assert "the files of the data set differ there" in outcome.err
    shutil.move(tmp_path / "set", tmp_path / "away")
    (tmp_path / "set").mkdir()
    (job, *_) = inline.jobs
    with contract_of(tmp_path / "runs") as contract, pytest.raises(NodeError, match=r"Node here: .*/set holds no category"):
        worker.work(replaced(job, contract, 1), lambda message: None, "here")


def test_warnings_of_a_worker_reach_the_person(inline: type[Inline], results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    original = RawPixel.fit

    def fit(self: RawPixel, train: Any) -> None:
        # Only to the handlers of the worker: in a cluster the other ones live in another process.
        for handler in logging.getLogger("inpbench").handlers:
            if isinstance(handler, worker._Forward):
                handler.handle(logging.LogRecord("inpbench", logging.WARNING, "", 0, "half of it", None, None))
        original(self, train)

    monkeypatch.setattr(RawPixel, "fit", fit)
    outcome = bench(*RAW, "--seeds", "1,2", "--results", results, "--ray", "auto")
    assert "Warning: raw_pixel:smoke synthetic seed 1: half of it" in outcome.err


def test_a_part_of_a_gpu_is_said_in_the_record(inline: type[Inline], results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of the tests has no GPU: the node says so by name, and nothing runs on the CPU in silence."""
    import torch

    monkeypatch.setattr(Inline, "nodes", lambda self: [Node("1", "here", 8, 1)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = bench(*RAW, "--results", results, "--ray", "auto", "--ray-gpus", "0.5")
    assert outcome.code == 3 and "Node here: Ray gave this cell a GPU, but torch finds no CUDA device" in outcome.err
    assert inline.jobs[0].share == Share(4, 0.5) and "had 0.5 of a GPU" in inline.jobs[0].notes[0]


def test_an_address_of_the_remote_client_is_refused() -> None:
    with pytest.raises(UsageError, match="does not see the cluster's folders"):
        Wish(address="ray://head:10001").check("auto")


def test_the_slurm_script_is_a_script() -> None:
    script = REPOSITORY / "examples" / "slurm_ray.sh"
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = script.read_text(encoding="utf-8")
    assert "#SBATCH" in text and "ray start --head" in text and "bench run" in text and "--ray auto" in text
