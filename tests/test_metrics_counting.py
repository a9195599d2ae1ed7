"""Counts above scores of interest: compiled loops, tables and one sort of everything say the same integers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from inpbench.harness.metrics import counting, loops, workers
from inpbench.harness.metrics.counting import count
from inpbench.harness.metrics.curve import ROUNDING
from inpbench.harness.metrics.histogram import PixelHistogram
from inpbench.harness.metrics.keys import keys_of
from inpbench.harness.metrics.pixels import distinct

RNG = np.random.default_rng(3)
NORMAL = RNG.standard_normal(5000)
SCORES = {
    "signs": NORMAL,
    "positive": np.abs(NORMAL),
    "ties": np.round(NORMAL * 3) + 0.0,  # no -0.0
    "one score": np.full(5000, 0.5),
    "crowded": np.where(np.arange(5000) % 1000 == 7, 1e30, 1 + 1e-4 * NORMAL),  # nearly all scores in one bin
}
needs_numba = pytest.mark.skipif(not loops.COMPILED, reason="numba is not installed: pip install 'inpbench[fast]'")


def by_sorting(scores: np.ndarray, targets: np.ndarray) -> tuple[list[int], list[int]]:
    keys = np.sort(keys_of(scores))
    first, past = (np.searchsorted(keys, targets, side) for side in ("left", "right"))
    return list(keys.size - past), list(past - first)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_numba)])
@pytest.mark.parametrize("comparisons", [0, 8, 10**6])  # sort always, as it comes, compare always
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_counts_of_a_sort(
    name: str, dtype: type, threads: int, comparisons: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "COMPILED", compiled)
    monkeypatch.setattr(counting, "MOST_COMPARISONS", comparisons)
    monkeypatch.setattr(counting, "FEWEST_BINS", 64)
    monkeypatch.setattr(counting, "PIECE", 700)
    monkeypatch.setattr(workers, "THREAD_PIXELS", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    scores = SCORES[name].astype(dtype)
    low, high = scores.min(), scores.max()
    between = np.linspace(low, high, 9).astype(dtype)  # most of them the score of no pixel
    targets = np.unique(keys_of(np.concatenate((scores[::40], between, [low, high]))))
    chunks = list(torch.split(torch.from_numpy(scores), 2048))
    above, equal = count(chunks, targets, (float(low), float(high)))
    assert (list(above), list(equal)) == by_sorting(scores, targets)


@needs_numba
@pytest.mark.parametrize("same", [32767, 32768, 65535, 65536, 98304])
@pytest.mark.parametrize("wanted", [True, False])
def test_bins_that_overflow_sixteen_bits_are_counted_again(same: int, wanted: bool) -> None:
    """Many pixels of one score, in a bin with or without a score of interest."""
    scores = np.concatenate((np.full(same, 0.5), np.linspace(1, 2, 1000))).astype(np.float32)
    targets = keys_of(np.array([0.5, 1.0, 2.0] if wanted else [1.0, 2.0], np.float32))
    above, equal = count([torch.from_numpy(scores)], targets, (0.5, 2.0))
    assert (list(above), list(equal)) == by_sorting(scores, targets)


@needs_numba
@pytest.mark.parametrize("bins", [1 << 16, 1 << 20])
def test_a_histogram_is_the_same_by_loops_and_by_tables(bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """New pages appear in every piece, and the smaller histogram has to coarsen on the way."""
    scores = torch.from_numpy((NORMAL * 10.0 ** RNG.integers(-30, 30, NORMAL.size)).astype(np.float32))
    pages = []
    for compiled in (False, True):
        monkeypatch.setattr(loops, "COMPILED", compiled)
        monkeypatch.setattr("inpbench.harness.metrics.histogram.PIECE", 300)
        histogram = PixelHistogram(torch.device("cpu"), bins)
        for part in torch.split(scores, 1100):
            histogram.add(part, torch.float32)
        groups = list(histogram.walk(every=True))
        pages.append((histogram.shift, *(np.concatenate([part[at] for part in groups]).tolist() for at in range(4))))
    assert pages[0] == pages[1]
    assert sum(pages[0][3]) == scores.numel()


@needs_numba
@pytest.mark.parametrize("scores", [[0.5, -0.0, 2.0], [-0.0], [-3.0, -1e-40], [np.inf, 1.0], [1.0, np.nan], [-np.nan, 1.0]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kept_scores_and_their_extremes(scores: list[float], dtype: type) -> None:
    values = np.array(scores, dtype)
    bits = np.int32 if dtype == np.float32 else np.int64
    kept = np.empty_like(values)
    low, high = loops.keep(values.view(bits), kept.view(bits))
    np.testing.assert_array_equal(kept, values)
    assert not np.signbit(kept[kept == 0]).any()
    if not np.isnan(values).any():
        assert [low, high] == [int(keys_of(values).min()), int(keys_of(values).max())]
    else:
        assert low < keys_of(np.array([-np.inf], dtype))[0] or high > keys_of(np.array([np.inf], dtype))[0]


def test_without_numba_the_tables_count(tmp_path: Path) -> None:
    """A fresh process in which numba cannot be imported."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch\n"
        "from inpbench.harness.metrics import loops\n"
        "from inpbench.harness.metrics.pixel import PixelMetrics\n"
        "assert not loops.COMPILED\n"
        "metrics = PixelMetrics()\n"
        "metrics.update(torch.tensor([[[0.1, 0.9], [0.2, 0.8]]]), torch.tensor([[[False, True], [False, False]]]))\n"
        "print(metrics.compute().values['p_auroc'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1.0"], done.stderr


def test_shares_of_a_million_equal_scores_are_summed_in_pairs() -> None:
    """One by one the sum would be off by more than what a value may be off by without saying so."""
    number = 1 << 20
    keys, counts, shares = distinct(np.zeros(number, np.float32), np.full(number, 3, np.int32))
    assert (keys.tolist(), counts.tolist()) == ([0], [number])
    assert shares[0] == pytest.approx(number / 3, rel=ROUNDING / 100)
