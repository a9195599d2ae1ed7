"""`bench reproduce`: one training for all protocols, honest verdicts, the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, bench

from inpbench.harness import reported, reproduce
from inpbench.harness.errors import NothingError, UsageError
from inpbench.harness.metrics import METRICS
from inpbench.harness.reported import Entry


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """A published table that a test may fill, for data sets without official categories."""
    entries: list[Entry] = []
    monkeypatch.setattr(reproduce, "load_reported", lambda: tuple(entries))
    monkeypatch.setattr(reported, "_data_obstacle", lambda identity: "")
    return entries


def entry(metrics: dict[str, float | None], rule: str = "gt0", **others: Any) -> Entry:
    definitions = {"p_auroc": "exact", "p_ap": "exact", "p_f1max": "exact", "aupro": "steps200"}
    cell = {"dataset": "synthetic", "setting": "multi_class", "shots": 0, "reference": True} | others
    return Entry(
        method="raw_pixel",
        display="raw pixels",
        category=None,
        metrics=metrics,
        protocol={"mask_rule": rule, "definitions": definitions},
        source="a test",
        **cell,
    )


def command(results: Path, *others: object) -> list[object]:
    sets = [word for word in TINY if word not in ("--categories", "weave,nut")]
    return [
        "reproduce",
        "raw_pixel",
        *sets,
        "--set",
        "synthetic.categories=weave",
        "--results",
        results,
        "--json",
        "--display",
        "none",
        *others,
    ]


def test_one_training_four_protocols_and_the_exit_codes(
    tmp_path: Path, publish: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    from inpbench.methods.raw_pixel.model import RawPixel

    fits = []
    fit = RawPixel.fit
    monkeypatch.setattr(RawPixel, "fit", lambda self, train: (fits.append(1), fit(self, train))[1])
    publish.append(entry(dict.fromkeys(METRICS, 0.5)))
    first = bench(*command(tmp_path))
    assert first.code == 1, first.err
    assert len(fits) == 1, "the model is trained once, and lent to the other protocols"
    rows = first.json()[0]["rows"]
    assert len(rows) == 3 + 4 * 4, "image metrics once, pixel metrics under each protocol"
    judged = {(row["metric"], row["mask_rule"], row["variant"]) for row in rows if row["verdict"] in ("reproduced", "differs")}
    pixel = {(name, "gt0", variant) for name in ("p_auroc", "p_ap", "p_f1max") for variant in ("dinomaly",)}
    assert judged >= pixel | {("aupro", "gt0", "dinomaly"), ("i_auroc", "any", "any")}
    assert not any(rule == "gt05" for _, rule, _ in judged), "published with gt0"
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/*/*/*.json")]
    assert len(records) == 4 and sum(bool(record["notes"]) for record in records) == 3
    measured = {row["metric"]: row["measured"] for row in rows if row["mask_rule"] in ("gt0", "any") and row["variant"] != "paper"}
    publish[:] = [entry(measured)]
    second = bench(*command(tmp_path))
    assert second.code == 0 and len(fits) == 1, second.err
    publish[:] = [entry({**measured, "p_ap": measured["p_ap"] + 0.03})]
    assert bench(*command(tmp_path)).code == 1
    assert bench(*command(tmp_path, "--tolerance", "p_ap=3.1")).code == 0
    publish[:] = [entry({"p_ap": 0.5}, rule="crr")]
    nothing = bench(*command(tmp_path))
    assert nothing.code == 4 and "mask rule crr" in nothing.err


def test_nothing_published_and_nothing_there(publish: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench(*command(tmp_path)).code == 4
    monkeypatch.setattr(reproduce, "load_reported", reported.load_reported)
    monkeypatch.delenv("INPBENCH_DATA", raising=False)
    missing = bench("reproduce", "inp_former", "--dataset", "visa", "--results", tmp_path)
    assert missing.code == 3 and "visa" in missing.err
    with pytest.raises(NothingError, match="k=3") as error:
        reproduce.published("inp_former", "visa", "few_shot", 3)
    assert "visa few_shot k=4" in error.value.hint


def test_tolerances() -> None:
    assert reproduce.parse_tolerances(None, trained=False) == dict.fromkeys(METRICS, 0.001)
    assert set(reproduce.parse_tolerances("0.5", trained=True).values()) == {0.005}
    mixed = reproduce.parse_tolerances("p_ap=2,aupro=1", trained=True)
    assert (mixed["p_ap"], mixed["aupro"], mixed["i_auroc"]) == (0.02, 0.01, 0.005)
    for bad in ("x", "p_app=1", "-1", "nan", "p_ap="):
        with pytest.raises(UsageError, match="--tolerance"):
            reproduce.parse_tolerances(bad, trained=True)


# --- every setting ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from inpbench.datasets.synthetic import SyntheticParams, generate

    folder = tmp_path_factory.mktemp("target")
    generate(folder, SyntheticParams(size=64, seed=5, train=3, normal=2, defective=1, categories="tile"))
    return folder


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each training of raw_pixel."""
    from inpbench.methods.raw_pixel.model import RawPixel

    seen: list[int] = []
    fit = RawPixel.fit
    monkeypatch.setattr(RawPixel, "fit", lambda self, train: (seen.append(len(train)), fit(self, train))[1])
    return seen


def test_few_shot(tmp_path: Path, publish: list[Entry], fits: list[int]) -> None:
    publish.append(entry(dict.fromkeys(METRICS, 0.5), setting="few_shot", shots=2))
    outcome = bench(*command(tmp_path, "--setting", "few_shot", "--shots", "2"))
    assert outcome.code == 1 and fits == [2], outcome.err
    assert outcome.json()[0]["title"] == "raw_pixel on synthetic, few_shot k=2"
    which = bench(*command(tmp_path, "--setting", "few_shot"))
    assert which.code == 2 and "--shots 4" in which.err


def test_zero_shot_is_judged_for_the_source_that_is_named(
    tmp_path: Path, publish: list[Entry], fits: list[int], target: Path
) -> None:
    publish.append(entry(dict.fromkeys(METRICS, 0.5), setting="zero_shot", reference=False))
    others = ["--setting", "zero_shot", "--source", "folder", "--source-root", target]
    outcome = bench(*command(tmp_path, *others))
    assert outcome.code == 1 and fits == [3], outcome.err
    (table,) = outcome.json()
    assert {row["verdict"] for row in table["rows"] if row["mask_rule"] == "gt05"} == {"not comparable"}, "published with gt0"
    told = bench(*(word for word in command(tmp_path, *others, "--tolerance", "60") if word != "--json"))
    assert told.code == 0 and fits == [3], "judged by the given tolerance, and nothing is trained twice"
    assert "Measured: from folder" in told.out and "The paper does not state the source data set" in told.out
    lacking = bench(*command(tmp_path, "--setting", "zero_shot"))
    assert lacking.code == 2 and "--source real_iad" in lacking.err


def test_super_multi_class_is_one_training_and_a_table_for_each_set(
    tmp_path: Path, publish: list[Entry], fits: list[int], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reported, "SUPER_MULTI_CLASS", ("synthetic", "folder"))
    numbers = dict.fromkeys(METRICS, 0.5)
    publish += [entry(numbers, setting="super_multi_class", dataset=name) for name in ("synthetic", "folder")]
    words = command(tmp_path, "--setting", "super_multi_class", "--data-root", f"folder={target}")
    words[words.index("--dataset") + 1] = "synthetic,folder"
    outcome = bench(*words)
    assert outcome.code == 1 and fits == [6 + 3], outcome.err
    assert [table["title"].split(" ")[2] for table in outcome.json()] == ["synthetic,", "folder,"]
    assert all(len(table["rows"]) == 3 + 4 * 4 for table in outcome.json())


def test_what_could_not_be_judged_is_not_trained(
    tmp_path: Path, publish: list[Entry], fits: list[int], target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = dict.fromkeys(METRICS, 0.5)
    publish += [entry(numbers, setting="super_multi_class", dataset=name) for name in ("synthetic", "folder")]
    words = command(tmp_path, "--setting", "super_multi_class", "--data-root", f"folder={target}")
    words[words.index("--dataset") + 1] = "synthetic,folder"
    lacking = bench(*words)
    assert lacking.code == 4 and "published for one model of mvtec_ad, visa, real_iad" in lacking.err
    publish.append(entry(numbers))
    monkeypatch.setattr(reproduce, "marks_of", lambda cell: ["built-in encoder"])
    marked = bench(*command(tmp_path))
    assert marked.code == 4 and "built-in encoder" in marked.err and fits == []


def test_an_official_checkpoint_is_judged_where_its_user_says_so() -> None:
    """Whose training a checkpoint is cannot be seen: `bench reproduce` takes its user's word, a leaderboard does not."""
    from recordkit import record

    within = {"weights": {"dinov2reg_vit_base_14": "in the checkpoint"}, "checkpoint": "sha256:0", "limit": None}
    for setting, source in (("multi_class", None), ("super_multi_class", {"dataset": "not stated", "sets": []})):
        found = next(e for e in reported.load_reported() if e.reference and e.method == "inp_former" and e.setting == setting)
        measured = record(**within, dataset=found.dataset, setting=setting, source=source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reported, "_data_obstacle", lambda identity: "")
            refused = reported.compare(measured, ["i_auroc"], entries=[found])
            assert "--checkpoint" in refused.reasons["i_auroc"] and not refused.values
            assert reported.compare(measured, ["i_auroc"], entries=[found], vouched=True).values == {
                "i_auroc": found.metrics["i_auroc"]
            }
