"""Regions and ordered keys, against scipy and against float comparison."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from inpbench.harness.metrics import loops
from inpbench.harness.metrics.keys import keys_of, ordered_keys, values_of
from inpbench.harness.metrics.regions import MaskRuns

needs_numba = pytest.mark.skipif(not loops.COMPILED, reason="numba is not installed: pip install 'inpbench[fast]'")
by_both = pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_numba)])


def find(*batches: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Pixels, areas and number of regions of batches added one after the other; pixels count through the batches."""
    runs, pixels, start = MaskRuns(), [], 0
    for masks in batches:
        pixels.append(runs.add(masks) + start)
        start += masks.size
    regions = runs.regions()
    return np.concatenate(pixels), regions.areas, regions.number


def reference_regions(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Image by image with scipy."""
    pixels, areas, total = [], [], 0
    for number, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        sizes = np.bincount(labelled.ravel())
        inside = np.flatnonzero(mask.ravel())
        pixels.append(inside + number * mask.size)
        areas.append(sizes[labelled.ravel()[inside]])
        total += count
    return np.concatenate(pixels), np.concatenate(areas), total


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (2, 9, 1), (3, 17, 23), (4, 32, 32)])
@by_both
def test_regions_of_random_masks(
    shape: tuple[int, int, int], share: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "COMPILED", compiled)
    for seed in range(5):
        masks = np.random.default_rng(seed).random(shape) < share
        expected = reference_regions(masks)
        for found in (find(masks), find(*np.array_split(masks, len(masks)))):
            assert np.array_equal(found[0], expected[0])
            assert np.array_equal(found[1], expected[1])
            assert found[2] == expected[2]


@by_both
def test_regions_that_only_look_adjacent(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "COMPILED", compiled)
    masks = np.zeros((2, 3, 4), bool)
    masks[0, 0, 3] = masks[0, 1, 0] = True  # end of a row, start of the next
    masks[0, 2, 1] = masks[1, 0, 1] = True  # end of an image, start of the next; (1, 0) and (2, 1) touch diagonally
    _, areas, count = find(masks)
    assert count == 3
    assert areas.tolist() == [1, 2, 2, 1]


@by_both
def test_regions_of_a_part_of_larger_masks(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns that do not follow one another in memory."""
    monkeypatch.setattr(loops, "COMPILED", compiled)
    masks = (np.random.default_rng(1).random((3, 40, 64)) < 0.3)[:, ::2, 3:-4]
    for found, expected in zip(find(masks), reference_regions(np.ascontiguousarray(masks)), strict=True):
        assert np.array_equal(found, expected)


@by_both
def test_a_spiral_is_one_region(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "COMPILED", compiled)
    mask = np.zeros((1, 9, 9), bool)
    for turn in range(0, 5, 2):
        mask[0, turn, turn : 9 - turn] = mask[0, turn : 9 - turn, 8 - turn] = mask[0, 8 - turn, turn : 9 - turn] = True
        mask[0, turn + 2 : 9 - turn, turn] = True
        mask[0, turn + 2, turn : turn + 2] = True
    _, areas, count = find(mask)
    assert count == ndimage.label(mask[0], structure=np.ones((3, 3)))[1] == 1
    assert set(areas.tolist()) == {int(mask.sum())}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_keys_have_the_order_of_the_scores(dtype: type) -> None:
    rng = np.random.default_rng(0)
    limits = np.finfo(dtype)
    some = [
        0.0,
        limits.max,
        -limits.max,
        limits.tiny,
        -limits.tiny,
        limits.smallest_subnormal,
        -limits.smallest_subnormal,
        1.0,
        -1.0,
    ]
    values = np.concatenate([np.array(some, dtype), (rng.standard_normal(200) * 10.0 ** rng.integers(-30, 30, 200)).astype(dtype)])
    keys = ordered_keys(torch.from_numpy(values))
    assert keys.dtype == (torch.int32 if dtype is np.float32 else torch.int64)
    assert np.array_equal(keys.numpy(), keys_of(values))
    assert np.array_equal(np.less.outer(values, values), np.less.outer(keys.numpy(), keys.numpy()))
    assert np.array_equal(values_of(keys_of(values), dtype), values)
    assert keys_of(np.array([-0.0], dtype)) == keys_of(np.array([0.0], dtype)) == 0
