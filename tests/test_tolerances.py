"""Tolerances learned from repeated runs, the history of checks, annotations; and a planted regression that is caught."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from commands import bench
from recordkit import record
from scipy import stats

from inpbench.harness import baselines
from inpbench.harness.check import check, update
from inpbench.harness.errors import NothingError, UsageError
from inpbench.harness.history import read, remember, trend
from inpbench.harness.metrics import METRICS
from inpbench.harness.records import RecordStore
from inpbench.harness.tolerances import FLOOR, half_width, learn
from inpbench.harness.verdicts import github_lines

VALUES = [0.90, 0.91, 0.905, 0.895, 0.90]


@pytest.fixture
def learned(tmp_path: Path) -> tuple[RecordStore, Path]:
    """A store of five seeds, and the baseline of the first of them."""
    store, folder = RecordStore(tmp_path / "runs"), tmp_path / "baselines"
    store.write(record(VALUES[0], seed=0))
    update(store, folder, "first")
    for seed, value in enumerate(VALUES):
        store.write(record(value, seed=seed, p_auroc=0.97))
    return store, folder


def test_the_tolerance_is_for_the_difference_of_two_runs(learned: tuple[RecordStore, Path]) -> None:
    store, folder = learned
    assert learn(store, folder, 5) == list(folder.glob("*.json"))
    [baseline] = baselines.load(folder)
    [entry] = baseline.entries
    expected = stats.t.ppf(0.995, 4) * statistics.stdev(VALUES) * math.sqrt(2)
    assert entry.metrics["i_auroc"].tolerance == pytest.approx(expected)
    assert entry.metrics["p_auroc"].tolerance == FLOOR, "equal runs do not prove that nothing can move"
    assert entry.learned == {"seeds": [0, 1, 2, 3, 4], "level": 0.99}
    assert learn(store, folder, 5) == [], "learned already"
    store.write(record(0.93, seed=0))
    update(store, folder, "better", seed=0)
    [baseline] = baselines.load(folder)
    assert baseline.entries[0].metrics["i_auroc"].value == 0.93
    assert baseline.entries[0].metrics["i_auroc"].tolerance == pytest.approx(expected) and baseline.entries[0].learned


def test_one_more_run_lies_near_the_baseline_as_often_as_it_says() -> None:
    """The baseline is the first run, not the mean of all."""
    rng = np.random.default_rng(0)
    runs = rng.normal(0.9, 0.01, (2000, 6))
    inside = [abs(row[5] - row[0]) <= half_width(list(row[:5])) for row in runs]
    assert 0.98 <= np.mean(inside) <= 0.998


def test_too_few_runs(learned: tuple[RecordStore, Path]) -> None:
    store, folder = learned
    before = [path.read_bytes() for path in folder.glob("*.json")]
    with pytest.raises(NothingError, match="the most are 5") as error:
        learn(store, folder, 6)
    assert "--seeds 1,2,3,4,5,6" in error.value.hint
    with pytest.raises(UsageError, match="at least 3"):
        learn(store, folder, 2)
    assert before == [path.read_bytes() for path in folder.glob("*.json")]


def test_other_protocols_and_machines_do_not_count(tmp_path: Path) -> None:
    store, folder = RecordStore(tmp_path / "runs"), tmp_path / "baselines"
    store.write(record(0.9, seed=0))
    update(store, folder, "first")
    store.write(record(0.8, seed=1, hardware="cuda-h100"))
    store.write(record(0.8, seed=2, method_version=2))
    store.write(record(0.9, seed=3))
    with pytest.raises(NothingError, match="the most are 2"):
        learn(store, folder, 3)


# --- history --------------------------------------------------------------------------------------------------------


def test_history_is_appended_to_and_drawn(learned: tuple[RecordStore, Path], tmp_path: Path) -> None:
    store, folder = learned
    [picture] = remember(check(store, folder), store, folder, tmp_path / "history")
    lines = picture.with_suffix(".jsonl")
    first = lines.read_bytes()
    remember(check(store, folder), store, folder, tmp_path / "history")
    assert lines.read_bytes() == first, "the same record is not written twice"
    store.write(record(0.7, seed=0, finished="2026-02-01T00:00:00+00:00"))
    remember(check(store, folder), store, folder, tmp_path / "history")
    assert lines.read_bytes().startswith(first) and [item["metrics"]["i_auroc"] for item in read(lines)] == [0.9, 0.7]
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 * len(METRICS)
    assert sum(circle.get("fill") == "#d55e00" for circle in circles) == 8, "0.7 is outside, and P-AUROC moved twice"


def test_a_broken_line_is_named_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    good = {"date": "2026-01-01", "commit": None, "dirty": False, "hardware": "cpu-x86_64-2", "record": "ab", "metrics": {}}
    path.write_text(json.dumps(good) + '\n{"date": \n' + json.dumps(good | {"record": 3}) + "\n", encoding="utf-8")
    assert read(path) == [good] and "line 2 is skipped" in caplog.text and "line 3" in caplog.text
    assert read(tmp_path / "none.jsonl") == []


def test_a_trend_without_runs_is_a_picture_too(learned: tuple[RecordStore, Path]) -> None:
    [baseline] = baselines.load(learned[1])
    assert ElementTree.fromstring(trend(baseline, [])).tag.endswith("svg")


# --- for CI ---------------------------------------------------------------------------------------------------------


def test_annotations(learned: tuple[RecordStore, Path]) -> None:
    store, folder = learned
    store.write(record(0.7, seed=0, finished="2026-02-01T00:00:00+00:00", p_ap=0.99))
    lines = github_lines(check(store, folder, seed=0), folder).splitlines()
    assert lines[0].startswith("::notice title=bench check::check%3A") or lines[0].startswith("::notice title=bench check::check:")
    errors = [line for line in lines if line.startswith("::error file=")]
    assert len(errors) == 6 and "I-AUROC 90.00 -> 70.00" in errors[0] and "%2C toy%2C" in errors[0]
    assert sum(line.startswith("::notice file=") for line in lines) == 1


@pytest.mark.slow
def test_a_planted_regression_is_caught_and_noise_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sign of Dinomaly's loss is changed; another seed alone is no regression."""
    from inpbench.methods import noisy

    data: list[Any] = ["--dataset", "synthetic", "--set", "synthetic.train=12", "--categories", "tile,nut"]
    small = ["--set", "synthetic.size=96", "--set", "synthetic.normal=8", "--set", "synthetic.defective=2"]
    run = ["run", "-m", "dinomaly", "--encoder", "builtin", "--preset", "smoke", *data, *small, "--display", "none"]
    runs, folder = tmp_path / "runs", tmp_path / "baselines"
    assert bench(*run, "--seeds", "1,2,3,4", "--results", runs).code == 0
    store = RecordStore(runs)
    update(store, folder, "first")
    learn(store, folder, 4)
    one = next(path for path in folder.glob("*-s1-*.json"))
    for path in folder.glob("*.json"):
        if path != one:
            path.unlink()
    assert bench("check", "--results", runs, "--baselines", folder).code == 0
    loss = noisy.mined_global_cosine
    monkeypatch.setattr(noisy, "mined_global_cosine", lambda *given, **named: -1.0 * loss(*given, **named))
    assert bench(*run, "--seeds", "1", "--results", tmp_path / "planted").code == 0
    answer = bench("check", "--results", tmp_path / "planted", "--baselines", folder, "--github")
    assert answer.code == 1 and "::error file=" in answer.out
