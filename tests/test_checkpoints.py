"""`model.pth` files from the command line: of one class (others: test_run_settings), and wrong ones, which are refused in words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, bench
from methodkit import make_context

from inpbench.harness.marks import CLAIMED
from inpbench.methods.dinomaly import DinomalyParams
from inpbench.methods.dinomaly.method import Dinomaly
from inpbench.methods.inp_former import InpFormerParams
from inpbench.methods.inp_former.method import InpFormer

INP = ["run", "-m", "inp_former", "--preset", "smoke", "--encoder", "builtin", "--set", "inp_former.steps=3"]
SMALL: dict[str, Any] = {"encoder": "builtin", "input_size": (128, 128), "crop_size": (112, 112)}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/*/*.json"))]


def test_a_single_class_model_comes_back(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*INP, *TINY, "-s", "single_class", "--results"]
    assert bench(*command, results).code == 0
    (own,) = records(results)
    file = tmp_path / "nut" / "model.pth"
    file.parent.mkdir()
    exported = bench("export", own["id"], "--format", "official", "--model", "nut", "--out", file, "--results", results)
    assert exported.code == 0, exported.err
    monkeypatch.setattr(InpFormer, "fit", lambda *_: pytest.fail("trained"))
    outcome = bench(*command, tmp_path / "official", "--checkpoint", file, "--categories", "nut")
    assert outcome.code == 0, outcome.err
    (official,) = records(tmp_path / "official")
    assert official["metrics"]["mean"] == pytest.approx(own["metrics"]["categories"]["nut"], abs=1e-6)
    several = bench(*command, tmp_path / "none", "--checkpoint", file)
    assert several.code == 2 and "--categories weave" in several.err and not (tmp_path / "none").exists()


def test_what_a_checkpoint_was_trained_on_is_said_to_be_its_users_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*INP, *TINY, "-s", "cross_class", "--results"]
    assert bench(*command, tmp_path / "own").code == 0
    (own,) = records(tmp_path / "own")
    file = tmp_path / "model.pth"
    exported = bench(
        "export", own["id"], "--format", "official", "--model", "objects", "--out", file, "--results", tmp_path / "own"
    )
    assert exported.code == 0, exported.err
    monkeypatch.setattr(InpFormer, "fit", lambda *_: pytest.fail("trained"))
    outcome = bench(*command, tmp_path / "official", "--checkpoint", file, "--categories", "weave")
    assert outcome.code == 0 and CLAIMED in " ".join(outcome.out.split()), outcome.err
    (official,) = records(tmp_path / "official")
    assert official["metrics"]["mean"] == pytest.approx(own["metrics"]["categories"]["weave"], abs=1e-6)
    assert CLAIMED in official["marks"] and CLAIMED not in own["marks"] and own["notes"] == []
    (note,) = official["notes"]
    assert note == "the checkpoint is taken at its user's word to have learned from the objects of synthetic alone"
    official["marks"].remove(CLAIMED)  # a record of before the mark
    (path,) = (tmp_path / "official").glob("*/*/*/*.json")
    path.write_text(json.dumps(official), encoding="utf-8")
    for form in ("markdown", "json"):
        assert CLAIMED in bench("leaderboard", "--results", tmp_path / "official", "--format", form).out


# --- what is refused --------------------------------------------------------------------------------------------------


class Hostile:
    """Runs a command when it is unpickled by a careless reader."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def wrong(kind: str, folder: Path) -> Path:
    """A checkpoint that must not be taken for an INP-Former of the preset `smoke`."""
    path = folder / f"{kind}.pth"
    if kind == "dinomaly":
        torch.save(Dinomaly(DinomalyParams(**SMALL), make_context(dtype=torch.float32)).official_state(), path)
    elif kind == "prototypes":
        torch.save(InpFormer(InpFormerParams(**SMALL, inp_num=4), make_context(dtype=torch.float32)).official_state(), path)
    elif kind == "hostile":
        torch.save({"prototype_token": torch.zeros(6, 4), "x": Hostile(folder / "owned")}, path)
    elif kind == "truncated":
        torch.save({"prototype_token": torch.zeros(600, 40)}, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif kind == "empty":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("dinomaly", "missing: prototype_token"),
        ("prototypes", "prototype_token expected (6, "),
        ("hostile", "Python objects other than tensors"),
        ("truncated", "truncated or damaged"),
        ("picture", "no PyTorch file"),
        ("empty", "it is empty"),
        ("absent", "There is no weight file"),
    ],
)
def test_a_wrong_checkpoint_is_refused_in_words(kind: str, message: str, results: Path, tmp_path: Path) -> None:
    from PIL import Image

    file = wrong(kind, tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    of = ["--checkpoint", file, "--encoder", "builtin", "--preset", "smoke"]
    run = bench(*INP, *TINY, *of, "--results", results)
    assert run.code in (1, 3) and message in run.err and "Traceback" not in run.err, run.err
    predict = bench("predict", "-m", "inp_former", *of, "--images", tmp_path / "photo.png", "--out", tmp_path / "out")
    assert predict.code == 3 and message in predict.err and "Traceback" not in predict.err, predict.err
    assert not (tmp_path / "owned").exists(), "nothing in the file was run"
    assert not (tmp_path / "out").exists()
