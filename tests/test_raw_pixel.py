"""The raw-pixel baseline against plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from inpbench.harness.errors import BenchError, UsageError, WeightsError
from inpbench.harness.params import build
from inpbench.methods.raw_pixel import INFO, RawPixelParams
from inpbench.methods.raw_pixel.model import RawPixel


class _Train:
    """A training set in memory that never hands out more than a batch."""

    def __init__(self, images: Tensor, most: int) -> None:
        self.images, self.most = images, most

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Tensor:
        assert len(indices) <= self.most
        return self.images[list(indices)]


def _context() -> SimpleNamespace:
    return SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, progress=lambda *args, **numbers: None)


def _method(**changes: object) -> RawPixel:
    return RawPixel(RawPixelParams(input_size=(20, 14), crop_size=(20, 14), batch_size=4, **changes), _context())  # type: ignore[arg-type]


def _images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 20, 14, generator=generator) * 0.3 + 100.0  # far from 0: a naive variance would lose digits
    images[:, 1, 3, 4] = 7.0  # a pixel that never varies
    return images


def _reference(train: Tensor, images: Tensor, floor: float) -> np.ndarray:
    data = train.numpy().astype(np.float64)
    mean, deviation = data.mean(axis=0), data.std(axis=0)
    out = np.zeros((len(images), 20, 14))
    for index, image in enumerate(images.numpy().astype(np.float64)):
        for channel in range(3):
            out[index] += np.abs(image[channel] - mean[channel]) / np.maximum(deviation[channel], floor) / 3.0
    return out


@pytest.mark.parametrize("count", [1, 4, 11])
def test_map_is_the_mean_deviation_score(count: int) -> None:
    method, train, images = _method(floor=0.1), _images(count), _images(3, seed=1)
    method.fit(_Train(train, 4))
    prediction = method.predict(images)
    assert prediction.score is None and prediction.amap.shape == (3, 20, 14) and prediction.amap.dtype == torch.float32
    assert prediction.amap.numpy() == pytest.approx(_reference(train, images, 0.1), rel=1e-5)


def test_batch_size_changes_no_number() -> None:
    train = _images(11)
    maps = []
    for size in (1, 5, 32):
        method = RawPixel(RawPixelParams(input_size=(20, 14), crop_size=(20, 14), batch_size=size), _context())  # type: ignore[arg-type]
        method.fit(_Train(train, size))
        maps.append(method.predict(train[:2]).amap)
    assert torch.allclose(maps[0], maps[1], rtol=1e-6) and torch.allclose(maps[0], maps[2], rtol=1e-6)


def test_state_round_trip_and_strictness() -> None:
    method, other = _method(), _method()
    method.fit(_Train(_images(5), 4))
    other.load_state(method.state())
    images = _images(2, seed=1)
    assert torch.equal(method.predict(images).amap, other.predict(images).amap)
    with pytest.raises(WeightsError, match="deviation"):
        other.load_state({"mean": method.state()["mean"]})


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(BenchError, match="no image"):
        _method().fit(_Train(_images(0), 4))


@pytest.mark.parametrize(("key", "value"), [("crop_size", "300"), ("crop_size", "0"), ("floor", "0"), ("batch_size", "0")])
def test_impossible_parameters_are_refused(key: str, value: str) -> None:
    with pytest.raises(UsageError, match="raw_pixel"):
        build("raw_pixel", RawPixelParams, {key: value})


def test_info() -> None:
    assert INFO.baseline and {"multi_class", "few_shot", "zero_shot"} <= INFO.settings and INFO.weights(RawPixelParams()) == ()
    for preset in INFO.presets.values():
        assert build("raw_pixel", RawPixelParams, preset).preprocess.crop <= (256, 256)
