"""The device's way to the pixel metrics against the host's walk, on the CPU; `tests/test_gpu.py` runs it on CUDA."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics import PIXEL_METRICS, MetricValues
from inpbench.harness.metrics.category import CategoryMetrics
from inpbench.harness.metrics.device import ROW, DevicePixelMetrics, cumulated
from inpbench.harness.metrics.pixel import PixelMetrics

GENERATOR = torch.Generator().manual_seed(3)
NOISE = torch.randn(13, 40, 50, generator=GENERATOR, dtype=torch.float64)
MASKS = torch.zeros(13, 40, 50, dtype=torch.bool)
MASKS[1::2, 5:17, 8:30] = True
MASKS[::3, 30:33, 2:4] = True
MASKS[5, 20, 49] = MASKS[5, 21, 48] = True
SCORES = {
    "overlapping": NOISE + 1.5 * MASKS,
    "perfect": MASKS + 0.01 * NOISE.abs(),
    "reversed": -NOISE - 3.0 * MASKS,
    "tied": (NOISE + MASKS).round(),
    "constant": torch.full_like(NOISE, 0.25),
    "zeros_of_both_signs": torch.where(NOISE > 0, 0.0, -0.0),
    "tiny": NOISE * 1e-40,
}


def measure(kind: type[PixelMetrics], maps: Tensor, masks: Tensor = MASKS, batch: int = 4, **options: Any) -> MetricValues:
    metrics = kind(**options)
    for start in range(0, len(maps), batch):
        metrics.update(maps[start : start + batch], masks[start : start + batch])
    return metrics.compute()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", list(SCORES))
def test_the_values_are_those_of_the_walk(name: str, dtype: torch.dtype) -> None:
    maps = SCORES[name].to(dtype)
    found, expected = measure(DevicePixelMetrics, maps), measure(PixelMetrics, maps)
    assert found.bounds == expected.bounds and found.values.keys() == set(PIXEL_METRICS)
    for metric in PIXEL_METRICS:
        assert found.values[metric] == pytest.approx(expected.values[metric], abs=1e-12), metric


def test_what_the_host_keeps_is_computed_there() -> None:
    """Variants, the histogram, categories without a curve."""
    maps = SCORES["overlapping"].float()
    for options in ({"variant": "paper"}, {"exact_pixels": 0}):
        assert measure(DevicePixelMetrics, maps, **options) == measure(PixelMetrics, maps, **options)
    assert measure(DevicePixelMetrics, maps, MASKS & False) == measure(PixelMetrics, maps, MASKS & False)
    assert type(CategoryMetrics(device="cpu")._pixel) is PixelMetrics


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_image_with_a_bad_score_is_named(bad: float) -> None:
    maps = SCORES["overlapping"].clone()
    maps[7, 3, 3] = bad
    with pytest.raises(MetricError, match="image 7"):
        measure(DevicePixelMetrics, maps)


def test_the_order_of_images_changes_no_bit() -> None:
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(NOISE)))
    for name in ("overlapping", "tied"):
        for maps in (SCORES[name], SCORES[name].float()):
            found = measure(DevicePixelMetrics, maps[order], MASKS[order], batch=5)
            assert found == measure(DevicePixelMetrics, maps, MASKS)


@pytest.mark.parametrize("count", [1, ROW, ROW + 1, ROW * ROW, ROW * ROW + 3])
def test_cumulative_sums_by_rows(count: int) -> None:
    values = torch.rand(count, dtype=torch.float64, generator=GENERATOR)
    torch.testing.assert_close(cumulated(values), values.cumsum(0), rtol=1e-12, atol=0.0)
