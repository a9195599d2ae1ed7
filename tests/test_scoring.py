"""Scoring: the chain against its own definition written out, the mask rules, image scores."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inpbench.harness.errors import MetricError
from inpbench.harness.scoring import Scoring, enlarge, gaussian_kernel, ground_truth, image_scores, smooth_maps


def reference_smooth(amap: torch.Tensor, crop: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """One map at a time, the Gaussian by shifted sums."""
    out = []
    for one in amap:
        big = F.interpolate(one[None, None], size=crop, mode="bilinear", align_corners=True)
        big = F.interpolate(big, size=size, mode="bilinear", align_corners=False)[0, 0]
        weights = {(y, x): float(np.exp(-(y * y + x * x) / 32.0)) for y in range(-2, 3) for x in range(-2, 3)}
        padded = F.pad(big, (2, 2, 2, 2))
        blurred = sum(w * padded[2 + y : 2 + y + size[0], 2 + x : 2 + x + size[1]] for (y, x), w in weights.items())
        out.append(blurred / sum(weights.values()))
    return torch.stack(out)


@pytest.mark.parametrize(("shape", "crop", "size"), [((2, 7, 7), (56, 56), (48, 48)), ((3, 5, 9), (70, 126), (40, 64))])
def test_smooth_maps_is_the_chain(shape: tuple[int, int, int], crop: tuple[int, int], size: tuple[int, int]) -> None:
    amap = torch.rand(shape, dtype=torch.float64)
    found = smooth_maps(amap, crop, Scoring(metric_size=size))
    assert found.shape == (shape[0], *size)
    torch.testing.assert_close(found, reference_smooth(amap, crop, size), rtol=1e-6, atol=1e-7)


def test_zero_padding_darkens_the_border() -> None:
    ones = smooth_maps(torch.ones(1, 28, 28), (392, 392))[0]
    assert ones.shape == (256, 256)
    assert ones[100, 100] == pytest.approx(1, abs=1e-6)
    assert ones[0, 100] == pytest.approx(0.606, abs=1e-3)
    assert ones[1, 100] == pytest.approx(0.812, abs=1e-3)
    assert ones[0, 0] == pytest.approx(0.367, abs=1e-3)


def test_enlarge_keeps_the_corners() -> None:
    amap = torch.rand(2, 6, 8)
    big = enlarge(amap, (60, 40))
    assert big.shape == (2, 60, 40)
    for y in (0, -1):
        for x in (0, -1):
            assert torch.equal(big[:, y, x], amap[:, y, x])


def test_kernel_is_normalised_float32() -> None:
    kernel = gaussian_kernel()
    assert kernel.dtype == torch.float32 and kernel.shape == (5, 5)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    amap = torch.rand(2, 7, 7).to(dtype)
    assert torch.equal(smooth_maps(amap, (56, 56)), smooth_maps(amap.float(), (56, 56)))


def test_maps_of_one_image_do_not_depend_on_the_batch() -> None:
    amap = torch.rand(5, 9, 9)
    together = smooth_maps(amap, (63, 63))
    for i in range(5):
        assert torch.equal(smooth_maps(amap[i : i + 1], (63, 63))[0], together[i])


@pytest.mark.parametrize("ratio", [0.01, 0.001, 1.0])
def test_image_score_is_the_mean_of_the_top(ratio: float) -> None:
    maps = torch.randn(4, 100, 60, dtype=torch.float64)
    top = int(6000 * ratio)
    expected = [np.sort(one.numpy().ravel())[::-1][:top].mean() for one in maps]
    np.testing.assert_allclose(image_scores(maps, Scoring(top_ratio=ratio)).numpy(), expected, rtol=1e-12)


def test_image_score_of_ratio_0_is_the_maximum() -> None:
    maps = torch.randn(4, 30, 20)
    assert torch.equal(image_scores(maps, Scoring(top_ratio=0)), maps.flatten(1).max(1).values)
    assert torch.equal(image_scores(maps[:, :5, :5]), maps[:, :5, :5].flatten(1).max(1).values)  # 1 % of 25 pixels is none


def reference_mask(mask: np.ndarray, size: tuple[int, int], rule: str) -> np.ndarray:
    """(C, H, W) by indices, nearest rules only."""
    _, height, width = mask.shape
    out = np.zeros(size, bool)
    for i in range(size[0]):
        for j in range(size[1]):
            values = mask[:, i * height // size[0], j * width // size[1]]
            out[i, j] = (values > 0.5).any() if rule == "gt05" else (values != 0).any()
    return out


@pytest.mark.parametrize("rule", ["gt05", "gt0"])
@pytest.mark.parametrize("channels", [1, 3])
def test_nearest_mask_rules(rule: str, channels: int) -> None:
    mask = np.round(np.random.default_rng(0).random((2, channels, 49, 35)).clip(0.3) - 0.3, 2)
    found = ground_truth(torch.from_numpy(mask), Scoring(metric_size=(32, 20), mask_rule=rule))
    assert found.dtype == torch.bool
    for one, bits in zip(mask, found.numpy(), strict=True):
        assert np.array_equal(bits, reference_mask(one, (32, 20), rule))
    assert ground_truth(torch.from_numpy(mask).mean(1), Scoring(metric_size=(32, 20))).shape == (2, 32, 20)


def test_half_is_normal_and_channels_are_joined_after_the_rule() -> None:
    mask = torch.zeros(1, 2, 4, 4)
    mask[0, 0, 0, 0], mask[0, 0, 1, 1], mask[0, 1, 2, 2] = 0.5, 0.51, 1.0
    scoring = Scoring(metric_size=(4, 4))
    assert torch.nonzero(ground_truth(mask, scoring)[0]).tolist() == [[1, 1], [2, 2]]
    assert torch.nonzero(ground_truth(mask, dataclasses.replace(scoring, mask_rule="gt0"))[0]).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_crr_rule_binarises_twice() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 2:6] = 0.6
    small = ground_truth(mask, Scoring(metric_size=(4, 4), mask_rule="crr"))[0]
    assert torch.nonzero(small).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    mask[..., 2:6, 2:6] = 0.49
    assert not ground_truth(mask, Scoring(metric_size=(4, 4), mask_rule="crr")).any()


def test_constants_go_into_a_record() -> None:
    data = json.loads(json.dumps(dataclasses.asdict(Scoring())))
    assert data["version"] == 1 and data["metric_size"] == [256, 256] and data["mask_rule"] == "gt05"
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scoring().sigma = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "changes", [{"kernel": 4}, {"sigma": 0.0}, {"top_ratio": 1.5}, {"metric_size": (0, 4)}, {"mask_rule": "other"}]
)
def test_impossible_constants_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(MetricError):
        dataclasses.replace(Scoring(), **changes).check()  # type: ignore[arg-type]


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(MetricError, match=r"\(B, h, w\)"):
        smooth_maps(torch.rand(2, 1, 7, 7), (56, 56))
    with pytest.raises(MetricError, match="floating point"):
        smooth_maps(torch.zeros(2, 7, 7, dtype=torch.uint8), (56, 56))
    with pytest.raises(MetricError, match="Masks have shape"):
        ground_truth(torch.zeros(7, 7))
