"""The conformance kit on every built-in method, and on methods that break it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from inpbench.harness import testing
from inpbench.harness.api import MethodInfo, Prediction, Preprocess
from inpbench.harness.ranks_in_turn import in_turn
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


class Careless(Good):
    def fit(self, train: Any) -> None:
        super().fit(train)
        torch.autograd.set_detect_anomaly(True)


class Partial(Good):
    def predict(self, images: torch.Tensor) -> Prediction:
        amap = super().predict(images).amap
        return Prediction(amap / (0.0 if self.setting == "single_class" else 1.0))

    def __init__(self, params: Any, ctx: Any) -> None:
        super().__init__(params, ctx)
        self.setting = ctx.setting


class Told(Good):
    """Distance from the mean of the category's references."""

    def __init__(self, params: Any, ctx: Any) -> None:
        super().__init__(params, ctx)
        self.kept: dict[str, torch.Tensor] = {}

    def enter(self, category: str, references: Any) -> None:
        if references is not None:
            self.kept[category] = references.batch(range(len(references))).mean(0)
        self.mean = self.kept[category]

    def state(self) -> dict[str, torch.Tensor]:
        return dict(self.kept)

    def load_state(self, state: Any) -> None:
        self.kept = dict(state)


class Mixing(Told):
    """Takes the last references for whatever comes next."""

    def enter(self, category: str, references: Any) -> None:
        super().enter("any", references)


class Spread(Good):
    """The mean of all images, each process adding its own."""

    def __init__(self, params: Any, ctx: Any) -> None:
        super().__init__(params, ctx)
        self.ranks = ctx.ranks

    def fit(self, train: Any) -> None:
        noise = 1e-9 * torch.randn(3, 32, 32)  # of generators that every process has for itself
        self.mean = self.ranks.sum_(train.batch(self.mine(train)).sum(0)) / len(train) + noise

    def mine(self, train: Any) -> range:
        return range(self.ranks.rank, len(train), self.ranks.size)


class OwnPart(Spread):
    def fit(self, train: Any) -> None:
        self.ranks.sum_(torch.zeros(1))
        self.mean = train.batch(self.mine(train)).mean(0)


class CountedTwice(Spread):
    def mine(self, train: Any) -> range:
        return range(len(train))


class OutOfStep(Spread):
    def fit(self, train: Any) -> None:
        super().fit(train)
        if self.ranks.rank == 0:
            self.ranks.sum_(torch.zeros(1))


@pytest.fixture
def undone() -> Iterator[None]:
    yield
    METHODS._added.clear()
    torch.autograd.set_detect_anomaly(False)


def failed_checks(kind: type, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> list[str]:
    """The checks that a method of this class fails."""
    monkeypatch.setattr(testing, "resolve", lambda target: kind)
    facts = {"settings": frozenset({"multi_class", "single_class"})} | facts
    METHODS.add(MethodInfo(name="local", version=1, title="t", target="x:y", params=Params, **facts))
    failed = []
    for check in testing.checks("local"):
        try:
            check()
        except AssertionError:
            failed.append(check.name)
    return failed


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (Good, None),
        (FourDimensional, "shapes"),
        (BatchDependent, "batch_invariance"),
        (Unseeded, "seed"),
        (Forgetful, "state"),
        (Vandal, "purity"),
        (Careless, "trace"),
        (Partial, "settings"),
        (Told, "category"),  # it does not say so
    ],
)
def test_kit_names_what_is_broken(kind: type, caught: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = failed_checks(kind, monkeypatch)
    assert (caught in failed) if caught else not failed


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize(("kind", "caught"), [(Told, None), (Mixing, "category"), (Good, "category")])
def test_kit_enters_categories(kind: type, caught: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = frozenset({"multi_class", "few_shot", "generalist", "cross_class"})
    try:
        failed = failed_checks(kind, monkeypatch, told_category=True, settings=settings, untrained=frozenset({"few_shot"}))
    except AttributeError:
        assert kind is Good, "it says that it is told the category, and has no `enter`"
        return
    assert (caught in failed) if caught else not failed


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Spread, ""),
        (Good, "never calls ctx.ranks"),
        (OwnPart, "two processes end with different mean"),
        (CountedTwice, "differ by .* from those of one"),
        (OutOfStep, "out of step: rank 0 waits in a sum_"),
    ],
)
def test_kit_trains_what_is_called_parallel_on_two(kind: type, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    assert failed_checks(kind, monkeypatch, parallel=True) == (["parallel"] if why else [])
    (check,) = (check for check in testing.checks("local") if check.name == "parallel")
    if why:
        with pytest.raises(AssertionError, match=why):
            check()
    torch.set_rng_state(before)


def test_ranks_in_turn_are_processes() -> None:
    """Generators of their own, rows in rank order, an error of the one that failed first; nothing left behind."""

    def work(ranks: Any) -> tuple[float, list[int]]:
        torch.manual_seed(5)
        drawn = torch.rand(1)
        rows = ranks.gather(torch.full((ranks.rank + 1,), ranks.rank), [1, 2, 3])
        drawn += torch.rand(1)
        if ranks.size == 3 and fail and ranks.rank == 1:
            raise ValueError("lost")
        return ranks.sum_(drawn).item(), rows.tolist()

    torch.manual_seed(7)
    before, fail = torch.get_rng_state(), False
    found = in_turn(work, 3)
    torch.manual_seed(5)
    expected = 3 * (torch.rand(1) + torch.rand(1)).item()
    assert all(value == pytest.approx(expected) and rows == [0, 1, 1, 2, 2, 2] for value, rows in found)
    torch.manual_seed(7)
    fail = True
    with pytest.raises(ValueError, match="lost"):
        in_turn(work, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"settings": frozenset({"generalist"})}, "told_category must be True"),
        ({"untrained": frozenset({"zero_shot"})}, "untrained in settings that it has not"),
        ({"settings": frozenset()}, "no setting"),
    ],
)
def test_kit_reads_the_info(facts: dict[str, Any], why: str) -> None:
    described = {"settings": frozenset({"multi_class"})} | facts
    METHODS.add(MethodInfo(name="local", version=1, title="t", target="x:y", params=Params, **described))
    with pytest.raises(AssertionError, match=why):
        testing.checks("local")[0]()
