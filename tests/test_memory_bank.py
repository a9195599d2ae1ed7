"""The shared pieces of memory banks against slow references that follow the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.random_projection import SparseRandomProjection

from inpbench.methods import memory_bank
from inpbench.methods.memory_bank import (
    as_vectors,
    greedy_coreset,
    nearest,
    neighbourhood_mean,
    patch_map,
    project,
    sparse_projection,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).to(dtype)


def reference_mean(one: np.ndarray, side: int) -> np.ndarray:
    """(h, w) averaged over its neighbourhood, zeros outside."""
    height, width = one.shape
    reach, out = side // 2, np.zeros_like(one)
    for i in range(height):
        for j in range(width):
            rows, columns = range(i - reach, i + reach + 1), range(j - reach, j + reach + 1)
            inside = [one[r, c] for r in rows for c in columns if 0 <= r < height and 0 <= c < width]
            out[i, j] = sum(inside) / side**2
    return out


def reference_coreset(points: np.ndarray, count: int, start: int) -> tuple[list[int], float]:
    """Greedy k-center from the full table of distances, with all chosen points in every step."""
    table = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2))
    chosen = [start]
    while len(chosen) < count:
        left = table[:, chosen].min(1)
        left[chosen] = -1.0
        chosen.append(int(left.argmax()))
    return chosen, float(table[:, chosen].min(1).max())


def reference_nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    table = np.sqrt(((queries[:, None] - bank[None]) ** 2).sum(2))
    order = table.argsort(1, kind="stable")[:, :k]
    return np.take_along_axis(table, order, 1), order


@pytest.mark.parametrize("side", [1, 3, 5])
def test_neighbourhood_mean_counts_the_border(side: int) -> None:
    maps = normal(2, 3, 5, 6)
    found = neighbourhood_mean(maps, side)
    for b in range(2):
        for d in range(3):
            np.testing.assert_allclose(found[b, d].numpy(), reference_mean(maps[b, d].numpy(), side), atol=1e-14)


def test_patch_map_repeats_or_interpolates_and_keeps_the_order() -> None:
    fine, coarse = normal(2, 3, 8, 8), normal(2, 5, 4, 4, seed=1)
    repeated = patch_map([fine, coarse], enlarge="nearest")
    assert repeated.shape == (2, 8, 8, 8)
    pooled = neighbourhood_mean(coarse)
    assert torch.equal(repeated[:, 3:], pooled.repeat_interleave(2, 2).repeat_interleave(2, 3))
    smooth = patch_map([fine, coarse])
    assert torch.equal(smooth[:, :3], repeated[:, :3])
    # Half-pixel centres: output row 1 lies a quarter of a cell below the middle of input row 0.
    at = 0.75 * pooled[:, :, 0] + 0.25 * pooled[:, :, 1]
    torch.testing.assert_close(smooth[:, 3:, 1, 0], at[:, :, 0] * 1.0)
    assert patch_map([fine, coarse], grid=(6, 4)).shape == (2, 8, 6, 4)


def test_vectors_are_row_by_row() -> None:
    maps = normal(2, 3, 4, 5)
    vectors = as_vectors(maps)
    assert vectors.shape == (40, 3) and vectors.is_contiguous()
    assert torch.equal(vectors[1 * 20 + 2 * 5 + 3], maps[1, :, 2, 3])


@pytest.mark.parametrize(("total", "dim", "count", "start"), [(60, 5, 12, 0), (33, 3, 33, 7), (10, 4, 1, 9)])
def test_coreset_is_the_greedy_order(total: int, dim: int, count: int, start: int) -> None:
    points = normal(total, dim, seed=total)
    found = greedy_coreset(points, count, start=start)
    chosen, radius = reference_coreset(points.numpy(), count, start)
    assert found.rows.tolist() == chosen
    assert found.radius == pytest.approx(radius, abs=1e-12)


def test_coreset_of_duplicates_chooses_none_twice() -> None:
    points = torch.ones(6, 3).index_put((torch.tensor([4]),), torch.tensor(2.0))
    found = greedy_coreset(points, 5)
    assert found.rows.tolist()[:2] == [0, 4]
    assert len(set(found.rows.tolist())) == 5


def test_coreset_says_how_far_it_is() -> None:
    seen: list[tuple[int, int]] = []
    greedy_coreset(normal(1100, 2), 1030, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(512, 1030), (1024, 1030), (1030, 1030)]


def test_projection_is_that_of_scikit_learn() -> None:
    points = normal(20, 12)
    np.random.seed(3)
    expected = SparseRandomProjection(n_components=7, eps=0.9).fit(points.numpy())
    found = sparse_projection(12, 7, seed=3)
    np.testing.assert_array_equal(found.numpy(), expected.components_.toarray())
    np.testing.assert_allclose(project(points, found, torch.device("cpu"), rows=6).numpy(), expected.transform(points.numpy()))


@pytest.mark.parametrize("block", [1 << 10, 1 << 23])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_nearest_is_exact_in_blocks(block: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory_bank.BLOCK, "cpu", block)
    queries, bank = normal(23, 6), normal(40, 6, seed=1)
    bank[30] = bank[2]  # a tie: the lower row comes first
    found = nearest(queries, bank, k)
    distance, index = reference_nearest(queries.numpy(), bank.numpy(), k)
    assert found.rows.tolist() == index.tolist()
    np.testing.assert_allclose(found.distances.numpy(), distance, rtol=1e-13)


def test_nearest_survives_cancellation() -> None:
    """Vectors far from the origin: the matrix product alone would not tell the neighbours apart in float32."""
    bank = 100.0 + normal(50, 16, dtype=torch.float32)
    queries = bank[:10] + 1e-3
    found = nearest(queries, bank, 1)
    assert found.rows[:, 0].tolist() == list(range(10))
    distance, _ = reference_nearest(queries.double().numpy(), bank.double().numpy(), 1)
    np.testing.assert_allclose(found.distances.numpy(), distance, rtol=1e-5)


def test_nearest_of_no_query() -> None:
    found = nearest(torch.empty(0, 4), normal(5, 4, dtype=torch.float32), 3)
    assert found.distances.shape == found.rows.shape == (0, 3)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="torch.export of older torch wants a closed module"
)
def test_nearest_can_be_exported_for_any_number_of_queries() -> None:
    bank = normal(40, 6, dtype=torch.float32)

    class Search(torch.nn.Module):
        def forward(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = nearest(queries, bank, 3)
            return found.distances, found.rows

    free = {"queries": {0: torch.export.Dim("count", min=2, max=1000)}}
    graph = torch.export.export(Search(), (normal(7, 6, seed=1, dtype=torch.float32),), dynamic_shapes=free).module()
    queries = normal(23, 6, seed=2, dtype=torch.float32)
    distances, rows = graph(queries)
    expected = nearest(queries, bank, 3)
    torch.testing.assert_close(distances, expected.distances)
    assert torch.equal(rows, expected.rows)
