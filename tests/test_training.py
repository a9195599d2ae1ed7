"""The training loop: order of batches, resume with the same bits, errors; and the cache of frozen features."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inpbench.harness.api import Context
from inpbench.harness.errors import BenchError, DataError
from inpbench.harness.weights import WeightStore
from inpbench.methods.features import FeatureSource
from inpbench.methods.fusion import Features
from inpbench.methods.optim import StableAdamW
from inpbench.methods.schedule import WarmCosine
from inpbench.methods.training import REPORT_EVERY, BatchOrder, Trainer


class KilledError(Exception):
    """Stands for kill -9."""


class Memory:
    """Snapshots in memory, due at given steps; dies after a number of saves."""

    def __init__(self, every: int = 1, die_after: int | None = None) -> None:
        self.every, self.die_after = every, die_after
        self.asked = self.saved = 0
        self.content: bytes | None = None

    def due(self) -> bool:
        self.asked += 1
        return self.asked % self.every == 0

    def save(self, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.content = buffer.getvalue()
        self.saved += 1
        if self.die_after is not None and self.saved >= self.die_after:
            raise KilledError

    def load(self) -> dict[str, Any] | None:
        return None if self.content is None else torch.load(io.BytesIO(self.content), weights_only=True)


def make_context(snapshots: Any = None, seed: int = 1, engine: str = "fast", cache_bytes: int = 1 << 20) -> Context:
    return Context(
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=seed,
        setting="multi_class",
        weights=WeightStore("random"),
        snapshots=snapshots or Memory(every=10**9),
        progress=lambda done, total, text="", **numbers: None,
        engine=engine,  # type: ignore[arg-type]
        cache_bytes=cache_bytes,
    )


DATA = torch.randn(23, 6, generator=torch.Generator().manual_seed(0))


def make_trainer(ctx: Context, steps: int = 30, clip: float = 0.5, scale: float = 1.0) -> Trainer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.GELU(), nn.Linear(8, 6))
    return Trainer(
        module=network,
        optimiser=StableAdamW(network.parameters(), amsgrad=True),
        schedule=WarmCosine(base=1e-2, final=1e-3, total=steps, warmup=5),
        loss=lambda indices, step: scale * ((network(DATA[indices]) - DATA[indices]) ** 2).mean(),
        order=BatchOrder(len(DATA), 4, ctx.seed),
        steps=steps,
        clip_norm=clip,
        ctx=ctx,
        advice="Type: --set m.lr=1e-4",
    )


def weights_of(trainer: Trainer) -> list[Tensor]:
    return [value.clone() for value in trainer.module.state_dict().values()]


# --- order ----------------------------------------------------------------------------------------------------------


def test_an_epoch_sees_every_image_at_most_once_and_drops_the_rest() -> None:
    order = BatchOrder(23, 4, seed=5)
    assert (order.size, order.per_epoch) == (4, 5)
    for epoch in range(3):
        seen = [index for step in range(5) for index in order.batch(5 * epoch + step)]
        assert len(seen) == len(set(seen)) == 20 and set(seen) <= set(range(23))
    assert order.batch(0) != order.batch(5)


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    forward, backward = BatchOrder(23, 4, 5), BatchOrder(23, 4, 5)
    torch.manual_seed(99)
    expected = [forward.batch(step) for step in range(12)]
    torch.rand(3)
    assert [backward.batch(step) for step in reversed(range(12))] == expected[::-1]
    assert BatchOrder(23, 4, 6).batch(0) != expected[0]


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    order = BatchOrder(3, 16, 1)
    assert order.per_epoch == 1
    assert sorted(order.batch(0)) == sorted(order.batch(7)) == [0, 1, 2]
    with pytest.raises(DataError):
        BatchOrder(0, 16, 1)


# --- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [1, 3])
def test_killed_runs_end_with_the_same_bits(kills: int) -> None:
    whole = make_trainer(make_context())
    whole.run()
    snapshots = Memory(every=4, die_after=1)
    for kill in range(kills):
        snapshots.die_after = kill + 1
        with pytest.raises(KilledError):
            make_trainer(make_context(snapshots)).run()
    snapshots.die_after = None
    last = make_trainer(make_context(snapshots))
    last.run()
    for expected, found in zip(weights_of(whole), weights_of(last), strict=True):
        assert torch.equal(expected, found)


def test_dropout_follows_the_seed_and_the_callers_generator_is_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, second, other = make_trainer(make_context()), make_trainer(make_context()), make_trainer(make_context(seed=2))
    for trainer in (first, second, other):
        trainer.run()
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(first), weights_of(second), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights_of(first), weights_of(other), strict=True))


def test_it_learns_and_reports() -> None:
    reports: list[tuple[int, int, float]] = []
    ctx = make_context()
    ctx.progress = lambda done, total, text="", **numbers: reports.append((done, total, numbers["loss"]))
    make_trainer(ctx, steps=150).run()
    assert [done for done, _, _ in reports] == [*range(REPORT_EVERY, 150, REPORT_EVERY), 150]
    assert reports[-1][2] < 0.9 * reports[0][2]


def test_the_first_step_has_rate_zero_and_gradients_are_clipped() -> None:
    trainer = make_trainer(make_context(), clip=1e-3)
    before = weights_of(trainer)
    result = trainer.step(0)
    assert result.rate == 0.0 and float(result.norm) > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(trainer), strict=True))
    total = torch.stack([param.grad.norm() for param in trainer.module.parameters()]).norm()  # type: ignore[union-attr]
    assert float(total) == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_finite_stops_with_advice_and_is_never_saved() -> None:
    snapshots = Memory(every=1)
    with pytest.raises(BenchError, match=r"nan|inf") as caught:
        make_trainer(make_context(snapshots), scale=float("nan")).run()
    assert caught.value.hint == "Type: --set m.lr=1e-4"
    assert snapshots.saved == 0


def test_a_snapshot_of_another_length_is_refused() -> None:
    snapshots = Memory(every=4, die_after=1)
    with pytest.raises(KilledError):
        make_trainer(make_context(snapshots)).run()
    with pytest.raises(BenchError, match="30 steps, this one has 31"):
        make_trainer(make_context(snapshots), steps=31).run()


# --- features -------------------------------------------------------------------------------------------------------


class Numbers:
    """A training set whose image i is filled with i."""

    samples: tuple[()] = ()
    categories: tuple[()] = ()

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Any) -> Tensor:
        self.asked.append(list(indices))
        return torch.tensor(list(indices), dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)

    def masks(self, indices: Any) -> Tensor:
        return torch.zeros(len(indices), 2, 2, dtype=torch.bool)

    def pixels(self, indices: Any) -> Tensor:
        return torch.zeros(len(indices), 3, 2, 2, dtype=torch.uint8)


def encode(images: Tensor) -> Features:
    return Features(images[:, 0] * 2, (images + 0.5, images - 0.5))


def test_cached_features_are_those_of_the_encoder() -> None:
    train, direct = Numbers(7), FeatureSource(Numbers(7), encode, 3, make_context(engine="reference"))
    cached = FeatureSource(train, encode, 3, make_context())
    assert cached.cached and not direct.cached
    assert train.asked == [[0, 1, 2], [3, 4, 5], [6]]  # in order, in fixed batches
    for indices in ([6, 0], [3], [1, 1, 5]):
        one, other = cached.batch(indices), direct.batch(indices)
        assert torch.equal(one.fused, other.fused)
        assert all(torch.equal(a, b) for a, b in zip(one.groups, other.groups, strict=True))
    assert len(train.asked) == 3


def test_features_that_do_not_fit_are_not_cached() -> None:
    train = Numbers(7)
    source = FeatureSource(train, encode, 3, make_context(cache_bytes=7 * (4 + 12 + 12) * 4 - 1))
    assert not source.cached
    assert torch.equal(source.batch([6, 2]).fused, encode(train.batch([6, 2])).fused)
    assert FeatureSource(Numbers(7), encode, 3, make_context(cache_bytes=7 * (4 + 12 + 12) * 4)).cached
