"""Weight files: places, hashes, containers, and files that are missing, broken or hostile."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import PYTHON
from safetensors.torch import save_file

from inpbench.harness import weights
from inpbench.harness.api import WeightSpec
from inpbench.harness.errors import EXIT_MISSING, WeightsError
from inpbench.harness.weights import BesideCheckpoint, WeightStore, read_tensors

SPEC = WeightSpec(name="tiny_vit", file="tiny.pth", url="https://example.org/tiny.pth", timm="tiny_timm")


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)


def tensors() -> dict[str, torch.Tensor]:
    return {"cls_token": torch.arange(4.0), "norm.weight": torch.ones(3)}


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


# --- where ----------------------------------------------------------------------------------------------------------


def test_the_places_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = save(tmp_path / "given" / "tiny.pth", tensors())
    found = save(tmp_path / "folder" / "tiny.pth", {"cls_token": torch.zeros(1)})
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(found.parent))
    assert WeightStore().find(SPEC) == found
    assert WeightStore(str(given.parent)).find(SPEC) == given
    assert WeightStore(str(given)).find(SPEC) == given
    assert torch.equal(WeightStore(str(given)).state(SPEC)["cls_token"], torch.arange(4.0))  # type: ignore[index]


def test_a_folder_without_the_file_falls_back_to_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = save(tmp_path / "folder" / "tiny.pth", tensors())
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(found.parent))
    (tmp_path / "empty").mkdir()
    assert WeightStore(str(tmp_path / "empty")).find(SPEC) == found


def test_a_named_file_that_is_missing_is_not_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(save(tmp_path / "tiny.pth", tensors()).parent))
    with pytest.raises(WeightsError, match=r"other\.pth"):
        WeightStore(str(tmp_path / "other.pth")).find(SPEC)


def test_missing_weights_name_the_file_the_places_and_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(tmp_path / "folder"))
    (tmp_path / "given").mkdir()
    with pytest.raises(WeightsError) as caught:
        WeightStore(str(tmp_path / "given")).state(SPEC)
    for words in ("tiny_vit", "tiny.pth", str(tmp_path / "given"), str(tmp_path / "folder")):
        assert words in caught.value.message
    for words in (SPEC.url, "INPBENCH_WEIGHTS", "--download", "builtin"):
        assert words in caught.value.hint
    assert caught.value.exit_code == EXIT_MISSING


def test_nothing_is_downloaded_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "model.safetensors"
    save_file(tensors(), hub)
    asked: list[str] = []

    def download(spec: WeightSpec, dry: bool) -> Path:
        asked.append(spec.timm)
        return hub

    monkeypatch.setattr(weights, "_download", download)
    with pytest.raises(WeightsError):
        WeightStore().find(SPEC)
    assert asked == []
    assert set(WeightStore(download=True).state(SPEC) or {}) == set(tensors())
    assert asked == ["tiny_timm"]


def test_a_failing_download_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def refuse(**_: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(WeightsError, match="no route to host"):
        WeightStore(download=True).find(SPEC)


# --- identity -------------------------------------------------------------------------------------------------------


def test_identities(tmp_path: Path) -> None:
    path = save(tmp_path / "tiny.pth", tensors())
    expected = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert WeightStore(str(path)).identity(SPEC) == expected
    assert WeightStore().hash_file(path) == expected
    assert WeightStore("random").identity(SPEC) == "random"
    assert WeightStore("random").state(SPEC) is None
    builtin = WeightSpec(name="builtin", file="", source="builtin", version=3)
    assert WeightStore().identity(builtin) == "builtin:v3"
    assert WeightStore("random").identity(builtin) == "builtin:v3"
    with pytest.raises(WeightsError):
        WeightStore().identity(SPEC)


def test_a_file_that_was_swapped_since_the_plan_is_refused(tmp_path: Path) -> None:
    """A queue of cells runs for hours: each compares the file that it read with the identity that it was planned under."""
    from types import SimpleNamespace

    from inpbench.harness.runner import _check_weights

    path, store = save(tmp_path / "tiny.pth", tensors()), WeightStore(str(tmp_path / "tiny.pth"))
    cell: Any = SimpleNamespace(
        request=SimpleNamespace(checkpoint=None),
        method=SimpleNamespace(weights=lambda params: (SPEC,)),
        params=None,
        identity={"weights": {SPEC.name: store.identity(SPEC)}, "checkpoint": None},
    )
    options: Any = SimpleNamespace(weights=store)
    _check_weights(cell, options)
    save(path, {name: value + 1 for name, value in tensors().items()})
    with pytest.raises(WeightsError, match=f"The file of {SPEC.name} is another one than when this run was planned"):
        _check_weights(cell, options)
    cell.identity["weights"][SPEC.name] = BesideCheckpoint(store).identity(SPEC)
    cell.request.checkpoint, cell.identity["checkpoint"] = path, "sha256:" + "0" * 64
    with pytest.raises(WeightsError, match="The file of checkpoint"):
        _check_weights(cell, options)


def test_the_hash_is_computed_once_and_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "tiny.pth", tensors())
    first = WeightStore(str(path)).identity(SPEC)
    with monkeypatch.context() as patch:
        patch.setattr("inpbench.harness.weights.hashlib.sha256", None)
        assert WeightStore(str(path)).identity(SPEC) == first
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # another file of the same size and time
    assert WeightStore(str(path)).identity(SPEC) != first


def test_an_identity_needs_no_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "tiny.pth", tensors())
    program = (
        "import sys\nfrom inpbench.harness.weights import WeightStore\nfrom inpbench.methods.inp_former import INFO\n"
        "spec, = INFO.weights(INFO.params())\nprint(WeightStore(sys.argv[1]).identity(spec))\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([*PYTHON, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sha256:")


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "model", "state_dict", "teacher"])
def test_containers_are_opened(tmp_path: Path, key: str | None) -> None:
    content = tensors() if key is None else {key: tensors(), "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    found = read_tensors(save(tmp_path / "a.pth", content))
    assert set(found) == set(tensors())
    assert torch.equal(found["cls_token"], torch.arange(4.0))


def test_safetensors(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["cls_token"], torch.arange(4.0))


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, writer: str) -> None:
    witness, path = tmp_path / "witness", tmp_path / "evil.pth"
    content = {"cls_token": Hostile(f"touch {witness}")}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match="other than tensors, which could run code"):
        read_tensors(path)
    assert not witness.exists()


def test_broken_files_are_user_errors(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pth", tensors()).read_bytes()
    cases = {
        "empty.pth": (b"", "it is empty"),
        "text.pth": (b"<html>404 not found</html>", "no PyTorch file"),
        "truncated.pth": (whole[: len(whole) // 2], "truncated"),
        "noise.safetensors": (bytes(range(256)) * 4, "truncated or no safetensors"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=words) as caught:
            read_tensors(tmp_path / name)
        assert name in caught.value.message and caught.value.hint


@pytest.mark.parametrize("content", [{"epoch": 3, "loss": 0.1}, [torch.ones(1)], {}, torch.ones(2)])
def test_a_checkpoint_without_named_tensors(tmp_path: Path, content: object) -> None:
    with pytest.raises(WeightsError, match="holds no named tensors"):
        read_tensors(save(tmp_path / "a.pth", content))


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"norm\.weight holds values that are not finite"):
        read_tensors(save(tmp_path / "a.pth", {**tensors(), "norm.weight": torch.tensor([1.0, float("nan")])}))


def test_reading_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="There is no weight file"):
        WeightStore().read_file(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="There is no weight file"):
        WeightStore().hash_file(str(tmp_path / "none.pth"))


def test_a_dry_run_downloads_nothing(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    import huggingface_hub as hub
    from commands import TINY, bench

    monkeypatch.setattr(hub, "hf_hub_download", lambda **_: pytest.fail("downloaded"))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.delenv("INPBENCH_WEIGHTS", raising=False)
    command = ["run", "-m", "inp_former", *TINY, "--download", "--dry-run", "--json", "--results", results]
    outcome = bench(*command)
    assert outcome.code == 0, outcome.err
    (cell,) = outcome.json()["cells"]
    assert (cell["status"], cell["id"]) == ("todo", "") and "would be downloaded" in cell["reason"]
