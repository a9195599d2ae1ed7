"""Dropout drawn at once has torch's bits: values, gradients, generator; where torch draws otherwise, torch's way is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inpbench.methods import fast_dropout
from inpbench.methods.shards import BatchDropout


def run(dropout: BatchDropout, x: Tensor) -> list[Tensor]:
    """Output, gradient and the generator's state, twice in a row."""
    found: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for _ in range(2):
            output = dropout(x)
            found += [output, torch.autograd.grad(output.pow(3).sum(), x)[0], torch.get_rng_state()]
    return found


@pytest.mark.parametrize("p", [0.0, 0.2, 0.37, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("across", [False, True])  # memory in another order
def test_the_bits_are_torchs(p: float, dtype: torch.dtype, across: bool) -> None:
    x = torch.randn(3, 7, 29, dtype=dtype)
    x = (x.transpose(1, 2) if across else x).requires_grad_()
    plain, fast = BatchDropout(p), BatchDropout(p)
    fast.narrow = True
    for one, other in zip(run(fast, x), run(plain, x), strict=True):
        assert torch.equal(one, other)


def test_where_torch_draws_otherwise_its_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_dropout.agrees.cache_clear()
    monkeypatch.setattr(fast_dropout, "_BITS", 52)
    assert not fast_dropout.agrees() and not fast_dropout.pays(torch.ones(2))
    fast_dropout.agrees.cache_clear()
