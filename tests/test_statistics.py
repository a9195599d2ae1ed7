"""Intervals, paired differences, ranks with ties and tests over data sets, against simulations and slow definitions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordkit
import torch
from commands import TINY, bench
from scipy import stats

from inpbench.harness.compare import overall, overall_table, pair_tables
from inpbench.harness.draws import Drawing, seed_of
from inpbench.harness.families import families, rows_of
from inpbench.harness.leaderboard import build_tables
from inpbench.harness.metrics import METRICS
from inpbench.harness.metrics.bootstrap import bootstrap, draw_metrics, pixel_counts
from inpbench.harness.metrics.intervals import interval, p_of_zero
from inpbench.harness.rank_picture import cliques, draw
from inpbench.harness.records import RecordStore
from inpbench.harness.statistics import AcrossPair, Evidence, EvidenceStore, across, holm, mean_ranks, paired, ranks

IMAGES = {"bottle": ("a", "b", "c"), "câble": ("d", "e")}


def evidence(shift: float, *, noise: int = 0, images: Mapping[str, tuple[str, ...]] = IMAGES) -> Evidence:
    """Draws around 0.5 + shift: the same images move every method alike, `noise` seeds what is its own."""
    common = np.random.default_rng(0).normal(0.5, 0.05, (len(METRICS), 1000))
    own = np.random.default_rng(noise).normal(0, 0.002, common.shape)
    return Evidence(dict.fromkeys(images, common + shift + own), images)


# --- intervals ------------------------------------------------------------------------------------------------------


def test_the_corrected_interval_is_the_percentile_interval_where_half_the_draws_lie_below() -> None:
    draws = np.random.default_rng(0).normal(size=4001)
    plain = np.quantile(draws, (0.025, 0.975))
    assert interval(draws, float(np.median(draws))) == pytest.approx(plain, abs=2e-3)
    biased = interval(draws + 0.5, float(np.median(draws)))
    assert biased.low < plain[0] + 0.5 and biased.high < plain[1] + 0.5, "draws that lie too high are moved down"


def test_p_is_the_level_at_which_the_interval_reaches_zero() -> None:
    draws = np.random.default_rng(3).normal(0.3, 0.2, 4000)
    p = p_of_zero(draws, 0.28)
    assert 0.02 < p < 0.4
    assert interval(draws, 0.28, 1 - p).low == pytest.approx(0.0, abs=2e-3)
    assert p_of_zero(-draws, -0.28) == pytest.approx(p)
    assert p_of_zero(np.abs(draws) + 1, 1.3) < 0.01 < p_of_zero(draws - 0.3, 0.0)


@pytest.mark.slow
def test_coverage_of_intervals_and_size_of_the_paired_test() -> None:
    """Over simulated data sets the 95 % interval of I-AUROC holds the truth in 93-97 %, and equal methods differ in about 5 %."""
    rng = np.random.default_rng(5)
    labels, truth, held, found, sets = np.arange(120) % 2, 0.5 * (1 + math.erf(0.75)), 0, 0, 400
    for number in range(sets):
        base = rng.normal(size=120) + 1.5 * labels
        draws, values = [], []
        for _ in range(2):  # two equally good methods that agree in part
            scores = (base + 0.5 * rng.normal(size=120)) / math.sqrt(1.25)
            draws.append(draw_metrics(scores, labels, seed=number, draws=400).values["i_auroc"])
            values.append(float(stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic) / 3600)
        truth = 0.5 * (1 + math.erf(1.5 / math.sqrt(1.25) / 2))
        low, high = interval(draws[0], values[0])
        held += low <= truth <= high
        found += p_of_zero(draws[0] - draws[1], values[0] - values[1]) < 0.05
    assert 0.925 <= held / sets <= 0.975
    assert 0.02 <= found / sets <= 0.08


# --- the drawing of a category --------------------------------------------------------------------------------------


def test_draws_batch_by_batch_are_those_of_all_images_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    masks = rng.random((9, 8, 8)) > 0.8
    masks[:4] = False
    maps, scores, labels = (rng.random((9, 8, 8)) + masks).astype(np.float32), rng.random(9), (np.arange(9) > 3).astype(int)
    has = np.arange(9) != 6
    drawing = Drawing(tmp_path / "draws", seed=3)
    for part in (slice(0, 4), slice(4, 9)):
        drawing.add(*(torch.from_numpy(a[part]) for a in (maps, masks, has)))
    drawn = drawing.finish(scores, labels)
    drawing.close()
    expected = draw_metrics(scores, labels, pixel_counts(maps[has], masks[has]), has, seed=3).values
    assert np.array_equal(np.asarray(drawn, np.float32), np.asarray([expected[m] for m in METRICS], np.float32))
    assert bootstrap(scores, labels, seed=3).values["i_auroc"] == interval(expected["i_auroc"])


def test_a_category_without_labels_or_room_has_no_draws(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drawing = Drawing(tmp_path, seed=0)
    drawing.add(torch.rand(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool), torch.tensor([False, False]))
    assert drawing.finish(np.array([0.1, 0.2]), np.array([0, -1])) is None
    drawing.close()
    (tmp_path / "file").write_text("")
    Drawing(tmp_path / "file" / "below", seed=0).close()
    assert "no room" in caplog.text


def test_the_same_images_have_the_same_seed() -> None:
    assert seed_of("sha256:ab", "bottle") == seed_of("sha256:ab", "bottle")
    assert len({seed_of("sha256:ab", "bottle"), seed_of("sha256:ab", "cable"), seed_of("sha256:ac", "bottle")}) == 3


# --- pairs and ranks ------------------------------------------------------------------------------------------------


def test_a_small_difference_shows_on_the_same_images_and_a_smaller_does_not() -> None:
    one, two = evidence(0.0, noise=1), evidence(0.02, noise=2)
    clear = paired(two, one, "p_ap", (0.52, 0.5))
    assert not isinstance(clear, str) and clear.significant and 0.01 < clear.interval.low < 0.02 < clear.interval.high
    alone = one.interval("p_ap", 0.5)
    assert alone is not None and alone.low < 0.5 < 0.52 < alone.high, "the intervals alone would not tell"
    unclear = paired(one, evidence(0.001, noise=3), "p_ap", (0.5, 0.501))
    assert not isinstance(unclear, str) and not unclear.significant and unclear.p > 0.05


def test_what_is_not_compared_says_why() -> None:
    other = evidence(0.0, images={"bottle": ("a", "b", "x"), "câble": ("d", "e")})
    assert paired(evidence(0), other, "p_ap", (0.5, 0.5)) == "they were tested on different images"
    assert paired(evidence(0), evidence(0), "p_ap", (None, 0.5)) == "P-AP has no value or no draws"
    same = paired(evidence(0), evidence(0), "p_ap", (0.5, 0.5))
    assert not isinstance(same, str) and same.p == 1.0 and not same.significant


def test_rows_that_cannot_be_told_apart_share_a_rank() -> None:
    rows = [evidence(0.05, noise=1), evidence(0.0502, noise=2), evidence(0.0, noise=3), None]
    assert ranks(rows, [0.55, 0.5502, 0.5, 0.6], "i_auroc") == [1, 1, 3, 0]


def test_seeds_are_averaged_and_never_pooled(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    write(store, 0.8, "a", seed=0)
    write(store, 0.9, "a", seed=1)
    [family] = families(store.all())
    [row] = rows_of(family)
    found = EvidenceStore(store).of(row)
    assert found is not None
    one, two = (drawn(value, ord("a"))["bottle"]["draws"] for value in (0.8, 0.9))
    assert np.allclose(found.draws["bottle"], (np.asarray(one) + np.asarray(two)) / 2, atol=1e-6)


def drawn(value: float, noise: int) -> dict[str, dict[str, list[Any]]]:
    """Samples with draws around `value`."""
    tables = evidence(value - 0.5, noise=noise).draws
    return {
        c: {"image": list(IMAGES[c]), "score": [0.1] * len(IMAGES[c]), "label": [0] * len(IMAGES[c]), "draws": t.tolist()}
        for c, t in tables.items()
    }


def write(store: RecordStore, value: float, method: str, *, draws: bool = True, **changes: Any) -> None:
    """A done record of a made-up method, with its file of scores."""
    record = recordkit.record(value, method=method, **changes)
    samples = drawn(value, ord(method[0]))
    if not draws:
        for table in samples.values():
            del table["draws"]
    record.samples = store.write_samples(record.identity, samples)
    store.write(record)


def test_leaderboard_with_intervals(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    write(store, 0.90, "a")
    write(store, 0.8999, "b")
    write(store, 0.80, "c")
    write(store, 0.99, "d", draws=False)
    [table] = build_tables(store.all(), evidence=EvidenceStore(store))
    by_name = {row["method"]: row for row in table.data}
    assert [by_name[name]["i_auroc_rank"] for name in "abcd"] == [1, 1, 3, None]
    assert by_name["a"]["i_auroc_low"] < 0.9 < by_name["a"]["i_auroc_high"] and by_name["d"]["i_auroc_low"] is None
    cell = table.rows[[row["method"] for row in table.data].index("c")][2]
    assert cell.second.startswith("[") and cell.second.endswith("] #3")
    assert any("run without intervals" in text for _, text in table.footnotes)
    [plain] = build_tables(store.all())
    assert "i_auroc_low" not in plain.data[0]
    categories = build_tables(store.all(), by="category", metrics=["p_ap"], evidence=EvidenceStore(store))[0]
    assert {row["rank"] for row in categories.data if row["method"] == "c"} == {3}


def test_pairs_of_a_family(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    write(store, 0.90, "a")
    write(store, 0.80, "c")
    write(store, 0.99, "d", draws=False)
    [table] = pair_tables(store.all(), "i_auroc", EvidenceStore(store))
    verdicts = {(row["first"], row["second"]): row["verdict"] for row in table.data}
    assert verdicts["a", "c"] == "a is better"
    assert verdicts["d", "a"].startswith("not compared: it was run without intervals")


# --- over data sets -------------------------------------------------------------------------------------------------


def test_holm_against_its_definition() -> None:
    values = [0.01, 0.04, 0.03, 0.005]
    assert holm(values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_over_data_sets(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    good = rng.uniform(0.8, 0.95, 8)
    scores = {"good": good.tolist(), "same": (good + rng.normal(0, 0.01, 8)).tolist(), "poor": (good - 0.1).tolist()}
    pairs = {frozenset((p.first, p.second)): p for p in across(scores)}
    poor = pairs[frozenset(("good", "poor"))]
    assert poor.p == pytest.approx(stats.wilcoxon(good, good - 0.1).pvalue) and poor.adjusted == pytest.approx(3 * poor.p)
    assert poor.adjusted < 0.05 < pairs[frozenset(("good", "same"))].adjusted
    assert across({name: values[:5] for name, values in scores.items()}) == []
    assert mean_ranks({"a": [0.9, 0.5], "b": [0.8, 0.5]}) == {"a": 1.25, "b": 1.75}
    store = RecordStore(tmp_path)
    for index in range(6):
        write(store, 0.9 + index / 1000, "a", dataset=f"set{index}")
        write(store, 0.8, "c", dataset=f"set{index}")
    [group] = overall(store.all(), "i_auroc")
    table = overall_table(group, "i_auroc")
    assert len(group.datasets) == 6 and table.data[0]["verdict"] == "a is better"
    fewer = overall(store.all(dataset=["set0", "set1"]), "i_auroc")
    assert overall_table(fewer[0], "i_auroc").below == ["not enough data sets for a test: 2, at least 6"]


def test_two_versions_of_one_data_set_are_not_two(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for seed in range(6):
        write(store, 0.9, "a", dataset_params={"seed": seed})
        write(store, 0.8, "c", dataset_params={"seed": seed})
    [group] = overall(store.all(), "i_auroc")
    assert group.datasets == ["toy"]


def test_bars_join_what_cannot_be_told_apart() -> None:
    def pair(first: str, second: str, p: float) -> AcrossPair:
        return AcrossPair(first, second, 0.0, p, p)

    pairs = [pair("a", "b", 0.5), pair("a", "c", 0.01), pair("b", "c", 0.3)]
    assert cliques(["a", "b", "c"], pairs) == [("a", "b"), ("b", "c")]
    assert cliques(["a", "b"], []) == []
    picture = draw({"a<b": 1.0, "c": 2.0}, [pair("a<b", "c", 0.4)], "A & B")
    assert picture.startswith("<svg") and "a&lt;b (1.00)" in picture and "A &amp; B" in picture
    assert picture.count('stroke-width="4"') == 1


def test_from_the_command_line(tmp_path: Path) -> None:
    run = ["run", "-m", "raw_pixel", "--preset", "smoke", *TINY, "--results", str(tmp_path)]
    assert bench(*run, "--set", "raw_pixel.floor=0.02").code == 0
    assert bench(*run, "--set", "raw_pixel.floor=0.5").code == 0
    answer = bench("compare", "--results", str(tmp_path), "--json", "--picture", str(tmp_path / "ranks.svg"))
    assert answer.code == 0, answer.err
    [table] = answer.json()
    assert table["rows"][0]["low"] <= table["rows"][0]["difference"] <= table["rows"][0]["high"]
    assert (tmp_path / "ranks.svg").read_text(encoding="utf-8").startswith("<svg")
    board = bench("leaderboard", "--results", str(tmp_path), "--intervals", "--json")
    assert board.json()[0]["rows"][0]["i_auroc_low"] is not None
    assert bench("compare", "--results", str(tmp_path / "none")).code == 4
