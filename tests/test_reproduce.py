"""`bench reproduce`: one training for all protocols, honest verdicts, the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

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


def entry(metrics: dict[str, float | None], rule: str = "gt0") -> Entry:
    definitions = {"p_auroc": "exact", "p_ap": "exact", "p_f1max": "exact", "aupro": "steps200"}
    return Entry(
        method="raw_pixel",
        display="raw pixels",
        dataset="synthetic",
        setting="multi_class",
        shots=0,
        category=None,
        metrics=metrics,
        protocol={"mask_rule": rule, "definitions": definitions},
        reference=True,
        source="a test",
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
