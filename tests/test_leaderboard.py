"""Leaderboards: what is never mixed, what is never ranked, and that every format says the same numbers."""

from __future__ import annotations

import csv
import io
import json
import statistics

import pytest
from recordkit import CATEGORIES, record

from inpbench.harness.api import DatasetInfo, MethodInfo, NoParams
from inpbench.harness.errors import UsageError
from inpbench.harness.families import FAMILY_KEYS, families, rows_of
from inpbench.harness.leaderboard import build_tables
from inpbench.harness.metrics import METRICS
from inpbench.harness.registry import DATASETS, METHODS
from inpbench.harness.reported import Entry, compare
from inpbench.harness.tables import FORMATS, Cell, Column, Footnotes, Table, render

CHANGES = {
    "dataset": "other",
    "dataset_version": 2,
    "dataset_params": {"size": 64},
    "manifest": "sha256:00",
    "categories": ["bottle"],
    "setting": "single_class",
    "setting_version": 2,
    "shots": 4,
    "source": {"dataset": "visa"},
    "scoring": {"version": 1, "mask_rule": "gt0"},
    "metrics": {"suite": 2, "variant": "exact"},
    "limit": 5,
}


def test_every_part_of_the_protocol_is_tested_here():
    assert set(CHANGES) == set(FAMILY_KEYS)


@pytest.mark.parametrize("key", FAMILY_KEYS)
def test_records_of_two_protocols_never_share_a_table(key):
    one, other = record(0.9), record(0.95, **{key: CHANGES[key]})
    found = families([one, other])
    assert [len(family.records) for family in found] == [1, 1]
    assert len(build_tables([one, other])) == 2


def test_methods_params_inputs_and_weights_share_a_table_but_not_a_row():
    made = [
        record(0.9),
        record(0.8, method="dinomaly"),
        record(0.7, params={"inp_num": 4}, label="inp_former(inp_num=4)"),
        record(0.6, input={"resize": [256, 256], "crop": [224, 224]}),
        record(0.5, weights={"dinov2reg_vit_base_14": "random"}, marks=["random weights"]),
    ]
    (family,) = families(made)
    assert [row.mean("i_auroc") for row in rows_of(family)] == [0.9, 0.8, 0.7, 0.6, 0.5]


def test_what_records_of_one_protocol_do_not_share_stands_above_them():
    made = [record(0.9, stamp={"packages": {"torch": "2.6.0"}}), record(0.8, seed=1, stamp={"packages": {"torch": "2.6.0"}})]
    assert not any("torch" in line or "NOT ALL" in line for table in build_tables(made) for line in table.caption)
    made.append(record(0.7, method="dinomaly", stamp={"packages": {"torch": "2.4.1"}}))
    made[-1].metrics["counts"]["bottle"]["normal"] -= 1
    for table in (*build_tables(made), *build_tables(made, by="category")):
        assert any("Run under torch 2.4.1, 2.6.0" in line for line in table.caption)
        assert any("NOT ALL ROWS WERE TESTED ON THE SAME NUMBER OF IMAGES" in line for line in table.caption)


def test_rows_that_would_look_alike_are_told_apart():
    made = [record(0.9), record(0.8, method_version=2), record(0.7, engine="reference")]
    made.append(record(0.6, checkpoint="sha256:" + "9" * 64))
    names = [row[0].text for row in build_tables(made)[0].rows]
    assert len(set(names)) == 4
    assert names[0].startswith("inp_former v1 ") and names[1].startswith("inp_former v2 ")
    assert names[2] == "inp_former [reference engine]" and names[3] == "inp_former [checkpoint 99999999]"


def test_seeds_give_mean_and_sample_standard_deviation():
    values = [0.91, 0.94, 0.92]
    (table,) = build_tables([record(value, seed=seed) for seed, value in enumerate(values)])
    (data,) = table.data
    assert data["i_auroc"] == statistics.fmean(values) and data["i_auroc_sd"] == statistics.stdev(values)
    assert data["seeds"] == [0, 1, 2] and len(data["records"]) == 3
    assert table.rows[0][2].text == "92.33 ± 1.53"


def test_one_seed_has_no_standard_deviation():
    (table,) = build_tables([record(0.9)])
    assert table.data[0]["i_auroc_sd"] is None and table.rows[0][2].text == "90.00"


def test_a_metric_without_a_value_in_one_seed_has_none_in_the_table():
    (table,) = build_tables([record(0.9, seed=0), record(0.9, seed=1, p_ap=None)])
    assert table.data[0]["p_ap"] is None and table.data[0]["p_auroc"] == 0.9
    assert any(text.startswith("no value on bottle: only one label") for _, text in table.footnotes)


def test_metrics_without_a_value_for_one_reason_share_a_footnote():
    (table,) = build_tables([record(0.9, p_auroc=None, p_ap=None, p_f1max=None, aupro=None)])
    assert len([text for _, text in table.footnotes if text.startswith("no value on")]) == 1


def test_failed_and_unfinished_cells_are_listed_and_never_ranked():
    made = [record(0.9), record(status="failed", method="dinomaly"), record(status="started", method="dinomaly", seed=1)]
    (table,) = build_tables([*made, record(0.8, seed=1), record(0.7, method="raw_pixel")])
    assert [row[0].text for row in table.rows] == ["inp_former", "raw_pixel"]
    assert table.below == [
        "missing: dinomaly, seed 0: failed: ValueError: out of luck",
        "missing: dinomaly, seed 1: started, not finished",
        "missing: raw_pixel, seed 1: not run",
    ]
    assert [item["reason"] for item in table.missing][2] == "not run"


def test_a_family_of_failures_only_says_so():
    (table,) = build_tables([record(status="failed")])
    assert table.rows == [] and len(table.below) == 1
    for format in FORMATS:
        render([table], format)
    assert build_tables([record(status="failed")], by="category") == []


def test_sorted_by_image_then_pixel_auroc_and_best_marked_once_per_column():
    made = [
        record(0.8, method="a", i_auroc=0.9, p_auroc=0.7),
        record(0.8, method="b", i_auroc=0.9, p_auroc=0.8, aupro=0.99),
        record(0.95, method="c", i_auroc=0.5),
        record(0.8, method="d", i_auroc=None),
    ]
    (table,) = build_tables(made)
    assert [row[0].text for row in table.rows] == ["b", "a", "c", "d"]
    best = {METRICS_TITLES[index]: [row[0].text for row in table.rows if row[index + 2].best] for index in range(7)}
    assert best["I-AUROC"] == ["a", "b"] or best["I-AUROC"] == ["b", "a"]  # a tie is a tie
    assert best["P-AUROC"] == ["c"] and best["AUPRO"] == ["b"]


METRICS_TITLES = [metric.title for metric in METRICS.values()]


def test_a_checkpoint_chosen_on_the_test_set_is_marked_last_and_never_best():
    (table,) = build_tables([record(0.8), record(0.99, selection="best_on_test"), record(0.7, method="dinomaly")])
    assert [row[0].marks for row in table.rows] == [(), (), ("†",)]
    assert not any(cell.best for cell in table.rows[2])
    assert table.rows[0][2].best


def test_marks_yardsticks_and_dirty_trees_have_footnotes():
    METHODS.add(
        MethodInfo(name="toy_yardstick", version=1, title="", target="x:y", params=NoParams, settings=frozenset(), baseline=True)
    )
    dirty = {"git": {"commit": "f" * 40, "dirty": True}}
    made = [record(0.9, marks=["built-in encoder"], stamp=dirty), record(0.8, method="toy_yardstick", marks=["built-in encoder"])]
    (table,) = build_tables(made)
    assert table.rows[0][0].marks == ("1",) and table.rows[1][0].marks == ("‡", "1")
    assert table.rows[0][-1] == Cell("fffffff", ("+",))
    assert dict(table.footnotes) == {
        "1": "built-in encoder: not comparable with published numbers",
        "‡": "a yardstick, not a contender",
        "+": "run from sources with uncommitted changes",
    }


def test_caption_states_the_protocol():
    (table,) = build_tables([record(limit=8, dataset_params={"size": 64}, source={"dataset": "real_iad"})])
    text = "\n".join(table.caption)
    for words in ("multi_class v1", "toy v1, 2 categories, size=64, manifest abababababab", "suite 1, variant exact", "scoring v1"):
        assert words in text
    for words in ("mask rule gt05", "LIMITED to 8", "Trained on: real_iad", "Cost measured on: cpu-x86_64-2"):
        assert words in text


def test_by_category_has_every_category_and_the_mean():
    tables = build_tables([record(0.9), record(0.8, method="dinomaly")], by="category", metrics=["i_auroc", "aupro"])
    assert [table.protocol["metric"] for table in tables] == ["i_auroc", "aupro"]
    assert [row[0].text for row in tables[0].rows] == [*CATEGORIES, "mean"]
    assert [cell.text for cell in tables[0].rows[0]] == ["bottle", "89.00", "79.00"]
    assert [cell.best for cell in tables[0].rows[2]] == [False, True, False]
    assert tables[0].data[0]["value"] == 0.9 - 0.01


def test_unknown_choices_are_refused():
    with pytest.raises(UsageError, match="Did you mean: i_auroc"):
        build_tables([], metrics=["i_aurok"])
    with pytest.raises(UsageError, match="--by"):
        build_tables([], by="class")
    with pytest.raises(UsageError, match="markdown"):
        render([], "markdwon")


# --- formats --------------------------------------------------------------------------------------------------------


def _tables():
    value = 0.1 + 0.2
    return build_tables([record(value), record(value / 2, method="dino_maly", label="dino_maly(a=b|c & 5%)"), record(0.5, shots=4)])


def test_json_and_csv_keep_every_bit():
    tables = _tables()
    document = json.loads(render(tables, "json"))
    assert [len(table["rows"]) for table in document] == [1, 2] or [len(table["rows"]) for table in document] == [2, 1]
    rows = [row for table in document for row in table["rows"]]
    assert {row["i_auroc"] for row in rows} == {0.1 + 0.2, (0.1 + 0.2) / 2, 0.5}
    read = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    assert [float(row["i_auroc"]) for row in read] == [row["i_auroc"] for row in rows]
    assert read[0]["i_auroc_sd"] == "" and {row["shots"] for row in read} == {"0", "4"}


def test_csv_runs_no_formula():
    table = Table("t", [], [], [], data=[{"name": "=1+1", "x": -0.5, "categories": ["@A1", "nut"], "n": -3}])
    assert render([table], "csv") == "name,x,categories,n\n'=1+1,-0.5,'@A1; nut,-3"
    for start in ("=", "+", "-", "@", "\t", "\r=", "\n", "＝", " ="):
        named = Table("t", [], [], [], data=[{"name": f"{start}cmd()"}])
        [_, [shown]] = csv.reader(io.StringIO(render([named], "csv"), newline=""))
        assert shown == f"'{start}cmd()".replace("\r", " ")


def test_markdown_is_a_table_and_escapes():
    text = render(_tables(), "markdown")
    assert "dino_maly(a=b\\|c & 5%)" in text and "**30.00**" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_latex_is_balanced_and_escapes():
    text = render(_tables(), "latex")
    assert r"dino\_maly(a=b|c \& 5\%)" in text and r"\textbf{30.00}" in text
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    bodies = [part.partition(r"\bottomrule")[0] for part in text.split(r"\midrule")[1:]]
    lines = [[line for line in body.splitlines() if line.endswith(r"\\")] for body in bodies]
    columns = [{line.replace(r"\&", "").count("&") for line in part} for part in lines]
    assert columns == [{8}, {6}] * len(_tables()), "metrics, then details"
    assert list(map(len, lines[::2])) == list(map(len, lines[1::2]))


def test_terminal_marks_the_best_without_colour_and_splits_when_narrow():
    tables = _tables()
    narrow, wide = render(tables, "terminal", width=90), render(tables, "terminal", width=200)
    assert "30.00*" in narrow and "\x1b" not in narrow
    assert len(narrow.splitlines()) > len(wide.splitlines())
    assert all(len(line) <= 90 for line in narrow.splitlines() if "│" in line or "───" in line)


LONG = "pmad(tokenizer=vqkd, start=scratch, dim=32, depth=2, heads=2, flow_epochs=1, flow_passes=1, flow_batch=4)"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 140])
def test_long_names_fold_and_heads_and_numbers_do_not(width):
    metrics = ("I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO")
    details = [Column("encoder", left=True, detail=True), Column("fit s", detail=True)]
    columns = [Column("method", left=True), *map(Column, metrics), *details]
    numbers = [Cell(f"9{n}.{n}4", second="98.10 to 99.92") for n in range(7)]
    row = [Cell(LONG, ("1",)), *numbers, Cell("dinov2reg_vit_base_14"), Cell("12.3")]
    text = render([Table("t", [], columns, [row])], "terminal", width)
    assert all(len(line) <= width for line in text.splitlines())
    for whole in (*metrics, "encoder", *(f"9{n}.{n}4" for n in range(7)), "dinov2reg_vit_base_14", "tokenizer=vqkd,"):
        assert whole in text, whole
    assert text.count("98.10 to 99.92") == 7 and text.count("method") == text.count("flow_batch=4)") >= 2


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_row_of_a_split_table_of_pairs_keeps_both_names(width):
    names = ("first", "second", "difference", "low", "high", "p", "verdict")
    columns = [Column(name, left=name in ("first", "second", "verdict")) for name in names]
    values = ("+1.00", "+0.10", "+2.00", "0.020")
    rows = [[Cell(text) for text in (LONG, other, *values, f"{other} is better")] for other in ("aaa", "bbb")]
    text = render([Table("t", [], columns, rows)], "terminal", width)
    assert text.count("first") == text.count("second") >= 1 and all(name in text for name in names)
    assert all(len(line) <= width for line in text.splitlines())
    assert text.count(" aaa ") == text.count(" bbb ") >= text.count("first")


def test_columns_of_a_split_table_are_even():
    columns = [Column("method", left=True), *(Column(f"metric{n}") for n in range(8))]
    text = render([Table("t", [], columns, [[Cell("m" * 20), *(Cell("1.00") for _ in range(8))]])], "terminal", 90)
    heads = [line.split()[1:] for line in text.splitlines() if line.strip().startswith("method")]
    assert [len(head) for head in heads] == [4, 4]


def test_every_format_shows_the_second_line_and_marks():
    cell = Cell("97.00", ("1",), "97.50 (-0.50)", best=True)
    table = Table("t", ["c"], [Column("m", left=True)], [[cell]], [("1", "note")], ["b"])
    for format in ("terminal", "markdown", "latex"):
        text = render([table], format)
        assert "97.00" in text and "97.50 (-0.50)" in text and "note" in text


def test_footnotes_number_texts_once():
    notes = Footnotes()
    assert [notes.mark("a"), notes.mark("b", "†"), notes.mark("c"), notes.mark("a")] == ["1", "†", "2", "1"]
    assert notes.listing() == [("†", "b"), ("1", "a"), ("2", "c")]


# --- published numbers beside measured ones -------------------------------------------------------------------------

OURS = Entry(
    method="inp_former",
    display="INP-Former",
    dataset="toy_official",
    setting="multi_class",
    shots=0,
    category=None,
    metrics={metric: 0.95 for metric in METRICS if metric != "i_ap"},
    protocol={"mask_rule": "gt0", "definitions": {"p_auroc": "exact", "p_ap": "exact", "p_f1max": "exact", "aupro": "steps200"}},
    reference=True,
    source="the paper, Table 2",
)


@pytest.fixture
def official(monkeypatch):
    DATASETS.add(DatasetInfo(name="toy_official", version=1, title="", scan="x:y", categories=tuple(reversed(CATEGORIES))))
    monkeypatch.setattr("inpbench.harness.reported.load_reported", lambda: (OURS,))


def _scoring(rule: str, **others) -> dict:
    return record().identity["scoring"] | {"mask_rule": rule} | others


@pytest.mark.usefixtures("official")
def test_the_same_protocol_shows_value_and_difference():
    made = record(0.96, dataset="toy_official", scoring=_scoring("gt0"), metrics={"suite": 1, "variant": "dinomaly"})
    (table,) = build_tables([made], reported=True)
    assert table.rows[0][2].second == "95.00 (+1.00)"
    assert table.data[0]["aupro_difference"] == 0.96 - 0.95 and table.data[0]["i_auroc_published_source"] == "the paper, Table 2"
    assert table.rows[0][3].second == "-" and table.data[0]["i_ap_published_reason"] == "not published (the paper, Table 2)"


@pytest.mark.usefixtures("official")
@pytest.mark.parametrize(
    ("rule", "variant", "shown"),
    [
        ("gt0", "exact", {"i_auroc", "i_f1max", "p_auroc", "p_ap", "p_f1max"}),
        ("gt0", "paper", {"i_auroc", "i_f1max", "p_f1max"}),
        ("gt0", "dinomaly", {"i_auroc", "i_f1max", "p_auroc", "p_ap", "p_f1max", "aupro"}),
        ("gt05", "dinomaly", {"i_auroc", "i_f1max"}),
        ("crr", "exact", {"i_auroc", "i_f1max"}),
    ],
)
def test_pixel_metrics_need_the_same_mask_rule_and_definition(rule, variant, shown):
    made = record(0.96, dataset="toy_official", scoring=_scoring(rule), metrics={"suite": 1, "variant": variant})
    comparison = compare(made, list(METRICS))
    assert set(comparison.values) == shown
    assert set(comparison.reasons) == set(METRICS) - shown and all(comparison.reasons.values())


@pytest.mark.usefixtures("official")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"marks": ["built-in encoder"]}, "built-in encoder"),
        ({"weights": {"x": "random"}}, "official weights"),
        ({"weights": {"x": "builtin:v1"}}, "official weights"),
        ({"limit": 5}, "limited to 5"),
        ({"label": "inp_former(inp_num=4)"}, "parameters differ"),
        ({"params": record().identity["params"] | {"inp_num": 4}}, "parameters differ"),  # under an edited label
        ({"params": record().identity["params"] | {"encoder": "dinov2reg_vit_small_14"}}, "parameters differ"),  # in no label
        ({"selection": "best_on_test"}, "chosen on the test set"),
        ({"source": {"dataset": "visa"}}, "source data set"),
        ({"categories": ["bottle"]}, "official categories"),
        ({"dataset_params": {"size": 64}}, "options of the data set"),
        ({"scoring": {"version": 1, "mask_rule": "gt0", "sigma": 2.0}}, "scoring constants"),
        ({"setting": "single_class"}, "no published number"),
        ({"shots": 4}, "no published number"),
        ({"method": "dinomaly"}, "no published number"),
        ({"skipped": [{"file": "a.png", "status": "unreadable", "message": ""}]}, "1 files of the data set"),
    ],
)
def test_nothing_is_shown_beside_another_protocol(changes, reason):
    changes = {"dataset": "toy_official", "scoring": _scoring("gt0")} | changes
    comparison = compare(record(0.96, **changes), list(METRICS))
    assert comparison.values == {} and all(reason in text for text in comparison.reasons.values())


@pytest.mark.usefixtures("official")
def test_a_warning_about_the_data_is_no_obstacle():
    skipped = [{"file": "a.png", "status": "mode", "message": "16 bit"}]
    made = record(0.96, dataset="toy_official", skipped=skipped, scoring=_scoring("gt0"))
    assert compare(made, ["i_auroc"]).values == {"i_auroc": 0.95}


@pytest.mark.usefixtures("official")
def test_why_no_value_is_shown_stands_under_the_table():
    made = record(0.96, dataset="toy_official")
    (table,) = build_tables([made], reported=True)
    assert any("published with mask rule gt0, measured with gt05" in text for _, text in table.footnotes)
    (table, *_) = build_tables([made], by="category", metrics=["i_auroc"], reported=True)
    assert table.rows[-1][1].second == "95.00 (+1.00)" and table.rows[0][1].second == "-"


def test_one_reason_for_a_whole_row_is_said_once():
    (table,) = build_tables([record(0.96, marks=["random weights"])], reported=True)
    assert table.rows[0][0].marks == ("1", "2") and not any(cell.marks or cell.second for cell in table.rows[0][1:])
    assert table.footnotes[1][1] == "no published value shown: no published number for this method, data set and setting"
    (table,) = build_tables([record(0.96)], by="category", metrics=["aupro"], reported=True)
    assert table.columns[1].title == "inp_former [1]" and not any(row[1].marks for row in table.rows)
