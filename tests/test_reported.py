"""Published numbers: the files parse, nothing of the transcription was lost, and references are unique."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from recordkit import record

from inpbench.harness.errors import RecordError
from inpbench.harness.marks import CLAIMED, ORACLE, PROMPTS, TOLD, obstacles
from inpbench.harness.metrics import METRICS
from inpbench.harness.reported import DEFINITIONS, OFFICIAL_SCORING, compare, load_reported, parse
from inpbench.harness.settings import SETTINGS

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = REPOSITORY / "results" / "reported"
SHARED = REPOSITORY.parent / "shared" / "reported"
NAMES = {"I-AUROC": "i_auroc", "I-AP": "i_ap", "P-AUROC": "p_auroc", "P-AP": "p_ap", "AUPRO": "aupro"}
NAMES |= {"I-F1": "i_f1", "P-F1": "p_f1"}
NAMES |= {"I-F1max": "i_f1max", "I-F1_max": "i_f1max", "P-F1max": "p_f1max", "P-F1_max": "p_f1max"}
LEVELS = {("image", "AUROC"): "i_auroc", ("image", "AUPRC"): "i_ap", ("image", "AP"): "i_ap", ("image", "F1-max"): "i_f1max"}
LEVELS |= {("pixel", "AUROC"): "p_auroc", ("pixel", "AP"): "p_ap", ("pixel", "F1-max"): "p_f1max", ("pixel", "AUPRO"): "aupro"}


def _numbers(node: Any) -> Counter[Decimal]:
    """Every number below a JSON node, with how often it occurs."""
    if isinstance(node, dict):
        return sum((_numbers(value) for value in node.values()), Counter())
    if isinstance(node, list):
        return sum((_numbers(value) for value in node), Counter())
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        return Counter([Decimal(str(node)).normalize()])
    return Counter()


def _fraction(percent: float) -> Decimal:
    return (Decimal(str(percent)) / 100).normalize()


def _shared(name: str) -> Any:
    if not SHARED.is_dir():
        pytest.skip("the transcription (../shared/reported) is not on this machine")
    return json.loads((SHARED / name).read_text(encoding="utf-8"))


def _entries(name: str):
    return parse((OURS / name).read_text(encoding="utf-8"), name)


def test_every_file_parses_and_every_number_is_a_fraction():
    entries = load_reported()
    assert len(entries) == sum(len(_entries(path.name)) for path in OURS.glob("*.json")) > 500
    for entry in entries:
        assert all(0 <= value <= 1 for value in entry.metrics.values() if value is not None), entry
        assert set(entry.metrics) <= {*METRICS, "i_f1", "p_f1"} and set(entry.std) <= set(entry.metrics)
        assert entry.setting is None or entry.setting in SETTINGS
        assert entry.source and entry.display and entry.shots >= 0


def test_references_are_unique_and_state_what_pixel_metrics_need():
    references = [entry for entry in load_reported() if entry.reference]
    keys = [(entry.method, entry.dataset, entry.setting, entry.shots, entry.category) for entry in references]
    assert len(keys) == len(set(keys)) > 20
    known = {definition for table in DEFINITIONS.values() for definition in table.values()}
    for entry in references:
        assert entry.kind == "paper" and entry.verified in ("paper_table", "quoted", "source_text")
        assert set(entry.protocol.get("definitions", {}).values()) <= known
    ours = [entry for entry in references if entry.method in ("inp_former", "dinomaly")]
    assert {entry.protocol["mask_rule"] for entry in ours} == {"gt0"}


def test_headline_numbers():
    by_cell = {(e.method, e.dataset, e.setting, e.shots): e for e in load_reported() if e.reference}
    assert by_cell["inp_former", "mvtec_ad", "multi_class", 0].metrics["i_auroc"] == 0.997
    assert by_cell["dinomaly", "visa", "multi_class", 0].metrics["p_ap"] == 0.532
    assert by_cell["inp_former", "real_iad", "multi_class", 0].metrics["p_ap"] == 0.475
    assert by_cell["inp_former", "mvtec_ad", "few_shot", 4].metrics["i_auroc"] == 0.976


def test_numbers_of_the_oracle_protocol_are_never_references():
    entries = [entry for entry in _entries("pmad.json") if entry.method == "pmad"]
    assert entries and not any(entry.reference for entry in entries) and all("oracle" in entry.protocol for entry in entries)


def test_an_oracle_is_not_comparable_and_what_a_method_is_told_does_not_forbid_it():
    assert obstacles([TOLD, ORACLE, PROMPTS, "random weights", CLAIMED]) == [ORACLE, "random weights"]


def test_the_official_scoring_is_the_default_scoring():
    from dataclasses import asdict

    from inpbench.harness.scoring import Scoring

    defaults = json.loads(json.dumps(asdict(Scoring())))
    assert {key: defaults[key] for key in OFFICIAL_SCORING} == OFFICIAL_SCORING


def test_definitions_cover_every_variant():
    from inpbench.harness.metrics import PIXEL_METRICS, VARIANTS

    assert set(DEFINITIONS) == set(VARIANTS) and all(set(table) == set(PIXEL_METRICS) for table in DEFINITIONS.values())


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": 2}', '{"schema": 1, "entries": [{}]}', '{"schema": 1, "entries": 3}', '{"schema": 1}']
)
def test_a_broken_file_is_named(text):
    with pytest.raises(RecordError, match=r"x\.json"):
        parse(text, "x.json")


def test_an_unknown_kind_is_refused():
    document = json.loads((OURS / "inp_former.json").read_text(encoding="utf-8"))
    document["entries"][0]["verified"] = "trust me"
    with pytest.raises(RecordError, match="trust me"):
        parse(json.dumps(document), "x.json")


# --- against the transcription --------------------------------------------------------------------------------------


def test_inp_former_row_by_row():
    rows, entries = _shared("inp_former.json"), _entries("inp_former.json")
    assert len(rows) == len(entries)
    for row, entry in zip(rows, entries, strict=True):
        assert (entry.display, entry.source, entry.shots, entry.note) == (
            row["method"],
            row["source"],
            row["shots"] or 0,
            row.get("note", ""),
        )
        assert entry.dataset == row["dataset"].lower().replace("-", "_") and entry.setting == row["setting"].replace("-", "_")
        wanted = {NAMES[key]: None if value is None else _fraction(value) for key, value in row["metrics"].items()}
        assert {key: v if v is None else Decimal(str(v)).normalize() for key, v in entry.metrics.items()} == wanted


def test_dinomaly_number_by_number():
    wanted: Counter[Any] = Counter()
    for row in _shared("dinomaly.json"):
        if row["dataset"] == "-":
            continue
        for category, table in [(None, row["metrics"] or {}), *row.get("per_class", {}).items()]:
            for key, value in table.items():
                for one in value if isinstance(value, list) else [value]:
                    wanted[row["method"], row["source"], category, NAMES[key], _fraction(one)] += 1
    found = Counter(
        (e.display, e.source, e.category, key, Decimal(str(value)).normalize())
        for e in _entries("dinomaly.json")
        for key, value in e.metrics.items()
        if value is not None
    )
    assert found == wanted and len(wanted) > 250


def test_inctrl_number_by_number():
    document = _shared("inctrl.json")
    wanted: Counter[Any] = Counter()
    spread: Counter[Any] = Counter()
    for row in document["results"]:
        place = (row["method"], row["shot"], row["source"], row.get("category"), LEVELS[row["level"], row["metric"]])
        percent = row["unit"] == "percent"
        wanted[(*place, _fraction(row["value"]) if percent else Decimal(str(row["value"])).normalize())] += 1
        if "std" in row:
            spread[(*place, _fraction(row["std"]) if percent else Decimal(str(row["std"])).normalize())] += 1
    entries = _entries("inctrl.json")

    def count(tables: list[tuple[Any, dict[str, Any]]]) -> Counter[Any]:
        return Counter(
            (e.display, e.shots, e.source, e.category, key, Decimal(str(value)).normalize())
            for e, table in tables
            for key, value in table.items()
        )

    assert count([(entry, entry.metrics) for entry in entries]) == wanted
    assert count([(entry, entry.std) for entry in entries]) == spread
    ours = json.loads((OURS / "inctrl.json").read_text(encoding="utf-8"))
    assert not _numbers([document["efficiency"], document["test_set_sizes"]]) - _numbers(ours["facts"])
    assert {row["note"] for row in document["results"] if "note" in row} <= {entry.note for entry in entries}


def test_pmad_number_by_number():
    document = _shared("pmad.json")
    shots = [table.pop("shots") for table in document["appendix"]["table8_cross_class_by_number_of_unseen_normal_samples"]]
    assert {entry.shots for entry in _entries("pmad.json")} == {0, *(shot for row in shots for shot in row)}
    ours = json.loads((OURS / "pmad.json").read_text(encoding="utf-8"))
    assert not _numbers(document) - _numbers(ours)
    assert set(document["notes"]) <= set(ours["notes"])


@pytest.mark.parametrize("name", ["dinomaly.json"])
def test_facts_and_notes_are_kept(name):
    rows = _shared(name)
    ours = json.loads((OURS / name).read_text(encoding="utf-8"))
    assert not _numbers([row for row in rows if row["dataset"] == "-"]) - _numbers(ours["facts"])
    notes = {row["note"].strip() for row in rows if "note" in row}
    assert notes <= {entry["note"] for entry in ours["entries"]}
    iterations = {row["iterations"] for row in rows if "iterations" in row}
    assert iterations == {entry["protocol"]["iterations"] for entry in ours["entries"] if "iterations" in entry["protocol"]}


def test_super_multi_class_is_compared_only_as_published() -> None:
    from inpbench.harness.params import plain
    from inpbench.harness.registry import DATASETS

    def part(name: str) -> dict:
        info = DATASETS.get(name)
        return {"dataset": name, "dataset_params": plain(info.params()), "categories": list(info.categories)}

    def compared(*names: str, drop: int = 0) -> tuple[dict[str, float], str]:
        sets = [part(name) for name in names]
        if drop:
            sets[1]["categories"] = sets[1]["categories"][drop:]
        made = record(setting="super_multi_class", source={"dataset": "+".join(names), "sets": sets}, **part("visa"))
        found = compare(made, ["i_auroc"])
        return found.values, found.reasons.get("i_auroc", "")

    assert compared("mvtec_ad", "visa", "real_iad") == ({"i_auroc": 0.973}, "")
    assert compared("visa", "mvtec_ad") == ({}, "published for one model of mvtec_ad, visa, real_iad")
    assert compared("mvtec_ad", "visa", "real_iad", drop=1) == ({}, "not the official categories")
