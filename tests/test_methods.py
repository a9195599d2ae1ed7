"""The conformance kit on every built-in method, and on methods that break it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from inpbench.harness import testing
from inpbench.harness.api import MethodInfo, Prediction, Preprocess
from inpbench.harness.registry import METHODS
from inpbench.methods import BUILTIN

ALL = [check for name in BUILTIN for check in testing.checks(name)]


@pytest.mark.parametrize("check", ALL, ids=lambda check: f"{check.method}-{check.name}")
def test_built_in_methods_keep_the_contract(check: testing.Check) -> None:
    check()


# --- a kit that finds nothing is worth nothing ----------------------------------------------------------------------


@dataclass(frozen=True)
class Params:
    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(resize=(32, 32), crop=(32, 32))


class Good:
    """Distance from the mean of the training images."""

    def __init__(self, params: Any, ctx: Any) -> None:
        self.mean = torch.zeros(3, 32, 32)

    def fit(self, train: Any) -> None:
        self.mean = train.batch(range(len(train))).mean(0)

    def predict(self, images: torch.Tensor) -> Prediction:
        return Prediction((images - self.mean).abs().mean(1))

    def state(self) -> dict[str, torch.Tensor]:
        return {"mean": self.mean}

    def load_state(self, state: Any) -> None:
        self.mean = state["mean"]


class FourDimensional(Good):
    def predict(self, images: torch.Tensor) -> Prediction:
        return Prediction(super().predict(images).amap[:, None])


class BatchDependent(Good):
    def predict(self, images: torch.Tensor) -> Prediction:
        amap = super().predict(images).amap
        return Prediction(amap / amap.max())


class Unseeded(Good):
    def fit(self, train: Any) -> None:
        super().fit(train)
        self.mean = self.mean + torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(torch.seed() % 2**31))


class Forgetful(Good):
    def state(self) -> dict[str, torch.Tensor]:
        return {"mean": torch.zeros(3, 32, 32)}


class Vandal(Good):
    def predict(self, images: torch.Tensor) -> Prediction:
        amap = super().predict(images).amap
        images.zero_()
        return Prediction(amap)


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (Good, None),
        (FourDimensional, "shapes"),
        (BatchDependent, "batch_invariance"),
        (Unseeded, "seed"),
        (Forgetful, "state"),
        (Vandal, "purity"),
    ],
)
def test_kit_names_what_is_broken(kind: type, caught: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "resolve", lambda target: kind)
    METHODS.add(MethodInfo(name="local", version=1, title="t", target="x:y", params=Params, settings=frozenset({"multi_class"})))
    failed = []
    try:
        for check in testing.checks("local"):
            try:
                check()
            except AssertionError:
                failed.append(check.name)
    finally:
        METHODS._added.clear()
    assert (caught in failed) if caught else not failed
