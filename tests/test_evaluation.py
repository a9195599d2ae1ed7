"""A GPU that is full: the batch is halved, image by image the numbers stay, and what depends on its batch is never split."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inpbench.harness.api import Prediction
from inpbench.harness.evaluation import _predict
from inpbench.harness.scoring import DEFAULT_SCORING

OPTIONS: Any = SimpleNamespace(scoring=DEFAULT_SCORING)


class Narrow:
    """Brightness, on a GPU with room for `room` images at once."""

    def __init__(self, room: int) -> None:
        self.room, self.asked = room, []

    def predict(self, images: torch.Tensor) -> Prediction:
        self.asked.append(len(images))
        if len(images) > self.room:
            raise torch.cuda.OutOfMemoryError("full")
        return Prediction(images.mean(1), images.mean((1, 2, 3)))


def test_a_full_gpu_gives_the_same_numbers_in_smaller_batches(caplog: pytest.LogCaptureFixture) -> None:
    images = torch.rand(7, 3, 16, 16)
    method: Any = Narrow(2)
    maps, scores = _predict(method, images, OPTIONS)
    wanted: Any = Narrow(7)
    expected = _predict(wanted, images, OPTIONS)
    assert torch.equal(scores, expected[1]) and torch.equal(maps, expected[0]), "in the order of the batch"
    assert method.asked == [7, 4, 2, 2, 3, 2, 1] and "out of GPU memory with 7 images at once" in caplog.text


def test_one_image_that_has_no_room_is_an_error() -> None:
    method: Any = Narrow(0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        _predict(method, torch.rand(2, 3, 16, 16), OPTIONS)
    assert method.asked == [2, 1]


def test_what_depends_on_its_batch_is_not_split() -> None:
    method: Any = Narrow(1)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        _predict(method, torch.rand(2, 3, 16, 16), OPTIONS, whole=True)
    assert method.asked == [2]
