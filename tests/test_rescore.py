"""`bench rescore`: the numbers of a record from its kept maps, and other definitions of them, without model or data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, bench

from inpbench.harness.records import RecordStore


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("kept")
    run = ["run", "-m", "raw_pixel", "--preset", "smoke", *TINY, "--display", "none", "--save-maps"]
    assert bench(*run, "--results", results).code == 0
    return results


@pytest.fixture
def results(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "results"))


def only(results: Path, **filters: object) -> str:
    [record] = RecordStore(results).all(**filters)
    return record.id


def test_a_record_is_confirmed_and_a_changed_map_is_found(results: Path) -> None:
    id = only(results)
    outcome = bench("rescore", id, "--results", results)
    assert outcome.code == 0 and "all 14 numbers follow" in outcome.out
    path = next(results.glob("*/*/*/*.maps/nut.npy"))
    maps = np.load(path)
    maps[-1] = maps[-1, ::-1]
    np.save(path, maps)
    outcome = bench("rescore", id, "--results", results)
    assert outcome.code == 1 and "nut p_auroc: recorded" in outcome.out and "nut i_auroc" not in outcome.out
    outcome = bench("rescore", id, "--variant", "paper", "--results", results)
    assert outcome.code != 0 and "The kept maps of nut are not those of record" in outcome.err
    assert len(RecordStore(results).all()) == 1, "maps that do not give the record's numbers give no others"


def test_another_variant_is_the_record_that_a_run_would_have_written(results: Path, tmp_path: Path) -> None:
    outcome = bench("rescore", only(results), "--variant", "paper", "--results", results)
    assert outcome.code == 0, outcome.err
    store = RecordStore(results)
    assert len(store.all()) == 2
    [mine] = [record for record in store.all() if record.identity["metrics"]["variant"] == "paper"]
    run = ["run", "-m", "raw_pixel", "--preset", "smoke", *TINY, "--display", "none", "--variant", "paper"]
    assert bench(*run, "--results", tmp_path / "run").code == 0
    [theirs] = RecordStore(tmp_path / "run").all()
    assert mine.id == theirs.id and mine.metrics == theirs.metrics
    assert any("rescored" in note for note in mine.notes) and "torch" in mine.stamp["rescored_by"]
    ours, others = store.read_samples(mine), RecordStore(tmp_path / "run").read_samples(theirs)
    assert all(np.array_equal(ours[c]["draws"], others[c]["draws"], equal_nan=True) for c in others)


@pytest.mark.parametrize("gone", [("jackknife",), ("draws", "jackknife")])
def test_a_confirmed_record_gets_the_evidence_that_it_lacks(results: Path, gone: tuple[str, ...]) -> None:
    store = RecordStore(results)
    [record] = store.all()
    whole = store.read_samples(record)
    older = {name: {key: value for key, value in table.items() if key not in gone} for name, table in whole.items()}
    record.samples = store.write_samples(record.identity, older)
    store.write(record)
    before = bench("leaderboard", "--intervals", "--results", results).out
    assert ("intervals are of draws alone" if len(gone) == 1 else "no interval") in before and "bench rescore RECORD" in before
    outcome = bench("rescore", record.id, "--results", results)
    assert outcome.code == 0 and f"{gone[-1]} added" in outcome.err and "all 14 numbers" in outcome.out
    [again] = store.all()
    assert again.id == record.id and again.metrics == record.metrics and "from the kept maps" in again.notes[-1]
    found = store.read_samples(again)
    assert all(np.array_equal(found[name][key], whole[name][key], equal_nan=True) for name in whole for key in gone)
    assert "bench rescore" not in bench("leaderboard", "--intervals", "--results", results).out
    assert "added" not in bench("rescore", record.id, "--results", results).err


def test_maps_that_are_missing_broken_or_of_another_run(results: Path) -> None:
    id = only(results)
    folder = next(results.glob("*/*/*/*.maps"))
    facts = json.loads((folder / "nut.json").read_text())
    (folder / "nut.json").write_text(json.dumps(facts | {"score": [s + 1 for s in facts["score"]]}))
    outcome = bench("rescore", id, "--results", results)
    assert outcome.code != 0 and "images or scores differ" in outcome.err and "--save-maps" in outcome.err
    (folder / "nut.json").write_text("{")
    assert "cannot be read" in bench("rescore", id, "--results", results).err
    (folder / "nut.json").write_text(json.dumps(facts))
    (folder / "nut.npy").unlink()
    assert "no kept maps of nut" in bench("rescore", id, "--results", results).err
    assert bench("rescore", "ffffff", "--results", results).code == 2
