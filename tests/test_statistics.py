"""Intervals, paired differences, ranks with ties and tests over data sets, against simulations and slow definitions."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordkit
import torch
from commands import TINY, bench
from scipy import special, stats

from inpbench.harness.compare import overall, overall_table, pair_tables
from inpbench.harness.draws import Drawing, seed_of
from inpbench.harness.errors import MetricError
from inpbench.harness.families import families, rows_of
from inpbench.harness.leaderboard import build_tables
from inpbench.harness.metrics import IMAGE_METRICS, METRICS, PIXEL_METRICS
from inpbench.harness.metrics.bootstrap import draw_metrics, pixel_counts
from inpbench.harness.metrics.intervals import (
    LEAST_FREEDOM,
    Estimate,
    Resampled,
    difference_interval,
    estimate,
    interval,
    p_of_zero,
)
from inpbench.harness.rank_picture import cliques, draw
from inpbench.harness.records import RecordStore
from inpbench.harness.statistics import AcrossPair, Evidence, EvidenceStore, across, holm, least_datasets, mean_ranks, paired, ranks

ROOT = Path(__file__).parents[1]
IMAGES = {"bottle": tuple("abcdefgh"), "câble": tuple("ijklmnop")}


def evidence(shift: float, *, noise: int = 0, images: Mapping[str, tuple[str, ...]] = IMAGES) -> Evidence:
    """Draws around 0.5 + shift: the same images move every method alike, `noise` seeds what is its own."""
    common = np.random.default_rng(0).normal(0.5, 0.05, (len(METRICS), 1000))
    own = np.random.default_rng(noise).normal(0, 0.002, common.shape)
    draws = common + shift + own
    labels = {name: np.arange(len(images[name])) % 2 for name in images}
    return Evidence(
        dict.fromkeys(images, draws - draws.mean(1, keepdims=True) + 0.5 + shift), images, labels, dict.fromkeys(images)
    )


# --- intervals ------------------------------------------------------------------------------------------------------


def sample(rng: np.random.Generator, normal: int, anomalous: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels, normal images first."""
    labels = np.repeat((0, 1), (normal, anomalous))
    return rng.normal(size=labels.size) + gap * labels, labels


def of_scores(scores: np.ndarray, labels: np.ndarray, metric: str, seed: int = 0) -> Estimate:
    drawn = draw_metrics(scores, labels, seed=seed)
    return estimate(metric, drawn.measured[metric], [Resampled(drawn.values[metric], drawn.changes[metric], labels)])


def test_the_standard_error_of_auroc_is_delongs() -> None:
    scores, labels = sample(np.random.default_rng(3), 17, 30, 1.0)
    negative, positive = scores[labels == 0], scores[labels == 1]
    wins = positive[:, None] > negative[None, :]
    delong = wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 17
    drawn = draw_metrics(scores, labels, seed=0)
    still = Resampled(np.full(10, wins.mean()), drawn.changes["i_auroc"], labels)  # draws that do not scatter: the jackknife alone
    found = estimate("i_auroc", float(wins.mean()), [still])
    assert found.error**2 == pytest.approx(delong, rel=1e-9)
    # The delta method and DeLong's error on the logit scale, with t instead of z.
    value, reach = found.value, stats.t.ppf(0.975, found.freedom) * found.error / (found.value * (1 - found.value))
    assert interval(found) == pytest.approx(special.expit(special.logit(value) + np.array([-reach, reach])), rel=1e-9)


def test_degrees_of_freedom_fall_with_the_images_that_carry_the_error() -> None:
    labels, rng = np.arange(400) % 2, np.random.default_rng(0)
    still = np.full(10, 0.9)
    many = estimate("p_ap", 0.9, [Resampled(still, rng.normal(size=400), labels)])
    assert 250 < many.freedom < 600
    few = estimate("p_ap", 0.9, [Resampled(still, np.where(np.arange(400) < 1, 0.01, 0.0), labels)])
    assert few.freedom == LEAST_FREEDOM and few.few and not many.few
    noisy = Resampled(0.9 + 0.05 * rng.normal(size=4000), np.zeros(400), labels)
    assert estimate("p_ap", 0.9, [noisy]).error == pytest.approx(0.05, rel=0.05), "the larger of the two errors"


def test_the_mean_over_categories_adds_variances() -> None:
    rng = np.random.default_rng(1)
    tables = [sample(rng, 20, 30, gap) for gap in (0.5, 1.0, 1.5)]
    parts, values = [], []
    for seed, (scores, labels) in enumerate(tables):
        drawn = draw_metrics(scores, labels, seed=seed)
        parts.append(Resampled(drawn.values["i_ap"], drawn.changes["i_ap"], labels))
        values.append(drawn.measured["i_ap"])
    single = [estimate("i_ap", value, [part]) for value, part in zip(values, parts, strict=True)]
    mean = estimate("i_ap", float(np.mean(values)), parts)
    scatter = sum(one.error**2 - one.bias**2 for one in single) / 9
    assert mean.error == pytest.approx(math.sqrt(scatter + mean.bias**2 / 3))
    assert mean.bias == pytest.approx(float(np.mean([one.bias for one in single])))
    assert mean.freedom > min(one.freedom for one in single)


def test_the_centre_is_the_value_without_its_bias() -> None:
    draws, images = np.random.default_rng(0).normal(0.52, 0.01, 2000), (np.zeros(60), np.arange(60) % 2)
    found = estimate("p_ap", 0.5, [Resampled(draws, *images)])
    assert found.bias == pytest.approx(0.02, abs=1e-3)
    assert found.error == pytest.approx(math.hypot(0.01, 0.02), rel=0.05), "a correction is uncertain by its own size"
    low, high = interval(found)
    assert (low + high) / 2 == pytest.approx(0.48, abs=2e-3)
    # The bias of a maximum falls with the root of the number of images: b (1 / sqrt(n / 2) - 1 / sqrt(n)) is in the draws.
    assert estimate("p_f1max", 0.5, [Resampled(draws, *images)]).bias == pytest.approx(found.bias / (math.sqrt(2) - 1))
    two = estimate("p_ap", 0.5, [Resampled(draws, *images)] * 2)
    assert two.error == pytest.approx(found.error / math.sqrt(2)) and two.bias == pytest.approx(found.bias)


def test_a_flawless_category_has_a_one_sided_interval() -> None:
    labels = np.repeat((0, 1), (20, 30))
    flawless = of_scores(labels + 0.0, labels, "i_auroc")
    low, high = interval(flawless)
    assert high == 1.0 and low == pytest.approx(1 - (1 - 0.025 ** (1 / 20)) / 2)
    assert interval(of_scores(labels + 0.0, labels, "i_ap")).low == pytest.approx(0.025 ** (1 / 20))
    assert interval(of_scores(np.repeat(labels, 9) + 0.0, np.repeat(labels, 9), "i_auroc")).low > 0.98
    constant = interval(of_scores(labels * 0.0, labels, "i_auroc"))
    assert constant.low == 0.5 < constant.high


def test_f1max_is_never_below_calling_every_image_anomalous() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        scores, labels = sample(rng, 20, 40, 0.1)
        assert interval(of_scores(scores, labels, "i_f1max")).low >= 2 * 40 / (60 + 40) - 1e-12


def test_p_is_the_level_at_which_the_interval_reaches_zero() -> None:
    rng = np.random.default_rng(3)
    draws, labels = rng.normal(0.1, 0.06, 4000), np.arange(50) % 2
    found = estimate("p_ap", 0.1, [Resampled(draws, rng.normal(0, 1e-3, 50), labels)])
    p = p_of_zero(found)
    assert 0.02 < p < 0.4 and difference_interval(found, 1 - p).low == pytest.approx(0, abs=1e-9)
    assert p_of_zero(estimate("p_ap", -0.1, [Resampled(-draws, None, labels)])) == pytest.approx(p, rel=0.5)
    same = estimate("p_ap", 0.0, [Resampled(0 * draws, 0.0 * labels, labels)])
    assert p_of_zero(same) == 1.0 and difference_interval(same).low < 0 < difference_interval(same).high
    clear = estimate("p_ap", 0.4, [Resampled(0 * draws + 0.4, 0.0 * labels, labels)])  # nothing scatters
    p = p_of_zero(clear)
    assert p < 1e-4 and difference_interval(clear, 1 - p).low == pytest.approx(0, abs=1e-9)


def test_a_level_outside_0_and_1_is_refused() -> None:
    found = of_scores(*sample(np.random.default_rng(0), 9, 9, 1.0), "i_ap")
    with pytest.raises(MetricError, match="level"):
        interval(found, 1.0)
    with pytest.raises(MetricError, match="level"):
        difference_interval(found, 0.0)


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
    expected = draw_metrics(scores, labels, pixel_counts(maps[has], masks[has]), has, seed=3)
    moved = expected.measured | {"p_ap": expected.measured["p_ap"] - 0.01, "aupro": None}  # of a variant, say
    drawn = drawing.finish(scores, labels, moved)
    drawing.close()
    assert drawn is not None
    for row, metric in enumerate(METRICS):
        if metric == "aupro":
            assert np.isnan(drawn["draws"][row]).all() and np.isnan(drawn["jackknife"][row]).all()
            continue
        shift = -0.01 if metric == "p_ap" else 0.0
        assert np.allclose(drawn["draws"][row], np.clip(expected.values[metric] + shift, 0, 1), atol=1e-6)
        assert np.allclose(drawn["jackknife"][row], expected.changes[metric], atol=1e-7, equal_nan=True)
    assert np.isnan(drawn["jackknife"][3][6]) and not np.isnan(drawn["jackknife"][0][6]), "an image without pixel ground truth"


def test_a_category_without_labels_or_room_has_no_draws(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    drawing = Drawing(tmp_path, seed=0)
    drawing.add(torch.rand(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool), torch.tensor([False, False]))
    assert drawing.finish(np.array([0.1, 0.2]), np.array([0, -1]), {}) is None
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


def test_what_one_image_does_to_both_methods_is_no_doubt_about_their_difference() -> None:
    """Draws and jackknife alike: of two methods that every image moves together only what each has of its own counts."""
    rng = np.random.default_rng(3)
    labels = {"nut": np.repeat((0, 1), (20, 20))}
    draws, left_out = rng.normal(0.8, 0.05, (len(METRICS), 1000)), rng.normal(0, 1e-2, (len(METRICS), 40))

    def method(shift: float) -> Evidence:
        own = [part + rng.normal(0, 1e-4, part.shape) for part in (draws + shift, left_out)]
        return Evidence({"nut": own[0]}, {"nut": tuple(map(str, range(40)))}, labels, {"nut": own[1]})

    first, second = method(0.01), method(0.0)
    alone, found = first.interval("i_auroc", 0.81), paired(first, second, "i_auroc", (0.81, 0.80))
    assert alone is not None and alone.high - alone.low > 0.1
    assert not isinstance(found, str) and found.interval.high - found.interval.low < 0.01 and found.better == 1


def test_what_is_not_compared_says_why() -> None:
    other = evidence(0.0, images=IMAGES | {"bottle": tuple("abcdefgx")})
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
        c: {"image": list(IMAGES[c]), "score": [0.1] * len(IMAGES[c]), "label": [0, 1] * (len(IMAGES[c]) // 2), "draws": t.tolist()}
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
    assert cell.second.startswith("~[") and cell.second.endswith("] #3")
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
    # Three pairs: the smallest p of six data sets, 0.031, is 0.094 after the adjustment.
    assert across({name: values[:6] for name, values in scores.items()}) == []
    assert [least_datasets(methods) for methods in (2, 3, 8)] == [6, 7, 11]
    for methods in range(2, 12):
        pairs_of, n = methods * (methods - 1) // 2, least_datasets(methods)
        assert pairs_of * 2 / 2**n < 0.05 <= pairs_of * 2 / 2 ** (n - 1)
    assert mean_ranks({"a": [0.9, 0.5], "b": [0.8, 0.5]}) == {"a": 1.25, "b": 1.75}
    store = RecordStore(tmp_path)
    for index in range(6):
        write(store, 0.9 + index / 1000, "a", dataset=f"set{index}")
        write(store, 0.8, "c", dataset=f"set{index}")
    [group] = overall(store.all(), "i_auroc")
    table = overall_table(group, "i_auroc")
    assert len(group.datasets) == 6 and table.data[0]["verdict"] == "a is better"
    fewer = overall(store.all(dataset=["set0", "set1"]), "i_auroc")
    assert overall_table(fewer[0], "i_auroc").below == ["not enough data sets for a test of 1 pair: 2, at least 6"]


def test_two_versions_of_one_data_set_are_not_two(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for seed in range(6):
        write(store, 0.9, "a", dataset_params={"seed": seed})
        write(store, 0.8, "c", dataset_params={"seed": seed})
    [group] = overall(store.all(), "i_auroc")
    assert group.datasets == ["toy"] and group.described == ["toy, 2 categories (one of 6 tables of it)"]


def test_a_trial_on_few_categories_never_stands_for_the_data_set(tmp_path: Path) -> None:
    """Whatever the order in which the tables come."""
    for position, (whole, trial) in enumerate(((("x", "y"), ("x",)), (("x", "y"), ("y",)))):
        store = RecordStore(tmp_path / str(position))
        for name, value in (("a", 0.9), ("c", 0.8)):
            write(store, value, name, categories=list(whole), manifest="sha256:b")
            write(store, value - 0.3, name, categories=list(trial), manifest=f"sha256:{'ac'[position]}")
        [group] = overall(store.all(), "i_auroc")
        assert group.scores == {"a": [pytest.approx(0.9)], "c": [pytest.approx(0.8)]}
        assert group.described == ["toy, 2 categories (one of 2 tables of it)"]


def test_methods_that_were_not_run_alike_everywhere_are_left_out_by_name(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for index in range(6):
        for name, value in (("a", 0.9), ("b", 0.85), ("c", 0.8)):
            write(store, value, name, dataset=f"set{index}", method_version=1 + (name == "b" and index == 5))
        if index:
            write(store, 0.99, "d", dataset=f"set{index}")
    [group] = overall(store.all(), "i_auroc")
    assert set(group.scores) == {"a", "c"} and set(group.left_out) == {"b", "d"}
    assert any("Left out, not run alike on all of them: " in line for line in overall_table(group, "i_auroc").caption)


def test_compare_says_that_nothing_is_common(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for name in "abcd":
        write(store, 0.9, name, dataset="one" if name in "ab" else "two")
    outcome = bench("compare", "--results", tmp_path, "--picture", tmp_path / "ranks.svg")
    assert outcome.code == 4 and "no two methods were run alike" in outcome.err and "I-AUROC in pairs" in outcome.out
    assert bench("compare", "--results", tmp_path).code == 0
    refused = bench("compare", "--results", tmp_path, "--json", "--format", "csv")
    assert refused.code == 2 and "--json and --format csv" in refused.err


def test_bars_join_what_cannot_be_told_apart() -> None:
    def pair(first: str, second: str, p: float) -> AcrossPair:
        return AcrossPair(first, second, 0.0, p, p)

    pairs = [pair("a", "b", 0.5), pair("a", "c", 0.01), pair("b", "c", 0.3)]
    assert cliques(["a", "b", "c"], pairs) == [("a", "b"), ("b", "c")]
    assert cliques(["a", "b"], []) == []
    picture = draw({"a<b": 1.0, "c": 2.0}, [pair("a<b", "c", 0.4)], "A & B")
    assert picture.startswith("<svg") and "<title>a&lt;b</title>a&lt;b (1.00)" in picture and "A &amp; B" in picture
    assert picture.count('stroke-width="4"') == 1
    long = "anomalib.a_method_with_quite_a_long_name"
    assert "anomalib.a_m…ng_name (1.00)" in draw({long: 1.0, "c": 2.0}, [], "")


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


# --- simulation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulation() -> Any:
    spec = importlib.util.spec_from_file_location("coverage_simulation", ROOT / "benchmarks" / "interval_coverage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coverage_simulation"] = module
    spec.loader.exec_module(module)
    return module


def chance(sets: int) -> float:
    """Two Monte-Carlo standard errors of a coverage of 95 %."""
    return 2 * math.sqrt(0.95 * 0.05 / sets)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quality", "images", "sets"), [("even", 0.8, 60, 300), ("pixels", 3.0, 20, 120)])
def test_intervals_hold_the_truth_as_often_as_they_say(simulation: Any, kind: str, quality: float, images: int, sets: int) -> None:
    """93 to 97 % within Monte-Carlo error; more for the F1max of a single category, whose bias counts as doubt."""
    found = simulation.coverage(simulation.Case(kind, quality, images, images * 3 // 2), sets, draws=200)
    assert set(found) == set(PIXEL_METRICS if kind == "pixels" else IMAGE_METRICS)
    for metric, count in found.items():
        held = 1 - (count.above + count.below) / sets
        assert 0.93 - chance(sets) <= held <= (1.0 if metric.endswith("f1max") else 0.97 + chance(sets)), (metric, held)


@pytest.mark.slow
def test_intervals_of_means_over_categories_hold_the_truth(simulation: Any) -> None:
    """Also that of F1max: its optimism does not average out, and is taken away."""
    sets = 150
    for metric, count in simulation.coverage_of_mean(30, 60, sets, draws=200).items():
        held = 1 - (count.above + count.below) / sets
        assert 0.93 - chance(sets) <= held <= 0.97 + chance(sets), (metric, held)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quality", "images", "sets"), [("mixed", 0.95, 60, 200), ("pixels", 3.0, 20, 80)])
def test_equal_methods_differ_in_five_per_cent_and_better_ones_more(
    simulation: Any, kind: str, quality: float, images: int, sets: int
) -> None:
    case = simulation.Case(kind, quality, images, images * 3 // 2)
    for metric, share in simulation.told_apart(case, case, sets, draws=200).items():
        assert share <= 0.07 + chance(sets), (metric, share)
    if kind == "mixed":
        better = simulation.told_apart(
            case._replace(kind="even", quality=0.85), case._replace(kind="even", quality=0.95), 60, draws=200
        )
        assert better["i_auroc"] > 0.7 and min(better.values()) > 0.3
