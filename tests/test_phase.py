"""`bench run --phase train|test`: one half at a time, never the other, and together the numbers of a plain run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, bench

from inpbench.harness.records import RecordStore
from inpbench.methods.inp_former.method import InpFormer
from inpbench.methods.raw_pixel.model import RawPixel

RAW = ["run", "-m", "raw_pixel", *TINY]
INP = ["run", "-m", "inp_former", "--preset", "smoke", "--encoder", "builtin", "--set", "inp_former.steps=3", *TINY]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The method of every training."""
    seen: list[type] = []
    for kind in (RawPixel, InpFormer):
        original = kind.fit

        def fit(self: Any, train: Any, original: Any = original) -> None:
            seen.append(type(self))
            original(self, train)

        monkeypatch.setattr(kind, "fit", fit)
    return seen


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from inpbench.datasets.synthetic import SyntheticParams, generate

    folder = tmp_path_factory.mktemp("target")
    generate(folder, SyntheticParams(size=64, seed=5, train=3, normal=2, defective=1, categories="tile"))
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/*/*.json"))]


@pytest.mark.parametrize("setting", ["multi_class", "single_class", "few_shot"])
def test_train_then_test_is_a_plain_run(setting: str, results: Path, tmp_path: Path, fits: list[type]) -> None:
    command = [*RAW, "-s", setting, *(["--shots", "2"] if setting == "few_shot" else []), "--results"]
    plain = bench(*command, tmp_path / "plain")
    assert plain.code == 0, plain.err
    models = len(fits)
    trained = bench(*command, results, "--phase", "train")
    assert trained.code == 0 and "trained, not tested: raw_pixel" in trained.err and trained.out == "", trained.err
    (record,) = records(results)
    assert (record["status"], record["metrics"], record["samples"]) == ("trained", {}, None)
    assert record["cost"]["fit_s"] > 0 and record["stamp"]["packages"]
    assert len(fits) == 2 * models
    again = bench(*command, results, "--phase", "train", "--dry-run", "--json").json()["cells"]
    assert [(cell["status"], cell["reason"][:23]) for cell in again] == [("done", "trained, not tested yet")]
    assert "trained, not tested yet" in bench("leaderboard", "--results", results).out
    tested = bench(*command, results, "--phase", "test")
    assert tested.code == 0, tested.err
    assert len(fits) == 2 * models, "--phase test trains nothing"
    (whole,), (halves,) = records(tmp_path / "plain"), records(results)
    assert halves["id"] == whole["id"] and halves["metrics"] == whole["metrics"] and halves["status"] == "done"
    assert halves["cost"]["fit_s"] == pytest.approx(record["cost"]["fit_s"], abs=0.05), "what the training cost, not the test"


def test_a_plain_run_goes_on_from_the_trained_model(results: Path, fits: list[type]) -> None:
    assert bench(*INP, "--results", results, "--phase", "train").code == 0
    (record,) = records(results)
    exported = bench("export", record["id"], "--format", "official", "--out", results / "model.pth", "--results", results)
    assert exported.code == 0, exported.err
    images = results / "photos"
    images.mkdir()
    from PIL import Image

    Image.new("RGB", (64, 64), (90, 90, 90)).save(images / "grey.png")
    predicted = bench("predict", record["id"], "--images", images, "--out", results / "out", "--results", results, "--json")
    assert predicted.code == 0 and predicted.json()["threshold"] is None, predicted.err
    plain = bench(*INP, "--results", results)
    assert plain.code == 0 and "trained, not tested yet" in plain.err and fits == [InpFormer], plain.err
    assert not list(results.rglob("fitted.pt")), "the unfinished work is cleared"
    forced = bench(*INP, "--results", results, "--force", "--phase", "test")
    assert forced.code == 0 and fits == [InpFormer], "tested again with the kept model"
    other = bench(*INP, "--results", results, "--phase", "test", "--mask-rule", "gt0")
    assert other.code == 0 and fits == [InpFormer], "another protocol, the same training"
    one, two = records(results)
    assert one["id"] != two["id"] and one["cost"]["fit_s"] == pytest.approx(two["cost"]["fit_s"])
    retrained = bench(*INP, "--results", results, "--force", "--phase", "train")
    assert retrained.code == 0 and len(fits) == 2
    assert sorted(record["status"] for record in records(results)) == ["done", "trained"]
    assert bench(*INP, "--results", results, "--force").code == 0 and len(fits) == 3, "--force trains again what is only trained"


def test_a_shared_model_in_two_phases(results: Path, target: Path, fits: list[type]) -> None:
    zero = [*RAW, "-s", "zero_shot", "--source", "folder", "--source-root", target, "--results", results]
    refused = bench(*zero, "--phase", "test")
    assert refused.code == 3 and "has no model of raw_pixel" in refused.err and fits == []
    assert bench(*zero, "--phase", "train").code == 0 and fits == [RawPixel]
    assert bench(*zero, "--phase", "test").code == 0 and fits == [RawPixel]
    super_ = ["run", "-m", "raw_pixel", *TINY, "-s", "super_multi_class", "--data-root", f"folder={target}", "--results", results]
    super_[super_.index("synthetic")] = "synthetic,folder"
    super_ = [word for word in super_ if word not in ("--categories", "weave,nut")]
    assert bench(*super_, "--phase", "train").code == 0 and len(fits) == 2
    assert bench(*super_, "--phase", "test").code == 0 and len(fits) == 2
    assert {record["status"] for record in records(results)} == {"done"}
    again = bench(*super_, "--force")
    assert again.code == 0 and len(fits) == 3, "--force trains the shared model again, once for both data sets"
    assert "which other records may share, is trained again" in again.err


def test_what_a_phase_cannot_do(results: Path, tmp_path: Path, fits: list[type]) -> None:
    nothing = bench(*RAW, "--results", results, "--phase", "test")
    assert nothing.code == 3 and "--phase test trains nothing" in nothing.err and "--phase train" in nothing.err
    plan = bench(*RAW, "--results", results, "--phase", "test", "--dry-run", "--json")
    assert plan.code == 3 and plan.json()["cells"][0]["status"] == "impossible"
    both = bench(*INP, "--results", results, "--phase", "train", "--checkpoint", tmp_path / "model.pth")
    assert both.code == 2 and "--checkpoint is a trained model" in both.err
    assert fits == [] and not results.exists()
    single = [*RAW, "-s", "single_class", "--results", results]
    assert bench(*single, "--phase", "train").code == 0
    next(results.rglob("weave/fitted.pt")).unlink()
    next(results.rglob("weave.safetensors")).unlink()
    half = bench(*single, "--phase", "test")
    assert half.code == 1 and "The model 'weave' is not kept" in half.err and len(fits) == 2


@pytest.mark.parametrize("swapped", ["category", "seed"])
def test_a_kept_model_of_another_name_or_record_is_refused(swapped: str, tmp_path: Path) -> None:
    """A file under the right name is not the right file: its header says whose model it is."""
    run = [*RAW, "--preset", "smoke", "-s", "single_class", "--display", "none", "--results", tmp_path, "--seeds"]
    assert bench(*run, "1,2").code == 0
    one, two = (RecordStore(tmp_path).path_of(record.identity).with_suffix(".models") for record in RecordStore(tmp_path).all())
    source = one / "nut.safetensors" if swapped == "category" else two / "weave.safetensors"
    (one / "weave.safetensors").write_bytes(source.read_bytes())
    seed = next(r.identity["seed"] for r in RecordStore(tmp_path).all() if r.id12 == one.stem)
    again = bench(*run, seed, "--phase", "test", "--force")
    assert again.code == 1 and "it was copied there" in again.err
    assert all(record.status == "done" for record in RecordStore(tmp_path).all()), "the earlier numbers stand"
