"""Stamps: what is in them, and what must never be."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from inpbench.harness import stamp
from inpbench.harness.records import canonical_json


@pytest.fixture(autouse=True)
def _fresh():
    stamp.git_state.cache_clear()
    yield
    stamp.git_state.cache_clear()


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments], check=True)


@pytest.fixture
def repository(tmp_path):
    """A repository that tracks a file of the name of the stamp's own source."""
    (tmp_path / "stamp.py").write_text("1")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "remote", "add", "origin", "https://me:s3cret@example.org/r.git")
    _git(tmp_path, "add", "stamp.py")
    _git(tmp_path, "commit", "-qm", "x")
    return tmp_path


def test_a_stamp_is_json_and_complete():
    made = stamp.make_stamp("cpu", eval_batch=16, extra_fact=1)
    assert json.loads(canonical_json(made)) == made
    assert list(made)[:6] == ["git", "packages", "python", "os", "hardware", "device"]
    assert made["packages"]["inpbench"] and made["packages"]["torch"] and made["python"] == platform.python_version()
    assert made["eval_batch"] == 16 and made["extra_fact"] == 1


def test_the_host_is_named_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    assert "secret-host" not in json.dumps(stamp.make_stamp())
    assert stamp.make_stamp(host=True)["host"] == "secret-host"


def test_git_commit_and_dirty(repository):
    state = stamp.git_state(repository)
    assert state is not None and len(state["commit"]) == 40 and state["dirty"] is False
    assert state["origin"] == "https://example.org/r.git"
    stamp.git_state.cache_clear()
    (repository / "untracked").write_text("x")
    assert stamp.git_state(repository)["dirty"] is False
    stamp.git_state.cache_clear()
    (repository / "stamp.py").write_text("2")
    assert stamp.git_state(repository)["dirty"] is True


def test_no_repository_no_commit_or_no_git_is_none(tmp_path, monkeypatch, repository):
    other = tmp_path / "environment" / "site-packages"
    other.mkdir(parents=True)
    (other / "stamp.py").write_text("")  # inside somebody's repository, not part of it
    assert stamp.git_state(other) is None
    stamp.git_state.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert stamp.git_state(repository) is None


@pytest.mark.parametrize(
    ("address", "clean"),
    [
        ("https://me:token@example.org/r.git", "https://example.org/r.git"),
        ("https://token@example.org/r.git", "https://example.org/r.git"),
        ("ssh://git@example.org/r.git", "ssh://example.org/r.git"),
        ("git@example.org:r.git", "git@example.org:r.git"),
        ("https://example.org/a@b", "https://example.org/a@b"),
    ],
)
def test_addresses_lose_their_login(address, clean):
    assert stamp.without_login(address) == clean


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["/home/me/.venv/bin/bench", "run", "--seeds", "0,1"], "bench run --seeds 0,1"),
        (["bench", "--hub-token", "abc", "x"], "bench --hub-token *** x"),
        (["bench", "--hub-token=abc", "x"], "bench --hub-token=*** x"),
        (["bench", "--api_key=a=b"], "bench --api_key=***"),
        (["bench", "--token", "--limit", "3"], "bench --token --limit 3"),
        (["bench", "password=1"], "bench password=***"),
        (["bench", "https://a:b@example.org/x"], "bench https://***@example.org/x"),
        (["bench", "two words"], "bench 'two words'"),
        (["bench", "--checkpoint", "tokenizer.pth"], "bench --checkpoint tokenizer.pth"),
        ([], ""),
    ],
)
def test_the_command_line_has_no_secret(words, text):
    assert stamp.command_line(words) == text


def test_hardware_of_a_cpu():
    kind = stamp.hardware_class("cpu")
    assert kind.startswith("cpu-") and int(kind.rsplit("-", 1)[1]) >= 1


def test_hardware_of_a_gpu(monkeypatch):
    names = ["NVIDIA H100 80GB HBM3", "Tesla T4"]
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda index: names[index or 0])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert stamp.hardware_class("cuda") == "cuda-h100" and stamp.hardware_class("cuda:1") == "cuda-t4"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA GeForce RTX 3080 Ti", "rtx-3080-ti"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("AMD Instinct MI300X", "amd-instinct-mi300x"),
        ("", "unknown"),
    ],
)
def test_gpu_names(name, slug):
    assert stamp.gpu_slug(name) == slug


def test_flags_and_threads_of_torch():
    import torch

    made = stamp.make_stamp(torch.device("cpu"))
    assert made["threads"] == torch.get_num_threads()
    assert made["flags"]["tf32"] is False and made["flags"]["deterministic"] is torch.are_deterministic_algorithms_enabled()


def test_without_torch_a_stamp_imports_none():
    code = (
        "import json, os, sys; os.environ['OMP_NUM_THREADS'] = '3'\n"
        "from inpbench.harness.stamp import make_stamp\n"
        "made = make_stamp(); assert 'torch' not in sys.modules\n"
        "assert made['threads'] == 3 and made['flags'] == {} and 'torch' in made['packages']"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    assert answer.returncode == 0, answer.stderr
