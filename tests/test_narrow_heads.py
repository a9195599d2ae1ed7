"""Attention with its tokens in columns is the attention: values, gradients, and where it is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from inpbench.methods import narrow_heads
from inpbench.methods.attention import LinearAttention, ReluCosineAttention, SoftmaxCrossAttention

DIM, HEADS = 12, 3


def away(module: nn.Module) -> nn.Module:
    """Its float64 parameters away from their first values."""
    for parameter in module.double().parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def both_ways(module: nn.Module, call: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    """Values and gradients with tokens in rows and in columns."""
    wanted, found = [*inputs, *module.parameters()], []
    direction = torch.randn_like(call())
    for narrow in (False, True):
        module.narrow = narrow
        output = call()
        found.append((output, torch.autograd.grad((output * direction).sum(), wanted)))
    (plain, gradients), (other, others) = found
    torch.testing.assert_close(other, plain, rtol=1e-11, atol=1e-12)
    for one, another in zip(gradients, others, strict=True):
        torch.testing.assert_close(another, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("tokens", [1, 7])
def test_linear_attention_in_columns_is_the_attention(tokens: int, eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = away(LinearAttention(DIM, HEADS, eps))
    x = torch.randn(2, tokens, DIM, dtype=torch.float64, requires_grad=True)
    both_ways(attention, lambda: attention(x), [x])
    monkeypatch.setattr(attention, "attend", None)  # the switch is on: the plain way is not taken
    attention(x)


@pytest.mark.parametrize("kind", [ReluCosineAttention, SoftmaxCrossAttention])
@pytest.mark.parametrize(("queries", "source"), [(7, 2), (3, 5), (1, 1)])
def test_cross_attention_in_columns_is_the_attention(
    kind: type[nn.Module], queries: int, source: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    attention = away(kind(DIM, HEADS))
    inputs = [torch.randn(2, count, DIM, dtype=torch.float64, requires_grad=True) for count in (queries, source)]
    both_ways(attention, lambda: attention(*inputs), inputs)
    monkeypatch.setattr(attention, "project", None)  # the switch is on: the plain way is not taken
    attention(*inputs)


def test_a_query_of_no_length_has_the_gradient_of_the_plain_way() -> None:
    torch.manual_seed(0)
    attention = away(ReluCosineAttention(DIM, HEADS))
    attention.q.bias.data.zero_()
    x = torch.randn(2, 4, DIM, dtype=torch.float64)
    x[:, 1] = 0.0
    source = torch.randn(2, 3, DIM, dtype=torch.float64, requires_grad=True)
    both_ways(attention, lambda: attention(x.requires_grad_(), source), [x.requires_grad_(), source])


def test_columns_are_for_training_with_narrow_heads() -> None:
    x = torch.randn(1, 2, 96)
    assert narrow_heads.pays(x, 12) and not narrow_heads.pays(x, 3)
    with torch.no_grad():
        assert not narrow_heads.pays(x, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert not narrow_heads.pays(x, 12)
