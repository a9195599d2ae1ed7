"""The regression check: every verdict, what is comparable, updates, exit codes and the written forms."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from recordkit import record

from inpbench.harness import baselines
from inpbench.harness.baselines import KEY, PROTOCOL, TOLERANCES
from inpbench.harness.check import VERDICTS, check, update
from inpbench.harness.errors import NothingError, RecordError, UsageError
from inpbench.harness.metrics import METRICS
from inpbench.harness.records import RecordStore
from inpbench.harness.tables import FORMATS, render
from inpbench.harness.verdicts import as_json, check_table, junit

SEVEN = len(METRICS)


@pytest.fixture
def folders(tmp_path):
    """A store of "before" whose record is the baseline, and an empty store of "after"."""
    before = RecordStore(tmp_path / "before")
    before.write(record(0.9))
    update(before, tmp_path / "baselines", "first")
    return RecordStore(tmp_path / "after"), tmp_path / "baselines"


def verdicts(result) -> dict[str, int]:
    return {verdict: number for verdict in VERDICTS if (number := result.count(verdict))}


def test_the_same_numbers_are_ok(folders):
    store, folder = folders
    store.write(record(0.9))
    result = check(store, folder)
    assert verdicts(result) == {"ok": SEVEN} and result.exit_code == 0 and result.compared == SEVEN
    assert result.headline() == "check: compared 7 of 7 (7 ok)."


@pytest.mark.parametrize(
    ("metric", "shift", "verdict"),
    [
        ("i_auroc", -TOLERANCES["i_auroc"], "ok"),  # exactly the tolerance is still ok
        ("i_auroc", -TOLERANCES["i_auroc"] - 1e-6, "regressed"),
        ("p_auroc", -TOLERANCES["p_auroc"], "ok"),
        ("p_auroc", TOLERANCES["p_auroc"] + 1e-6, "improved"),
        ("aupro", TOLERANCES["aupro"], "ok"),
    ],
)
def test_tolerances_by_metric(folders, metric, shift, verdict):
    store, folder = folders
    store.write(record(0.9, **{metric: 0.9 + shift}))
    result = check(store, folder)
    (finding,) = [finding for finding in result.findings if finding.metric == metric]
    assert finding.verdict == verdict and finding.baseline == 0.9 and finding.tolerance == TOLERANCES[metric]
    assert finding.difference == (0.9 + shift) - 0.9
    assert result.exit_code == (1 if verdict == "regressed" else 0)


def test_every_metric_has_a_default_tolerance():
    assert set(TOLERANCES) == set(METRICS)


def test_an_improvement_is_a_notice_not_a_failure(folders):
    store, folder = folders
    store.write(record(0.99))
    result = check(store, folder)
    assert verdicts(result) == {"improved": SEVEN} and result.exit_code == 0
    assert "bench check --update --reason" in result.headline()


def test_a_lower_is_better_metric_regresses_upwards(folders):
    store, folder = folders
    (path,) = folder.glob("*.json")
    document = json.loads(path.read_text())
    document["entries"][0]["metrics"]["i_auroc"]["direction"] = "lower"
    path.write_text(json.dumps(document))
    store.write(record(0.9, i_auroc=0.95))
    assert [f.metric for f in check(store, folder).findings if f.verdict == "regressed"] == ["i_auroc"]


def test_a_lost_value_and_a_failing_cell_are_regressions(folders):
    store, folder = folders
    store.write(record(0.9, p_ap=None))
    result = check(store, folder)
    assert verdicts(result) == {"regressed": 1, "ok": SEVEN - 1}
    store.write(record(status="failed", finished="2026-02-01T00:00:00+00:00"))
    result = check(store, folder)
    assert verdicts(result) == {"regressed": 1} and "ValueError" in result.findings[0].reason and result.exit_code == 1


def test_missing_started_and_new_are_no_comparison(folders):
    store, folder = folders
    result = check(store, folder)
    assert verdicts(result) == {"missing": 1} and result.exit_code == 4
    assert result.headline() == "check: 0 of 1 baseline entries could be compared (1 missing)."
    store.write(record(status="started"))
    assert check(store, folder).findings[0].reason == "the cell was started, not finished"
    store.write(record(0.9, seed=1))
    result = check(store, folder)
    assert verdicts(result) == {"missing": 1, "new": 1} and result.exit_code == 4


def test_nothing_at_all_is_not_a_success(tmp_path):
    result = check(RecordStore(tmp_path / "none"), tmp_path / "no baselines")
    assert result.exit_code == 4 and "no baselines, no records" in result.headline()


OTHER_PROTOCOL = {
    "method_version": 2,
    "setting_version": 2,
    "dataset_version": 2,
    "manifest": "sha256:" + "0" * 64,
    "scoring": record().identity["scoring"] | {"version": 2},
    "metrics": {"suite": 2, "variant": "exact"},
    "weights": {"dinov2reg_vit_base_14": "sha256:0"},
    "prompts": {"bottle": "sha256:0"},
    "eval_batch": 8,
}


def test_every_part_of_the_protocol_is_tested_here():
    assert set(OTHER_PROTOCOL) == set(PROTOCOL)


@pytest.mark.parametrize("name", PROTOCOL)
def test_another_protocol_is_incomparable_with_its_reason(folders, name):
    store, folder = folders
    store.write(record(0.1, **{name: OTHER_PROTOCOL[name]}))
    result = check(store, folder)
    assert verdicts(result) == {"incomparable": 1} and result.exit_code == 4
    assert name in result.findings[0].reason and "baseline" in result.findings[0].reason


@pytest.mark.parametrize("name", KEY)
def test_another_request_is_another_cell(folders, name):
    store, folder = folders
    changes = {
        "method": {"method": "dinomaly"},
        "label": {"label": "inp_former(inp_num=4)"},
        "mask_rule": {"scoring": record().identity["scoring"] | {"mask_rule": "gt0"}},
        "variant": {"metrics": {"suite": 1, "variant": "paper"}},
        "dataset": {"dataset": "other"},
        "dataset_params": {"dataset_params": {"size": 1}},
        "setting": {"setting": "single_class"},
        "shots": {"shots": 4},
        "source": {"source": {"dataset": "visa"}},
        "seed": {"seed": 1},
        "engine": {"engine": "reference"},
        "limit": {"limit": 3},
        "selection": {"selection": "best_on_test"},
        "checkpoint": {"checkpoint": "sha256:1"},
        "input": {"input": {"resize": [1, 1], "crop": [1, 1]}},
        "categories": {"categories": ["bottle"]},
        "weight_sources": {"weights": {"dinov2reg_vit_base_14": "random"}},
    }[name]
    store.write(record(0.1, **changes))
    assert verdicts(check(store, folder)) == {"missing": 1, "new": 1}


def test_changed_parameters_of_the_same_label_are_still_compared(folders):
    """A new parameter with a default changes the identity, not the request; a changed default raises method_version."""
    store, folder = folders
    store.write(record(0.9, params={"inp_num": 6, "lr": 0.001, "new": 1}))
    assert verdicts(check(store, folder)) == {"ok": SEVEN}


def test_hardware_cores_do_not_matter_but_kinds_do(folders):
    store, folder = folders
    store.write(record(0.9, hardware="cpu-x86_64-16"))
    assert verdicts(check(store, folder)) == {"ok": SEVEN}
    store.write(record(0.9, hardware="cuda-h100"))
    result = check(store, folder)
    assert verdicts(result) == {"incomparable": 1} and "cuda-h100" in result.findings[0].reason


def test_one_baseline_for_each_kind_of_hardware(folders):
    store, folder = folders
    store.write(record(0.7, hardware="cuda-h100"))
    update(store, folder, "first GPU")
    (baseline,) = baselines.load(folder)
    values = {entry.hardware: entry.metrics["aupro"].value for entry in baseline.entries}
    assert values == {"cpu-x86_64-2": 0.9, "cuda-h100": 0.7}
    assert verdicts(check(store, folder)) == {"ok": SEVEN}
    store.write(record(0.9))
    assert verdicts(check(store, folder)) == {"ok": SEVEN}


def test_the_newest_record_of_the_same_data_counts(folders):
    store, folder = folders
    store.write(record(0.9, finished="2026-01-02T00:00:00+00:00"))
    store.write(record(0.1, finished="2026-01-01T00:00:00+00:00", params={"inp_num": 6}))
    store.write(record(0.2, finished="2026-01-03T00:00:00+00:00", manifest="sha256:1"))
    assert verdicts(check(store, folder)) == {"ok": SEVEN}
    store.write(record(0.1, finished="2026-01-04T00:00:00+00:00", params={"inp_num": 6}))
    assert verdicts(check(store, folder)) == {"regressed": SEVEN}
    store.write(record(0.9, finished="2026-01-05T00:00:00+00:00", method_version=2))
    assert verdicts(check(store, folder)) == {"incomparable": 1}  # an older run must not hide what the code does now


def test_filters_apply_to_records_and_baselines(folders):
    store, folder = folders
    store.write(record(0.9))
    store.write(record(0.9, method="dinomaly"))
    assert verdicts(check(store, folder, method="inp_former")) == {"ok": SEVEN}
    assert verdicts(check(store, folder, method=["dinomaly"], dataset=None)) == {"new": 1}


def test_broken_records_are_warnings(folders):
    store, folder = folders
    path = store.write(record(0.9))
    path.with_name("broken.json").write_text("{")
    result = check(store, folder)
    assert verdicts(result) == {"ok": SEVEN} and len(result.warnings) == 1


# --- updates --------------------------------------------------------------------------------------------------------


def test_update_needs_a_reason_and_a_record(tmp_path):
    store = RecordStore(tmp_path / "runs")
    with pytest.raises(NothingError):
        update(store, tmp_path / "b", "why")
    store.write(record(0.9))
    for reason in ("", "  \n"):
        with pytest.raises(UsageError, match="reason"):
            update(store, tmp_path / "b", reason)
    store.write(record(status="failed", seed=1))
    assert [path.name for path in update(store, tmp_path / "b", "why")] == [path.name for path in (tmp_path / "b").iterdir()]


def test_update_keeps_every_bit_names_its_source_and_is_idempotent(folders):
    store, folder = folders
    made = record(0.1 + 0.2)
    store.write(made)
    (path,) = update(store, folder, " new encoder ")
    (entry,) = baselines.read(path).entries
    assert (entry.reason, entry.record, entry.metrics["p_ap"].value) == ("new encoder", made.id, 0.1 + 0.2)
    assert path.name.startswith("toy-multi_class-inp_former-s0-")
    text = path.read_text()
    assert update(store, folder, "again") == [] and path.read_text() == text
    assert baselines.to_text(baselines.read(path)) == text


def test_update_keeps_tolerances_that_were_edited(folders):
    store, folder = folders
    (path,) = folder.glob("*.json")
    document = json.loads(path.read_text())
    document["entries"][0]["metrics"]["p_ap"]["tolerance"] = 0.3
    path.write_text(json.dumps(document))
    store.write(record(0.7))
    assert {f.metric for f in check(store, folder).findings if f.verdict == "ok"} == {"p_ap"}
    update(store, folder, "why")
    assert baselines.read(path).entries[0].metrics["p_ap"].tolerance == 0.3
    store.write(record(0.7, hardware="cuda-t4"))
    update(store, folder, "GPU")
    assert [entry.metrics["p_ap"].tolerance for entry in baselines.read(path).entries] == [0.3, 0.3]


def test_update_of_other_protocol_makes_it_comparable_again(folders):
    store, folder = folders
    store.write(record(0.5, manifest="sha256:1", finished="2026-03-01T00:00:00+00:00"))
    assert verdicts(check(store, folder)) == {"incomparable": 1}
    update(store, folder, "new images")
    assert verdicts(check(store, folder)) == {"ok": SEVEN}


def _with_metric(document, **changes):
    row = {"value": 1, "tolerance": 0, "direction": "higher"} | changes
    return document | {"entries": [document["entries"][0] | {"metrics": {"aupro": row}}]}


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: [],
        lambda d: d | {"schema": 99},
        lambda d: d | {"key": {}},
        lambda d: d | {"entries": [{}]},
        lambda d: _with_metric(d, value="x"),
        lambda d: _with_metric(d, tolerance=-1),
        lambda d: _with_metric(d, direction="up"),
    ],
)
def test_a_broken_baseline_is_named(folders, damage):
    store, folder = folders
    (path,) = folder.glob("*.json")
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(RecordError, match=path.name):
        check(store, folder)


def test_names_of_baseline_files_are_unique_and_harmless(tmp_path):
    store = RecordStore(tmp_path / "runs")
    for changes in ({"method": "a/b"}, {"method": "a_b"}, {"method": "../x"}, {"shots": 2}, {"seed": 1}):
        store.write(record(0.9, **changes))
    paths = update(store, tmp_path / "b", "why")
    assert len(paths) == 5 and all(path.parent == tmp_path / "b" for path in paths)


def test_committed_baselines_are_readable():
    committed = list(baselines.load(Path(__file__).resolve().parents[1] / "results" / "baselines"))
    assert committed
    for baseline in committed:
        assert baseline.entries and all(entry.reason for entry in baseline.entries)


# --- written forms --------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(folders):
    store, folder = folders
    store.write(record(0.9, i_auroc=0.8, aupro=0.99))
    store.write(record(0.9, method="né\x01w <&>"))
    store.write(record(0.9, seed=2))
    update(store, folder, "why", seed=2)
    store.path_of(record(seed=2).identity).unlink()
    return check(store, folder)


def test_junit_counts_and_escapes(mixed):
    root = ElementTree.fromstring(junit(mixed))
    (suite,) = root
    assert suite.attrib | {"name": ""} == {"name": "", "tests": "9", "failures": "1", "errors": "0", "skipped": "2"}
    failures = [case for case in suite if case.find("failure") is not None]
    assert [case.get("name") for case in failures] == ["i_auroc"]
    assert "baseline 0.9, measured 0.8, tolerance 0.01" in failures[0].find("failure").get("message")
    assert any(case.get("classname").startswith("né?w <&>") for case in suite)


def test_junit_of_nothing_is_an_error(tmp_path):
    suite = ElementTree.fromstring(junit(check(RecordStore(tmp_path), tmp_path)))[0]
    assert suite.get("errors") == "1" and suite[0].find("error") is not None


def test_json_says_everything(mixed):
    document = json.loads(as_json(mixed))
    assert document["exit_code"] == 1 and document["compared"] == SEVEN
    assert document["counts"] == {"regressed": 1, "improved": 1, "ok": 5, "incomparable": 0, "missing": 1, "new": 1}
    first = document["findings"][0]
    assert first["verdict"] == "regressed" and first["measured"] == 0.8 and first["difference"] == 0.8 - 0.9


def test_tables_in_every_format(mixed):
    table = check_table(mixed)
    assert len(table.rows) == 9 and [cell.text for cell in table.rows[0]][3:7] == ["90.00", "80.00", "-10.00", "1.00"]
    for format in FORMATS:
        assert "i_auroc" in render([table], format) or "I-AUROC" in render([table], format)
    assert len(check_table(mixed, ("regressed",)).rows) == 1
