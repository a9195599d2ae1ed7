"""few_shot, zero_shot and super_multi_class from the command line: who is trained on what, how often, and what the record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import bench
from golden import COMMITTED, read_case

from inpbench.datasets.mvtec import CATEGORIES, MVTEC_AD
from inpbench.harness.api import NoParams, Sample
from inpbench.harness.cli.run_options import split_roots
from inpbench.harness.errors import UsageError
from inpbench.harness.manifest import Manifest
from inpbench.harness.support import draw_of, draw_support, drawn_samples
from inpbench.methods.raw_pixel.model import RawPixel

DRAWN = ("size=64", "train=5", "normal=2", "defective=1", "categories=weave,nut")
SYNTHETIC = [item for change in DRAWN for item in ("--set", f"synthetic.{change}")]
RAW = ["run", "-m", "raw_pixel", "--preset", "smoke", *SYNTHETIC]
OWN = ["run", "-m", "inp_former", "--preset", "smoke", "--encoder", "builtin", "--set", "inp_former.steps=4"]
INP = [*OWN, *SYNTHETIC]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set: other images, and a category that the source has not."""
    from inpbench.datasets.synthetic import SyntheticParams, generate

    folder = tmp_path_factory.mktemp("target")
    generate(folder, SyntheticParams(size=64, seed=5, train=3, normal=2, defective=1, categories="tile,nut"))
    return folder


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The categories of each training of raw_pixel."""
    seen: list[list[str]] = []
    original = RawPixel.fit

    def fit(self: RawPixel, train: Any) -> None:
        assert len(train) == len(train.samples) and {s.category for s in train.samples} == set(train.categories)
        seen.append(list(train.categories))
        original(self, train)

    monkeypatch.setattr(RawPixel, "fit", fit)
    return seen


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/*/*.json"))]


# --- few_shot -------------------------------------------------------------------------------------------------------


def test_few_shot_trains_on_the_drawn_images_and_names_them(results: Path, fits: list[list[str]]) -> None:
    command = [*RAW, "-d", "synthetic", "-s", "few_shot", "--results", results]
    first = bench(*command, "--shots", "1,3", "--seeds", "1,2")
    assert first.code == 0, first.err
    assert "few_shot, 3 shots" in first.out and "few_shot, 1 shot\n" in first.out and "±" in first.out
    assert fits == [["weave", "nut"]] * 4
    for record in records(results):
        identity = record["identity"]
        drawn = draw_support({"weave": 5, "nut": 5}, identity["shots"], identity["seed"])
        assert identity["support"] == drawn
        assert record["support"] == [f"{c}/train/good/{i:04d}.png" for c, positions in drawn.items() for i in positions]
    plan = bench(*command, "--dry-run", "--json").json()["cells"]
    assert [(cell["shots"], cell["status"]) for cell in plan] == [(1, "done"), (2, "todo"), (4, "todo")], "1, 2, 4 by default"


def test_more_shots_than_images_are_refused_by_name(results: Path) -> None:
    outcome = bench(*RAW, "-d", "synthetic", "-s", "few_shot", "--shots", "6", "--results", results)
    assert outcome.code == 2 and "weave has 5 normal training images, 6 shots were asked for" in outcome.err
    assert "--shots 5" in outcome.err and not results.exists()
    plan = bench(*RAW, "-d", "synthetic", "-s", "few_shot", "--shots", "5,6", "--results", results, "--dry-run", "--json").json()
    assert [(cell["shots"], cell["status"]) for cell in plan["cells"]] == [(5, "todo"), (6, "impossible")]


def mvtec(categories: tuple[str, ...]) -> Manifest:
    """The normal training images of MVTec AD, by their published numbers."""
    samples = tuple(
        Sample(f"{category}/train/good/{index:03d}.png", category, "train", 0)
        for category in categories
        for index in range(MVTEC_AD.counts[category].train)
    )
    return Manifest(MVTEC_AD, NoParams(), Path("/nowhere"), True, samples, {})


@pytest.mark.parametrize("shots", [1, 2, 4])
@pytest.mark.parametrize("categories", [CATEGORIES, ("cable", "zipper")], ids=["all", "two"])
def test_official_draw_for_all_categories_and_for_a_choice(shots: int, categories: tuple[str, ...]) -> None:
    expected = read_case("inp_former", "fewshot_sampling_seed1", COMMITTED).config["samples"][f"MVTec-AD shot={shots}"]
    manifest = mvtec(categories)
    drawn = draw_of(manifest, shots, 1)
    assert drawn == {category: expected[category] for category in categories}
    assert drawn_samples(manifest, drawn)[0].image == f"{categories[0]}/train/good/{drawn[categories[0]][0]:03d}.png"


def test_categories_of_no_published_set_are_drawn_in_one_stream() -> None:
    own = (
        Sample("a/train/0.png", "a", "train", 0),
        Sample("a/train/1.png", "a", "train", 0),
        Sample("a/test/0.png", "a", "test", 0),
    )
    manifest = Manifest(MVTEC_AD, NoParams(), Path("/nowhere"), True, own, {})
    assert draw_of(manifest, 2, 3) == draw_support({"a": 2}, 2, 3)
    with pytest.raises(UsageError, match="b has 0 normal training images, 1 shots"):
        draw_of(Manifest(MVTEC_AD, NoParams(), Path("/"), True, (*own, Sample("b/0", "b", "test", 0)), {}), 1, 1)


def test_an_unreadable_support_image_is_an_error_even_when_lenient(results: Path, tmp_path: Path) -> None:
    from inpbench.datasets.synthetic import SyntheticParams, generate

    generate(tmp_path / "set", SyntheticParams(size=64, train=2, normal=2, defective=1, categories="weave"))
    (tmp_path / "set/weave/train/good/0000.png").write_bytes(b"not an image")
    command = ["run", "-m", "raw_pixel", "-d", "folder", "--data-root", tmp_path / "set", "-s", "few_shot", "--shots", "2"]
    outcome = bench(*command, "--lenient", "--results", results)
    assert outcome.code == 1 and "support image weave/train/good/0000.png cannot be read" in outcome.err


# --- zero_shot ------------------------------------------------------------------------------------------------------


def test_zero_shot_trains_the_source_once_for_every_target(results: Path, target: Path, fits: list[list[str]]) -> None:
    command = [*RAW, "-s", "zero_shot", "--source", "synthetic", "--results", results, "-d", "folder", "--data-root"]
    first = bench(*command, target)
    assert first.code == 0, first.err
    assert fits == [["weave", "nut"]], "trained on the source, not on the target"
    assert "zero_shot from synthetic" in first.out and "Trained on: synthetic v1, 2 categories" in first.out
    assert "zero_shot from synthetic" in first.err, "the plan names the source"
    (record,) = records(results)
    source = record["identity"]["source"]
    assert (source["dataset"], source["setting"], source["sets"][0]["categories"]) == ("synthetic", "multi_class", ["weave", "nut"])
    assert list(record["metrics"]["categories"]) == ["nut", "tile"] and record["support"] == []
    assert bench(*command, target, "--categories", "tile").code == 0  # another target, the same source
    assert len(fits) == 1 and len(records(results)) == 2


def test_zero_shot_finds_the_model_of_the_source_s_own_record(results: Path, target: Path, fits: list[list[str]]) -> None:
    assert bench(*RAW, "-d", "synthetic", "--results", results).code == 0
    command = [*RAW, "-s", "zero_shot", "--source", "synthetic", "-d", "folder", "--data-root", target, "--results", results]
    assert bench(*command).code == 0 and len(fits) == 1
    assert bench(*command, "--seeds", "2").code == 0 and len(fits) == 2, "another seed is another model"
    ours = next(r for r in records(results) if r["identity"]["setting"] == "zero_shot" and r["identity"]["seed"] == 1)
    own = next(r for r in records(results) if r["identity"]["setting"] == "multi_class")
    assert ours["cost"]["fit_s"] == own["cost"]["fit_s"]
    assert bench("export", ours["id"], "--out", results / "model.safetensors", "-f", "safetensors", "--results", results).code == 0


def test_a_broken_shared_model_is_trained_again(results: Path, target: Path, fits: list[list[str]]) -> None:
    command = [*RAW, "-s", "zero_shot", "--source", "synthetic", "-d", "folder", "--data-root", target, "--results", results]
    assert bench(*command).code == 0
    (kept,) = results.glob("trained/raw_pixel/*/all.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])
    before = records(results)[0]["metrics"]
    again = bench(*command, "--force")
    assert again.code == 0 and "trained again" in again.err and len(fits) == 2
    assert records(results)[0]["metrics"] == before


def test_inp_former_zero_shot_by_source_record_and_by_official_checkpoint(
    results: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inpbench.methods.inp_former.method import InpFormer

    assert bench(*INP, "-d", "synthetic", "--results", results).code == 0
    (multi,) = records(results)
    checkpoint = tmp_path / "model.pth"
    assert bench("export", multi["id"], "--out", checkpoint, "--results", results).code == 0
    monkeypatch.setattr(InpFormer, "fit", lambda *_: pytest.fail("trained a second time"))
    common = ["-s", "zero_shot", "-d", "folder", "--data-root", target, "--results", results]
    outcome = bench(*INP, *common, "--source", "synthetic")
    assert outcome.code == 0, outcome.err
    outcome = bench(*OWN, *common, "--checkpoint", checkpoint, "--source", "visa")
    assert outcome.code == 0 and "Trained on: visa (a checkpoint: as its user says)" in outcome.out, outcome.err
    ours, official = [r for r in records(results) if r["identity"]["setting"] == "zero_shot"]
    if ours["identity"]["checkpoint"] is not None:
        ours, official = official, ours
    for metric, value in ours["metrics"]["mean"].items():
        assert official["metrics"]["mean"][metric] == pytest.approx(value, abs=1e-5)
    assert official["identity"]["source"]["sets"] == [] and ours["metrics"] != multi["metrics"]


# --- super_multi_class ----------------------------------------------------------------------------------------------


def test_super_multi_class_trains_one_model_of_all_sets(results: Path, target: Path, fits: list[list[str]]) -> None:
    command = [*RAW, "-s", "super_multi_class", "-d", "synthetic,folder", "--data-root", f"folder={target}", "--results", results]
    outcome = bench(*command, "--no-keep-models")
    assert outcome.code == 0, outcome.err
    assert fits == [["synthetic/weave", "synthetic/nut", "folder/nut", "folder/tile"]]
    assert outcome.out.count("super_multi_class of synthetic+folder") == 2, "a table for each data set"
    one, two = records(results)
    assert {one["identity"]["dataset"], two["identity"]["dataset"]} == {"synthetic", "folder"}
    assert one["identity"]["source"] == two["identity"]["source"] and one["notes"] == two["notes"] != []
    other = bench(
        *RAW, "-s", "super_multi_class", "-d", "folder,synthetic", "--data-root", f"folder={target}", "--results", results
    )
    assert other.code == 0 and len(fits) == 2, "another order of training is another model"


def test_several_sets_are_one_training_set_in_any_order_of_indices(target: Path) -> None:
    import torch

    from inpbench.datasets.folder import FOLDER, FolderParams
    from inpbench.harness.api import Preprocess
    from inpbench.harness.loading import TrainingImages
    from inpbench.harness.manifest import open_manifest
    from inpbench.harness.training import SeveralSets

    manifest = open_manifest(FOLDER, FolderParams(), target)
    images = [
        TrainingImages(manifest, [category], Preprocess(resize=(8, 8), crop=(8, 8)), device=torch.device("cpu"))
        for category in ("tile", "nut")
    ]
    both = SeveralSets([("a", images[0]), ("b", images[1])])
    assert both.categories == ["a/tile", "b/nut"] and len(both) == 6 and both.samples[3].category == "b/nut"
    expected = torch.cat([images[0].batch([0, 1, 2]), images[1].batch([0, 1, 2])])
    order = [4, 0, 5, 2, 0]
    assert torch.equal(both.batch(order), expected[order])
    assert both.masks(order).shape == (5, 8, 8) and not both.masks(order).any()


def test_super_multi_class_goes_on_from_the_snapshot_of_a_killed_training(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inpbench.methods.training import Trainer

    command = [
        *INP,
        "-s",
        "super_multi_class",
        "-d",
        "synthetic,folder",
        "--data-root",
        f"folder={target}",
        "--snapshot-every",
        "0",
    ]
    assert bench(*command, "--results", tmp_path / "calm").code == 0
    steps: list[int] = []
    original = Trainer.step

    def step(self: Trainer, number: int) -> Any:
        steps.append(number)
        if steps == [0, 1, 2]:
            raise KeyboardInterrupt
        return original(self, number)

    monkeypatch.setattr(Trainer, "step", step)
    assert bench(*command, "--results", tmp_path / "killed").code == 130
    assert bench(*command, "--results", tmp_path / "killed").code == 0
    assert steps == [0, 1, 2, 2, 3], "the second run took up the first, and the second data set trained nothing"
    assert [r["metrics"] for r in records(tmp_path / "killed")] == [r["metrics"] for r in records(tmp_path / "calm")]


# --- official checkpoints -------------------------------------------------------------------------------------------


def agree(ours: list[dict[str, Any]], official: list[dict[str, Any]]) -> None:
    """The same numbers for each data set, from a checkpoint whose hash is in the identity, and no support that nobody knows."""
    assert len(ours) == len(official) > 0
    for mine, theirs in zip(ours, official, strict=True):
        assert mine["identity"]["dataset"] == theirs["identity"]["dataset"]
        assert theirs["identity"]["checkpoint"].startswith("sha256:") and theirs["support"] == []
        assert set(theirs["identity"]["weights"].values()) != {"in the checkpoint"}, "the built-in encoder is no file"
        for metric, value in mine["metrics"]["mean"].items():
            assert theirs["metrics"]["mean"][metric] == pytest.approx(value, abs=1e-5)


def test_few_shot_by_official_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inpbench.methods.inp_former.method import InpFormer

    command = [*INP, "-d", "synthetic", "-s", "few_shot", "--shots", "1"]
    assert bench(*command, "--results", tmp_path / "ours").code == 0
    ours, checkpoint = records(tmp_path / "ours"), tmp_path / "model.pth"
    assert bench("export", ours[0]["id"], "--format", "official", "--out", checkpoint, "--results", tmp_path / "ours").code == 0
    monkeypatch.setattr(InpFormer, "fit", lambda *_: pytest.fail("trained"))
    outcome = bench(*command, "--checkpoint", checkpoint, "--results", tmp_path / "official")
    assert outcome.code == 0 and "few_shot, 1 shot" in outcome.out, outcome.err
    agree(ours, records(tmp_path / "official"))
    again = bench(*command, "--checkpoint", checkpoint, "--results", tmp_path / "official", "--dry-run", "--json").json()
    assert [cell["status"] for cell in again["cells"]] == ["done"]


def test_super_multi_class_by_official_checkpoint(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inpbench.methods.inp_former.method import InpFormer

    command = [*INP, "-s", "super_multi_class", "-d", "synthetic,folder", "--data-root", f"folder={target}"]
    assert bench(*command, "--results", tmp_path / "ours").code == 0
    ours, checkpoint = records(tmp_path / "ours"), tmp_path / "model.pth"
    assert bench("export", ours[0]["id"], "--out", checkpoint, "--results", tmp_path / "ours").code == 0
    monkeypatch.setattr(InpFormer, "fit", lambda *_: pytest.fail("trained"))
    outcome = bench(*command, "--checkpoint", checkpoint, "--results", tmp_path / "official")
    assert outcome.code == 0 and "Trained on: not stated (a checkpoint: as its user says)" in outcome.out, outcome.err
    agree(ours, records(tmp_path / "official"))
    one = [*OWN, "-s", "super_multi_class", "-d", "folder", "--data-root", target, "--checkpoint", checkpoint]
    outcome = bench(*one, "--results", tmp_path / "one")
    assert outcome.code == 0, "one of the sets of a checkpoint"
    agree(ours[:1], records(tmp_path / "one"))


def test_a_method_without_official_checkpoints_says_so(results: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"nothing")
    outcome = bench(*RAW, "-d", "synthetic", "--checkpoint", tmp_path / "model.pth", "--results", results)
    assert outcome.code == 1 and "raw_pixel has no official checkpoints" in outcome.err and "Traceback" not in outcome.err


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["-s", "zero_shot", "-d", "synthetic"], "none is named", "--source real_iad"),
        (["-s", "zero_shot", "-d", "synthetic", "--source", "synthetic"], "source and target are the same", "another --source"),
        (
            ["-s", "zero_shot", "-d", "synthetic", "--source", "synthetic", "--checkpoint", "m.pth"],
            "was trained on synthetic, which is what would be tested",
            "another --dataset",
        ),
        (["-s", "zero_shot", "-d", "synthetic", "--source", "visaa"], "Did you mean: visa", "bench list datasets"),
        (["-d", "synthetic", "--source", "visa"], "multi_class has no source", "zero_shot"),
        (["-d", "synthetic", "--source-root", "x"], "--source, which is not given", "--source NAME"),
        (["-s", "super_multi_class", "-d", "synthetic"], "several data sets, found one: synthetic", "mvtec_ad,visa,real_iad"),
        (["-s", "few_shot", "-d", "synthetic", "--checkpoint", "m.pth"], "one number of shots", "--shots 4"),
        (["-d", "synthetic", "--data-root", "visa=x"], "'visa' is no data set of this run", "--data-root synthetic=DIR"),
        (["-d", "synthetic,visa", "--data-root", "x", "--data-root", "y"], "2 times without", "--data-root synthetic=DIR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_two_lines_that_help(arguments: list[str], message: str, hint: str, results: Path) -> None:
    outcome = bench(*RAW, *arguments, "--results", results)
    assert outcome.code == 2, outcome.err
    assert message in outcome.err and hint in outcome.err and "Traceback" not in outcome.err
    assert not results.exists()


def test_a_source_that_is_nowhere_and_a_method_that_cannot(results: Path, target: Path) -> None:
    outcome = bench(*RAW, "-s", "zero_shot", "-d", "synthetic", "--source", "real_iad", "--results", results)
    assert outcome.code == 3 and "real_iad: no data found" in outcome.err
    command = ["run", "-m", "dinomaly", "-s", "zero_shot", "-d", "synthetic", "--source", "folder", "--source-root", target]
    outcome = bench(*command, *SYNTHETIC, "--results", results)
    assert outcome.code == 4 and "dinomaly supports" in outcome.err


def test_roots() -> None:
    assert split_roots(["visa=a", "b"], ["visa"]) == (Path("b"), {"visa": Path("a")})
    assert split_roots(["/data/x=1/visa"], ["visa"]) == (Path("/data/x=1/visa"), {})
    assert split_roots([], []) == (None, {})
