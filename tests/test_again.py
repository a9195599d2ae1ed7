"""A cell that is run again: nothing of the earlier run stands beside the new numbers, and nothing is missing from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, bench

from inpbench.harness import registry, runner, stamp
from inpbench.harness.records import RecordStore
from inpbench.harness.registry import METHODS

RUN = ["run", "-m", "raw_pixel", "--preset", "smoke", *TINY, "--display", "none"]


def beside(results: Path) -> set[str]:
    return {path.suffix for path in results.glob("*/*/*/*") if path.is_dir()}


def test_forced_without_maps_and_models_keeps_none_of_the_earlier_run(tmp_path: Path) -> None:
    assert bench(*RUN, "--save-maps", "--results", tmp_path).code == 0
    assert beside(tmp_path) == {".maps", ".models"}
    assert bench(*RUN, "--force", "--phase", "test", "--no-keep-models", "--results", tmp_path).code == 0
    assert beside(tmp_path) == {".models"}, "--phase test works with the kept model"
    assert bench(*RUN, "--force", "--save-maps", "--no-keep-models", "--results", tmp_path).code == 0
    assert beside(tmp_path) == {".maps"}
    assert bench(*RUN, "--results", tmp_path).code == 0
    assert beside(tmp_path) == {".maps"}, "done: nothing is run, nothing is dropped"


def test_what_was_tested_without_intervals_is_tested_again_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[str] = []
    evaluate = runner.evaluate_category

    def killed(cell: Any, category: str, *arguments: Any) -> Any:
        tested.append(category)
        if len(tested) == 2:
            raise KeyboardInterrupt
        return evaluate(cell, category, *arguments)

    monkeypatch.setattr(runner, "evaluate_category", killed)
    assert bench(*RUN, "--no-intervals", "--results", tmp_path).code == 130
    assert bench(*RUN, "--results", tmp_path).code == 0 and tested == ["weave", "nut", "weave", "nut"]
    store = RecordStore(tmp_path)
    [record] = store.all(status="done")
    assert all({"draws", "jackknife"} <= set(table) for table in store.read_samples(record).values())


def test_a_cell_that_was_begun_on_other_hardware_and_versions_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stamp, "hardware_class", lambda device="cpu": "cuda-h100")
        patch.setattr(stamp, "code_in_words", lambda: "0123456, torch 1.0")
        assert bench(*RUN, "--phase", "train", "--results", tmp_path).code == 0
    assert bench(*RUN, "--phase", "test", "--results", tmp_path).code == 0
    [record] = RecordStore(tmp_path).all()
    assert record.stamp["hardware"].startswith("cpu-") and record.stamp["hardware_before"] == ["cuda-h100"]
    assert record.stamp["code_before"] == ["0123456, torch 1.0"]
    table = bench("leaderboard", "--results", tmp_path, "-f", "markdown").out
    assert "in part on cuda-h100, where the cell was begun" in table
    assert "in part under 0123456, torch 1.0, where the cell was begun" in table
    assert bench(*RUN, "--force", "--results", tmp_path).code == 0
    [record] = RecordStore(tmp_path).all()
    assert "hardware_before" not in record.stamp and "code_before" not in record.stamp


def test_the_package_of_a_third_partys_method_stands_in_the_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        name, version = "their-methods", "1.2.3"

    class Point:
        name, dist = "theirs", Package()

        def load(self) -> Any:
            return replace(METHODS.get("raw_pixel"), name="theirs")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()] if group == "inpbench.methods" else [])
    assert bench("run", "-m", "theirs", "--preset", "smoke", *TINY, "--display", "none", "--results", tmp_path).code == 0
    [record] = RecordStore(tmp_path).all()
    assert record.stamp["packages"]["their-methods"] == "1.2.3" and "inpbench" in record.stamp["packages"]
    assert METHODS.package("raw_pixel") == {} and METHODS.package("nobody") == {}
