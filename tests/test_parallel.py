"""torchrun with real gloo processes: the weights, numbers and records of one process; failures, kills, resumes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, bench
from rankkit import torchrun
from team_fit import CASES, train

from inpbench.harness import process_group
from inpbench.harness.baselines import metric_hardware
from inpbench.harness.cost import Cost
from inpbench.harness.errors import PrerequisiteError, UsageError
from inpbench.harness.models import fitting_of, save_model
from inpbench.harness.registry import METHODS
from inpbench.harness.snapshots import Fitting, FolderSnapshots
from inpbench.harness.stamp import make_stamp


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What each of two processes came to in every case."""
    out = tmp_path_factory.mktemp("team") / "fitted"
    done = torchrun(2, out, script="team_fit.py")
    assert done.returncode == 0, done.stderr
    return {rank: torch.load(f"{out}.{rank}", weights_only=True) for rank in (0, 1)}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_weights_of_one(name: str, fitted: dict[int, dict[str, Any]]) -> None:
    """float64: to 1e-9 after 24 steps, of odd batches, of one image, of features that are kept or not; float32: to 1e-5."""
    expected, found = train(name, None), fitted[0][name]
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if name.endswith("float32") else {"rtol": 1e-9, "atol": 1e-9}
    assert found["state"].keys() == expected["state"].keys()
    for key, value in expected["state"].items():
        torch.testing.assert_close(found["state"][key], value, **tolerance, msg=lambda text, key=key: f"{key}: {text}")
    assert len(expected["losses"]) == 2 and found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert torch.equal(found["next"], expected["next"]), "training leaves the generators alone"
    for key, value in fitted[1][name]["state"].items():
        assert torch.equal(value, found["state"][key]), f"{key} differs between the processes"


def test_processes_that_trained_different_models_are_an_error(fitted: dict[int, dict[str, Any]]) -> None:
    for rank in (0, 1):
        assert "The 2 processes have trained different models: the norm of " in fitted[rank]["refusal"]["message"]


# --- the command line ------------------------------------------------------------------------------------------------------

RUN = ["run", "--encoder", "builtin", "--preset", "smoke", *TINY, "--display", "plain"]


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in folder.rglob("*.json") if ".work" not in str(path)}


def close(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    """The same cells with the same numbers: weights differ by 1e-6, metrics by less than an exchanged pair of pixels or two."""
    assert found.keys() == expected.keys() and found
    for key, record in expected.items():
        assert found[key]["status"] == record["status"] == "done", found[key]["error"]
        assert found[key]["metrics"]["mean"] == pytest.approx(record["metrics"]["mean"], abs=2e-4)
        assert found[key]["identity"] == record["identity"]


def test_one_cell_of_two_models_on_two_processes(tmp_path: Path) -> None:
    command = [*RUN, "--methods", "dinomaly", "--setting", "single_class", "--set", "dinomaly.batch_size=5"]
    done = torchrun(2, *command, "--results", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert bench(*command, "--results", tmp_path / "one").code == 0
    found, expected = records(tmp_path / "two"), records(tmp_path / "one")
    close(found, expected)
    (stamp,), (alone,) = ([record["stamp"] for record in each.values()] for each in (found, expected))
    assert stamp["team"]["processes"] == 2 and stamp["team"]["backend"] == "gloo" and len(stamp["team"]["devices"]) == 2
    assert stamp["hardware"] == alone["hardware"] + "-x2" and "team" not in alone
    assert stamp["command"].startswith("bench run ")
    assert done.stderr.count("testing weave") == done.stderr.count("testing nut") == 1, "one process tests and talks"
    assert "dinomaly:smoke" in done.stdout and not list((tmp_path / "two").rglob("*.work"))
    again = bench(*command, "--results", tmp_path / "two")
    assert again.code == 0 and "1 done, 0 to do" in again.err, "a single process finds what two have done"


@pytest.mark.slow
def test_a_killed_process_ends_all_and_another_number_of_them_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*RUN, "--methods", "dinomaly", "--set", "dinomaly.steps=60", "--snapshot-every", "0"]
    monkeypatch.setenv("FAULT", "1:45:kill:NoisyNetwork")
    killed = torchrun(2, *command, "--results", tmp_path / "killed", script="faulty_bench.py")
    assert killed.returncode != 0
    (record,) = records(tmp_path / "killed").values()
    assert record["status"] in ("started", "failed"), "rank 0 may be ended before it can say that it failed"
    assert list((tmp_path / "killed").rglob("snapshot.pt"))
    done = torchrun(3, *command, "--results", tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" 20/60") == 0, "begun again instead of resumed"
    assert bench(*command, "--results", tmp_path / "calm").code == 0
    close(records(tmp_path / "killed"), records(tmp_path / "calm"))


@pytest.mark.slow
def test_what_fails_everywhere_alike_is_one_cell_and_what_fails_in_one_process_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "1:3:raise:InpFormerNetwork")
    command = [*RUN, "--methods", "dinomaly,inp_former", "--seeds", "1,2", "--set", "dinomaly.lr=1e38"]
    failed = torchrun(2, *command, "--results", tmp_path, script="faulty_bench.py")
    assert failed.returncode != 0
    found = {(record["identity"]["method"], record["identity"]["seed"]): record for record in records(tmp_path).values()}
    assert found.keys() == {("dinomaly", 1), ("dinomaly", 2), ("inp_former", 1)}, "after the third the team was ended"
    assert {record["status"] for record in found.values()} == {"failed"}
    for seed in (1, 2):
        assert found["dinomaly", seed]["error"]["message"].startswith("The loss is nan between steps 0 and 6 of 6.")
    error = found["inp_former", 1]["error"]
    assert error["type"] == "DataError" and error["message"].startswith("process 1: A file vanished.")
    assert "process 1: DataError: A file vanished." in failed.stderr


def test_the_summary_of_torchrun_ends_with_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's traceback cannot be kept back: what it prints last is what a user reads."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    told = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(told))
    for arguments, words in (
        (["--metrics", "auroc"], "Type: bench list metrics"),
        (["--mtrics", "x"], "Type: bench leaderboard --help"),
    ):
        outcome = bench("leaderboard", *arguments)
        summary = str(ChildFailedError("bench", {0: ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(told))}))
        assert outcome.code == 2 and words in outcome.err
        assert [line.strip() for line in summary.splitlines()][-2] == words


def test_who_trained_a_model_stays_with_it(tmp_path: Path) -> None:
    """A shared or kept model is tested by other processes, later: its cost is still that of the team."""
    team = {"processes": 4, "backend": "nccl", "devices": ["NVIDIA H100"] * 4}
    first = FolderSnapshots(tmp_path)
    first.facts = team
    first.save_fitted({"w": torch.ones(2)})
    second = FolderSnapshots(tmp_path)
    assert second.facts is None and second.load_fitted() is not None and second.facts == team
    save_model(tmp_path, "all", "id", {"w": torch.ones(2)}, Fitting(2.5, team))
    save_model(tmp_path, "alone", "id", {"w": torch.ones(2)}, Fitting(1.5))
    assert fitting_of(tmp_path / "all.safetensors") == (2.5, team) and fitting_of(tmp_path / "alone.safetensors") == (1.5, None)
    cost = Cost()
    cost.add_fit(Fitting(2.5, team))
    cost.add_fit(Fitting(1.0))
    assert cost.fit_s == 3.5 and cost.team == team
    stamp = make_stamp("cpu", team=cost.team)
    assert stamp["hardware"] == make_stamp("cpu")["hardware"] + "-x4" and stamp["team"] == team
    assert metric_hardware("cuda-h100-x4") == "cuda-h100" and metric_hardware("cpu-x86_64-2-x2") == "cpu-x86_64"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_train_the_model_of_one(tmp_path: Path) -> None:
    """bfloat16 products round differently for half a batch: metrics within what another seed of rounding does."""
    command = [*RUN, "--methods", "inp_former,dinomaly", "--device", "cuda", "--set", "dinomaly.steps=40"]
    done = torchrun(2, *command, "--results", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert bench(*command, "--results", tmp_path / "one").code == 0
    found, expected = records(tmp_path / "two"), records(tmp_path / "one")
    assert found.keys() == expected.keys()
    for key, record in expected.items():
        assert found[key]["stamp"]["team"]["backend"] == "nccl"
        for metric in ("p_auroc", "p_ap"):
            assert found[key]["metrics"]["mean"][metric] == pytest.approx(record["metrics"]["mean"][metric], abs=0.02)


# --- what cannot run on several ------------------------------------------------------------------------------------------


class FourOfThem:
    """A team that is never called."""

    rank, size, lost = 0, 4, False

    def announce(self) -> None:
        raise AssertionError("nothing is to be trained")

    def end(self) -> None:
        pass


def test_a_method_for_one_process_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "join", FourOfThem)
    refused = bench(*RUN, "--methods", "dinomaly,crr", "--results", tmp_path)
    assert refused.code == 2 and "crr trains in one process; torchrun started 4." in refused.err
    assert "Type it without torchrun: bench run --methods crr" in refused.err and not records(tmp_path)


def test_other_verbs_are_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused = bench("leaderboard")
    assert refused.code == 2 and "only bench run trains on several" in refused.err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert process_group.join() is None and process_group.processes() == 1
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("WORLD_SIZE", "4")  # of some cluster; torchrun did not start this
    assert process_group.join() is None


def test_every_process_has_a_gpu_of_its_own_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    team = object.__new__(process_group.Team)
    team.size, team.neighbours, team.local_rank = 4, 2, 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert team.device_name("auto") == team.device_name("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert team.device_name("auto") == team.device_name("cuda") == "cuda:1" and team.device_name("cpu") == "cpu"
    with pytest.raises(UsageError, match="has a GPU of its own"):
        team.device_name("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PrerequisiteError, match="2 processes on this machine, torch finds 1"):
        team.device_name("auto")


def test_which_methods_train_on_several() -> None:
    assert {info.name for info in map(METHODS.get, METHODS.names()) if info.parallel} == {"inp_former", "dinomaly"}


def test_the_slurm_script_is_valid_bash() -> None:
    script = Path(__file__).parents[1] / "examples" / "slurm_torchrun.sh"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False).returncode == 0
    assert "torchrun" in script.read_text("utf-8")
