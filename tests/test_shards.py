"""A batch over several processes gives the loss, the gradients and the random numbers of one: by threads, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from methodkit import Stripes, make_context
from rankkit import ThreadRanks, on_ranks
from torch import Tensor, nn

from inpbench.harness.api import Alone, shares
from inpbench.methods.features import FeatureSource
from inpbench.methods.fusion import Features
from inpbench.methods.losses import (
    focal_weight,
    hard_mining_weight,
    hardest_weight,
    mined_global_cosine,
    regional_cosine,
    soft_mining_weight,
    threshold_weight,
)
from inpbench.methods.shards import BatchDropout, Shard, spread

CLOSE = {"rtol": 1e-12, "atol": 1e-13}
LOSSES = {
    "plain": mined_global_cosine,
    "soft_mining": partial(mined_global_cosine, weight=partial(soft_mining_weight, power=3.0)),
    "hard_mining": partial(mined_global_cosine, weight=partial(hard_mining_weight, share=0.9, factor=0.1)),
    "threshold": partial(mined_global_cosine, weight=partial(threshold_weight, alpha=0.5), over_groups="sum"),
    "focal": partial(mined_global_cosine, weight=partial(focal_weight, share=0.7), over_groups="sum"),
    "regional": partial(regional_cosine, weight=partial(hard_mining_weight, share=0.9, factor=0.1)),
    "hardest": partial(regional_cosine, weight=partial(hardest_weight, share=0.8), over_groups="sum", in_value=True),
}


def test_shares_are_even_and_in_order() -> None:
    assert shares(16, 4) == [4, 4, 4, 4] and shares(5, 2) == [3, 2] and shares(1, 3) == [1, 0, 0] and shares(7, 3) == [3, 2, 2]
    batch, ranks = [7, 3, 9, 1, 5], [ThreadRanks(rank, [None] * 3, None) for rank in range(3)]  # type: ignore[arg-type]
    assert [Shard(rank, 5).mine(batch) for rank in ranks] == [[7, 3], [9, 1], [5]]
    assert Shard().mine(batch) == batch and Shard(Alone(), 5).whole(rows := torch.ones(5, 2)) is rows


def whole_aware(loss: Any, shard: Shard) -> Any:
    """The loss of a process: its statistics are those of the whole batch."""
    weight = loss.keywords.get("weight") if isinstance(loss, partial) else None
    return loss if weight is None else partial(loss, weight=partial(weight, whole=shard.whole))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("count", "size"), [(4, 2), (5, 2), (7, 3), (1, 2), (2, 3)])
def test_loss_and_gradients_are_those_of_the_whole_batch(name: str, count: int, size: int) -> None:
    generator = torch.Generator().manual_seed(count)
    targets = [torch.randn(count, 6, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    inputs = [torch.randn(count, 6, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    start = torch.randn(6, 6, generator=generator, dtype=torch.float64)

    def outcome(shard: Shard) -> tuple[Tensor, Tensor]:
        weight = start.clone().requires_grad_()
        outputs = [torch.einsum("ij,bjhw->bihw", weight, x[shard.part]) for x in inputs]
        loss = whole_aware(LOSSES[name], shard)([target[shard.part] for target in targets], outputs)
        value = shard.backward(loss, [weight])
        assert weight.grad is not None
        return value, weight.grad

    loss, gradient = outcome(Shard())
    assert gradient.abs().max() > 1e-4, "nothing to compare"
    for found in on_ranks(size, lambda ranks: outcome(Shard(ranks, count))):
        torch.testing.assert_close(found, (loss, gradient), **CLOSE)


def test_statistics_of_a_part_alone_are_found() -> None:
    """The comparison above can fail: with the statistics of its own images each process gets another gradient."""
    generator = torch.Generator().manual_seed(0)
    target, data = (torch.randn(4, 6, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))

    def gradient(shard: Shard, loss: Any) -> Tensor:
        weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
        shard.backward(loss([target[shard.part]], [torch.einsum("ij,bjhw->bihw", weight, data[shard.part])]), [weight])
        assert weight.grad is not None
        return weight.grad

    whole = gradient(Shard(), LOSSES["soft_mining"])
    (wrong, _) = on_ranks(2, lambda ranks: gradient(Shard(ranks, 4), LOSSES["soft_mining"]))
    assert (wrong - whole).abs().max() > 1e-3 * whole.abs().max()


def test_a_process_without_an_image_adds_nothing_and_several_parameters_keep_their_shapes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)).double()
    data = torch.randn(2, 3, dtype=torch.float64)

    def outcome(shard: Shard) -> tuple[Tensor, list[Tensor]]:
        own = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2)).double()
        own.load_state_dict(network.state_dict())
        params = list(own.parameters())
        value = shard.backward(own(data[shard.part]).square().mean(), params)
        return value, [param.grad for param in params if param.grad is not None]

    expected = outcome(Shard())
    assert len(expected[1]) == 6
    for found in on_ranks(3, lambda ranks: outcome(Shard(ranks, 2))):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_dropout_draws_for_the_whole_batch() -> None:
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(3)
    dropout = BatchDropout(0.4)
    expected, after = dropout(x), torch.get_rng_state()
    assert 0.2 < float((expected == 0).double().mean()) < 0.6
    for size in (2, 3, 7):
        found = []
        for rank in range(size):
            shard = Shard(ThreadRanks(rank, [None] * size, None), 5)  # type: ignore[arg-type]
            spread(nn.ModuleList([dropout]), shard)
            torch.manual_seed(3)
            found.append(dropout(x[shard.part]))
            assert torch.equal(torch.get_rng_state(), after), "the generator is where one process would have it"
        assert torch.equal(torch.cat(found), expected)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("cache", ["auto", "none"])
@pytest.mark.parametrize("partition", [False, True])
@pytest.mark.parametrize(("count", "batch", "size"), [(11, 4, 2), (11, 4, 3), (3, 4, 5), (9, 1, 2)])
def test_features_of_a_batch_reach_whoever_works_on_them(cache: str, partition: bool, count: int, batch: int, size: int) -> None:
    train = Stripes((4, 4), count)

    def encode(images: Tensor) -> Features:
        groups = (images, images.flip(1))
        tokens = (0.5 * (groups[0] + groups[1])).flatten(2).transpose(1, 2)
        return Features(torch.cat((tokens[:, :2] + 7, tokens), dim=1), groups)

    def source_of(shard: Shard) -> FeatureSource:
        context = make_context()
        context.cache = cache  # type: ignore[assignment]
        return FeatureSource(train, encode, batch, context, partition, shard=shard)

    indices = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()[: min(batch, count)]
    expected = source_of(Shard()).batch(indices)

    def parts(ranks: ThreadRanks) -> tuple[bool, Features]:
        source = source_of(Shard(ranks, len(indices)))
        return source.cached, source.batch(indices)

    found = on_ranks(size, parts)
    assert {cached for cached, _ in found} == {cache == "auto"}
    assert torch.equal(torch.cat([features.fused for _, features in found]), expected.fused)
    for number, group in enumerate(expected.groups):
        assert torch.equal(torch.cat([features.groups[number] for _, features in found]), group)


def test_no_process_keeps_features_where_one_has_no_room() -> None:
    def tier(ranks: ThreadRanks) -> str:
        context = make_context()
        context.cache_bytes = 1 << 20 if ranks.rank == 0 else 0
        encode = lambda images: Features(images.flatten(2).transpose(1, 2), (images,))  # noqa: E731
        return FeatureSource(Stripes((4, 4), 8), encode, 2, context, shard=Shard(ranks, 2)).tier

    assert on_ranks(2, tier) == ["none", "none"]


def test_other_weights_elsewhere_are_an_error() -> None:
    def begin(ranks: ThreadRanks, spoil: float) -> None:
        network = nn.Linear(2, 2)
        nn.init.ones_(network.weight)
        nn.init.zeros_(network.bias)
        network.weight.data[0, 0] += spoil * ranks.rank
        Shard(ranks, 4).check_same(network)

    on_ranks(2, partial(begin, spoil=0.0))
    with pytest.raises(RuntimeError, match="different weights"):
        on_ranks(2, partial(begin, spoil=1e-7))
