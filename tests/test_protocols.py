"""Methods that are told the category, learn from nothing or look at test labels; cross_class and generalist; as one types it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import told
from commands import bench

from inpbench.harness.registry import METHODS

DRAWN = ("size=64", "train=9", "normal=2", "defective=1", "categories=weave,nut")
SET = [item for change in DRAWN for item in ("--set", f"synthetic.{change}")]
TRAIN, NORMAL, ANOMALOUS = ("train", 0), ("test", 0), ("test", 1)


@pytest.fixture(autouse=True)
def methods() -> Iterator[None]:
    METHODS.add(told.INFO)
    METHODS.add(told.FREE)
    told.CALLS.clear()
    yield
    METHODS._added.clear()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set, which shares a category's name with the drawn one."""
    from inpbench.datasets.synthetic import SyntheticParams, generate

    folder = tmp_path_factory.mktemp("target")
    generate(folder, SyntheticParams(size=64, seed=5, train=9, normal=2, defective=1, categories="tile,nut"))
    return folder


def run(results: Path, *arguments: object, method: str = "told") -> list[dict[str, Any]]:
    """`bench run`; gives the records of that method in the results folder."""
    drawn = SET if any("synthetic" in str(argument) for argument in arguments) else []
    outcome = bench("run", "-m", method, *arguments, *drawn, "--results", results)
    assert outcome.code == 0, outcome.err + outcome.out
    return [r for r in records(results) if r["identity"]["method"] == method]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/*/*.json"))]


def calls(kind: str) -> list[tuple[Any, ...]]:
    return [call for call in told.CALLS if call[0] == kind]


def entered() -> dict[str, Any]:
    return {category: names for _, category, names in calls("enter")}


def normals(category: str, positions: Any = range(9)) -> list[str]:
    return [f"{category}/train/good/{index:04d}.png" for index in positions]


# --- what a method is told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["multi_class", "single_class"])
def test_references_are_the_category_s_training_images(setting: str, results: Path) -> None:
    (record,) = run(results, "-d", "synthetic", "-s", setting)
    assert entered() == {"weave": normals("weave"), "nut": normals("nut")}
    order = [call[0] for call in told.CALLS]
    assert order[0] == "fit" and order.index("enter") < order.index("predict")
    assert record["marks"] == ["told the category of each test image"] and record["cost"]["enter_s"] > 0
    assert len(calls("fit")) == (1 if setting == "multi_class" else 2)


def test_references_of_few_shot_are_the_drawn_images(results: Path) -> None:
    (record,) = run(results, "-d", "synthetic", "-s", "few_shot", "--shots", "2")
    drawn = record["identity"]["support"]
    assert entered() == {category: normals(category, drawn[category]) for category in ("weave", "nut")}
    assert record["support"] == entered()["weave"] + entered()["nut"]


def test_zero_shot_gives_no_references_and_keeps_the_source_s_out(results: Path, target: Path) -> None:
    run(results, "-d", "synthetic")  # its kept model knows the source's nuts, which must not become the target's
    command = ["-d", "folder", "--data-root", target, "-s", "zero_shot", "--source", "synthetic"]
    told.CALLS.clear()
    run(results, *command)
    assert entered() == {"nut": None, "tile": None}
    assert calls("fit") == [("fit", "multi_class", 0, ("weave", "nut"), {TRAIN: 18})], "trained for itself"
    alone = run(results.with_name("alone"), *command)[0]
    both = next(r for r in records(results) if r["identity"]["setting"] == "zero_shot")
    assert alone["metrics"] == both["metrics"]


def test_super_multi_class_gives_each_category_its_own(results: Path, target: Path) -> None:
    run(results, "-d", "synthetic,folder", "--data-root", f"folder={target}", "-s", "super_multi_class")
    assert len(calls("fit")) == 1 and len(calls("enter")) == 4
    assert entered() == {"weave": normals("weave"), "nut": normals("nut"), "tile": normals("tile")}


def test_the_others_are_told_nothing_and_every_table_says_who_is(results: Path) -> None:
    outcome = bench("run", "-m", "told,raw_pixel", "-d", "synthetic", "--preset", "paper", *SET, "--results", results)
    assert outcome.code == 0, outcome.err
    assert "told the category of each test image" in outcome.out and "told the category of each test image: not" not in outcome.out
    rows = bench("leaderboard", "--results", results, "--json").json()[0]["rows"]
    assert {row["method"]: row["marks"] for row in rows} == {"told": ["told the category of each test image"], "raw_pixel": []}
    for form in ("markdown", "latex", "terminal"):
        assert "told the category" in bench("leaderboard", "--results", results, "--format", form).out


def test_a_killed_test_goes_on_and_its_kept_model_knows_every_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    calm = run(tmp_path / "calm", "-d", "synthetic")[0]
    original = told.Told.enter

    def enter(self: told.Told, category: str, references: Any) -> None:
        if category == "nut":
            raise KeyboardInterrupt
        original(self, category, references)

    with monkeypatch.context() as patch:
        patch.setattr(told.Told, "enter", enter)
        assert bench("run", "-m", "told", "-d", "synthetic", *SET, "--results", tmp_path / "killed").code == 130
    told.CALLS.clear()
    killed = run(tmp_path / "killed", "-d", "synthetic")[0]
    assert calls("fit") == [] and {call[1] for call in calls("predict")} == {"nut"}
    assert killed["metrics"] == calm["metrics"] and killed["samples"] == calm["samples"]
    (kept,) = (tmp_path / "killed").glob("*/*/*/*.models/all.safetensors")
    assert set(load_file(kept)) == {"learned", "of.weave", "of.nut"}


# --- learning from nothing ------------------------------------------------------------------------------------------


def test_zero_shot_without_a_source(results: Path) -> None:
    (record,) = run(results, "-d", "synthetic", "-s", "zero_shot", method="free")
    assert record["identity"]["source"] is None and not calls("fit")
    outcome = bench("leaderboard", "--results", results)
    assert "Trained on: nothing" in outcome.out and "trained on: nothing" in outcome.out
    refused = bench("run", "-m", "told", "-d", "synthetic", "-s", "zero_shot", *SET, "--results", results)
    assert refused.code == 2 and "none is named" in refused.err and "--source real_iad" in refused.err
    mixed = bench("run", "-m", "free,told", "-d", "synthetic", "-s", "zero_shot", *SET, "--results", results, "--dry-run", "--json")
    assert [cell["status"] for cell in mixed.json()["cells"]] == ["done", "impossible"]
    assert "none is named" in mixed.json()["cells"][1]["reason"]


def test_what_learned_nothing_stands_in_the_table_of_every_source(results: Path, target: Path) -> None:
    common = ["-d", "folder", "--data-root", target, "-s", "zero_shot"]
    outcome = bench("run", "-m", "free,told", *common, "--source", "synthetic", *SET, "--results", results)
    assert outcome.code == 0, outcome.err
    tables = bench("leaderboard", "--results", results, "--json").json()
    assert [table["title"] for table in tables] == ["folder, zero_shot from synthetic"]
    assert {row["method"]: row["trained_on"] for row in tables[0]["rows"]} == {"free": "nothing", "told": "synthetic"}
    assert "trained on: nothing" in outcome.out and outcome.out.count("zero_shot from synthetic") == 1
    assert len(calls("fit")) == 1
    other = ["--set", "synthetic.seed=3"]
    assert bench("run", "-m", "told", *common, "--source", "synthetic", *SET, *other, "--results", results).code == 0
    tables = bench("leaderboard", "--results", results, "--json").json()
    assert [sorted(row["method"] for row in table["rows"]) for table in tables] == [["free", "told"]] * 2


# --- generalist -----------------------------------------------------------------------------------------------------


def test_generalist_learns_from_all_labelled_images_once_and_is_shown_the_target_s(results: Path, target: Path) -> None:
    command = ["-s", "generalist", "--source", "synthetic", "-d", "folder", "--data-root", target]
    both = run(results, *command, "--shots", "2,4")
    seen = {TRAIN: 18, NORMAL: 4, ANOMALOUS: 10}
    assert calls("fit") == [("fit", "generalist", shots, ("weave", "nut"), seen) for shots in (2, 4)]
    two, four = sorted(both, key=lambda record: record["identity"]["shots"])
    for record in (two, four):
        identity = record["identity"]
        expected = {c: random.Random(f"1/{c}").sample(range(9), 9)[: identity["shots"]] for c in ("nut", "tile")}
        assert identity["support"] == expected and identity["source"]["setting"] == "generalist"
    assert entered()["nut"] == normals("nut", four["identity"]["support"]["nut"])
    told.CALLS.clear()
    run(results, *command, "--shots", "2", "--categories", "tile")
    assert not calls("fit"), "another target, the same training"
    assert entered() == {"tile": normals("tile", two["identity"]["support"]["tile"])}, "the draw of a category is its own"
    assert (results / "trained" / "told").is_dir()
    table = bench("leaderboard", "--results", results).out
    assert "folder, generalist from synthetic, 4 shots" in table and "Trained on: synthetic" in table


def test_generalist_refuses_what_would_leak_or_teach_nothing(results: Path, target: Path, tmp_path: Path) -> None:
    same = ["run", "-m", "told", "-s", "generalist", "-d", "synthetic", "--results", results, *SET]
    for more in ([], ["--categories", "nut"]):
        outcome = bench(*same, "--source", "synthetic", *more)
        assert outcome.code == 2 and "the same images" in outcome.err
    outcome = bench(*same)
    assert outcome.code == 2 and "--source mvtec_ad" in outcome.err
    outcome = bench(*same, "--source", "folder", "--source-root", target, "--shots", "10")
    assert outcome.code == 2 and "10 shots were asked for" in outcome.err
    from inpbench.datasets.synthetic import SyntheticParams, generate

    generate(tmp_path / "good", SyntheticParams(size=64, train=2, normal=2, defective=1, categories="wood"))
    for folder in (tmp_path / "good" / "wood" / "test").iterdir():
        if folder.name != "good":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    outcome = bench(*same, "--source", "folder", "--source-root", tmp_path / "good", "--shots", "2", "--lenient")
    assert outcome.code == 2 and "has no anomalous one" in outcome.err


# --- cross_class ----------------------------------------------------------------------------------------------------


def test_cross_class_trains_on_objects_and_tests_on_textures_and_back(results: Path) -> None:
    (record,) = run(results, "-d", "synthetic", "-s", "cross_class")
    assert [call[1:4] for call in calls("fit")] == [("cross_class", 0, ("nut",)), ("cross_class", 0, ("weave",))]
    order = [call[:2] for call in told.CALLS if call[0] in ("fit", "enter")]
    assert order == [("fit", "cross_class"), ("enter", "weave"), ("fit", "cross_class"), ("enter", "nut")]
    assert entered() == {"weave": normals("weave"), "nut": normals("nut")}
    assert record["identity"]["groups"] == {"objects": ["nut"], "textures": ["weave"]}
    assert list(record["metrics"]["categories"]) == ["weave", "nut"]
    (folder,) = results.glob("*/*/*/*.models")
    assert sorted(path.stem for path in folder.iterdir()) == ["objects", "textures"]


def test_cross_class_tables_have_the_mean_of_each_direction(results: Path) -> None:
    drawn = ["--set", "synthetic.categories=weave,tile,nut"]
    assert bench("run", "-m", "told", "-d", "synthetic", "-s", "cross_class", *SET, *drawn, "--results", results).code == 0
    command = ["leaderboard", "--results", results, "--by", "category", "--metrics", "p_auroc"]
    (table,) = bench(*command, "--json").json()
    values = {row["category"]: row["value"] for row in table["rows"]}
    assert values["mean: trained on objects, tested on textures"] == pytest.approx((values["weave"] + values["tile"]) / 2)
    assert values["mean: trained on textures, tested on objects"] == values["nut"]
    assert values["mean"] == pytest.approx((values["weave"] + values["tile"] + values["nut"]) / 3)
    assert list(values) == ["weave", "tile", "nut", *[key for key in values if ":" in key], "mean"]
    assert "mean: trained on objects, tested on textures" in bench(*command).out


def test_a_killed_cross_class_trains_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = run(tmp_path / "calm", "-d", "synthetic", "-s", "cross_class")[0]
    original = told.Told.fit

    def fit(self: told.Told, train: Any) -> None:
        if list(train.categories) == ["weave"]:
            raise KeyboardInterrupt
        original(self, train)

    command = ["run", "-m", "told", "-d", "synthetic", "-s", "cross_class", *SET, "--results", tmp_path / "killed"]
    with monkeypatch.context() as patch:
        patch.setattr(told.Told, "fit", fit)
        assert bench(*command).code == 130
    told.CALLS.clear()
    killed = run(tmp_path / "killed", "-d", "synthetic", "-s", "cross_class")[0]
    assert [call[3] for call in calls("fit")] == [("weave",)]
    assert killed["metrics"] == calm["metrics"] and killed["samples"] == calm["samples"]


def test_check_compares_every_new_protocol(results: Path, target: Path, tmp_path: Path) -> None:
    run(results, "-d", "synthetic", "-s", "cross_class")
    run(results, "-d", "synthetic", "--set", "told.oracle=true")
    run(results, "-d", "folder", "--data-root", target, "-s", "generalist", "--source", "synthetic", "--shots", "2")
    run(results, "-d", "folder", "--data-root", target, "-s", "zero_shot", method="free")
    common = ["check", "--results", results, "--baselines", tmp_path / "baselines"]
    assert bench(*common, "--update", "--reason", "first").code == 0
    found = bench(*common, "--json").json()
    cells = {finding["cell"] for finding in found["findings"]}
    assert found["exit_code"] == 0 and found["counts"]["ok"] == found["compared"] > 0
    assert cells == {
        "told, synthetic, cross_class, seed 1",
        "told(oracle=True), synthetic, multi_class, seed 1",
        "told, folder, generalist from synthetic, 2 shots, seed 1",
        "free, folder, zero_shot, seed 1",
    }


@pytest.mark.parametrize("method", ["raw_pixel", "inp_former"])
def test_built_in_methods_run_cross_class(method: str, results: Path) -> None:
    encoder = [] if method == "raw_pixel" else ["--encoder", "builtin", "--set", f"{method}.steps=3"]
    (record,) = run(results, "-d", "synthetic", "-s", "cross_class", "--preset", "smoke", *encoder, method=method)
    assert set(record["metrics"]["categories"]) == {"weave", "nut"}


def test_cross_class_says_why_it_cannot_be(results: Path, target: Path) -> None:
    common = ["run", "-m", "told", "-s", "cross_class", "--results", results]
    outcome = bench(*common, "-d", "folder", "--data-root", target)
    assert outcome.code == 2 and "does not say which categories are textures" in outcome.err
    outcome = bench(*common, "-d", "synthetic", *SET, "--categories", "nut")
    assert outcome.code == 2 and "has no textures among nut" in outcome.err
    outcome = bench(*common, "-d", "synthetic", *SET, "--checkpoint", "model.pth")
    assert outcome.code == 2 and "one model of one method" in outcome.err


# --- oracle ---------------------------------------------------------------------------------------------------------


def test_an_oracle_sees_the_labels_is_marked_and_never_stands_beside_honest_rows(results: Path) -> None:
    (honest,) = run(results, "-d", "synthetic")
    assert honest["identity"]["selection"] == "last" and not calls("consult")
    told.CALLS.clear()
    run(results, "-d", "synthetic", "--set", "told.oracle=true")
    oracle = next(r for r in records(results) if r["identity"]["selection"] == "oracle")
    labels = [1, 1, 0, 0, 1, 1, 1]  # contamination, deformation, good, good, missing_part, ...: the order of the test
    assert calls("consult") == [("consult", category, labels, 5) for category in ("weave", "nut")]
    order = [call[0] for call in told.CALLS if call[-1] == "weave" or call[1] == "weave"]
    assert order[:2] == ["enter", "consult"] and order[2] == "predict"
    assert "oracle: tuned on test labels" in oracle["marks"]
    tables = bench("leaderboard", "--results", results, "--json").json()
    assert [[row["selection"] for row in table["rows"]] for table in tables] == [["last"], ["oracle"]]
    for form in ("markdown", "terminal", "latex"):
        assert "oracle: tuned on test labels: not ranked" in bench("leaderboard", "--results", results, "--format", form).out
    by_category = bench("leaderboard", "--results", results, "--by", "category", "--metrics", "i_auroc").out
    assert "oracle: tuned on test labels" in by_category


# --- using such models ----------------------------------------------------------------------------------------------


def predict(results: Path, *arguments: object) -> Any:
    out = results.parent / "predicted"
    return bench("predict", *arguments, "--out", out, "--results", results, "--no-overlays", "--maps", "none", "--json")


def test_predict_enters_the_named_category_with_kept_or_given_references(results: Path, target: Path) -> None:
    (record,) = run(results, "-d", "folder", "--data-root", target, "-s", "few_shot", "--shots", "2")
    test = target / "nut" / "test" / "good"
    scores = dict(zip(*(bench_samples(results, record, "nut")[key] for key in ("image", "score")), strict=True))
    kept = predict(results, record["id"], "--images", test, "--category", "nut")
    assert kept.code == 0, kept.err
    for row in kept.json()["images"]:
        assert row["score"] == pytest.approx(scores[f"nut/test/good/{row['image']}"], rel=1e-6)
    assert kept.json()["threshold"]["source"] == "normal test images of the record"
    assert kept.json()["model"]["category"] == "nut" and kept.json()["model"]["references"] == "those of the model"
    given = predict(results, record["id"], "--images", test, "--category", "hazelnut", "--normal", target / "nut/train/good")
    assert given.code == 0 and given.json()["threshold"] is None, given.err
    assert [r["score"] for r in given.json()["images"]] != [r["score"] for r in kept.json()["images"]]


def bench_samples(results: Path, record: dict[str, Any], category: str) -> Any:
    from inpbench.harness.records import RecordStore

    store = RecordStore(results)
    found = store.find(record["id"])
    assert found is not None
    return store.read_samples(found)[category]


def test_predict_says_what_is_missing(results: Path, target: Path, tmp_path: Path) -> None:
    (record,) = run(results, "-d", "folder", "--data-root", target, "-s", "few_shot", "--shots", "1")
    common = (record["id"], "--images", target / "nut" / "test" / "good")
    unnamed = predict(results, *common)
    assert unnamed.code == 2 and "none is named (the record has nut, tile)" in unnamed.err and "--category nut" in unnamed.err
    unknown = predict(results, *common, "--category", "bolt")
    assert unknown.code == 2 and "told needs normal images of bolt" in unknown.err and "--normal DIR" in unknown.err
    normal = ["--category", "nut", "--normal", target / "nut/train/good"]
    biased = predict(results, *common, *normal, "--threshold", "quantile=0.9")
    assert biased.code == 2 and "would be too low" in biased.err
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    broken = predict(results, *common, "--category", "nut", "--normal", tmp_path / "broken")
    assert broken.code == 3 and "a.png" in broken.err and "references" in broken.err
    app = bench("app", record["id"], "--results", results)
    assert app.code in (2, 3) and ("bench predict" in app.err or "gradio" in app.err)


def test_predict_takes_the_model_that_was_tested_on_the_category(results: Path) -> None:
    (record,) = run(results, "-d", "synthetic", "-s", "cross_class", "--preset", "smoke", method="raw_pixel")
    image = results.parent / "image.png"
    from PIL import Image

    Image.new("RGB", (64, 64)).save(image)
    done = predict(results, record["id"], "--images", image, "--category", "nut")
    assert done.code == 0 and done.json()["model"]["model"] == "textures", done.err
    unnamed = predict(results, record["id"], "--images", image)
    assert unnamed.code == 2 and "2 models: objects, textures" in unnamed.err


def test_what_learned_nothing_keeps_its_empty_model(results: Path, target: Path) -> None:
    (record,) = run(results, "-d", "folder", "--data-root", target, "-s", "zero_shot", method="free")
    done = predict(results, record["id"], "--images", target / "nut" / "test" / "good", "--category", "anything")
    assert done.code == 0, done.err
    out = results.parent / "model.safetensors"
    assert bench("export", record["id"], "--out", out, "-f", "safetensors", "--results", results).code == 0


def test_a_graph_is_written_for_a_named_category(results: Path) -> None:
    import torch

    (record,) = run(results, "-d", "synthetic")
    out = results.parent / "nut.pt"
    command = ["export", record["id"], "--format", "torchscript", "--out", out, "--results", results]
    unnamed = bench(*command)
    assert unnamed.code == 2 and "--category weave" in unnamed.err and not out.exists()
    done = bench(*command, "--category", "nut")
    assert done.code == 0, done.err
    amap, score = torch.jit.load(str(out))(torch.rand(2, 3, 32, 32))
    assert amap.shape == (2, 256, 256) and score.shape == (2,)
