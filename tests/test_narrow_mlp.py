"""The MLP whose activations lie in kept memory is the MLP, its memory is used again, and no graph sees another's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inpbench.methods import narrow_mlp
from inpbench.methods.blocks import Mlp

DIM = 12


def layer() -> Mlp:
    """Float64, its parameters away from their first values."""
    torch.manual_seed(0)
    mlp = Mlp(DIM).double()
    for parameter in mlp.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return mlp


def tokens(batch: int = 2) -> Tensor:
    return torch.randn(batch, 5, DIM, dtype=torch.float64, requires_grad=True)


def gradients(mlp: Mlp, output: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Of a loss with a gradient that differs from number to number."""
    return torch.autograd.grad(output.pow(3).sum(), [x, *mlp.parameters()])


def plain(mlp: Mlp, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    output = mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x)))
    return output, gradients(mlp, output, x)


def assert_same(found: tuple[Tensor, tuple[Tensor, ...]], expected: tuple[Tensor, tuple[Tensor, ...]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-13)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_values_and_gradients_are_those_of_the_mlp_step_by_step_and_batch_by_batch() -> None:
    mlp = layer()
    mlp.narrow = True
    for batch in (2, 2, 3, 1):  # another size takes other memory
        x = tokens(batch)
        output = mlp(x)
        assert_same((output, gradients(mlp, output, x)), plain(mlp, x))
        assert len(mlp._free) == 1 and len(mlp._free[0][0]) == 5 * batch


def test_memory_is_used_again_and_never_by_two_graphs() -> None:
    mlp = layer()
    mlp.narrow = True
    x, y = tokens(), tokens()
    gradients(mlp, mlp(x), x)
    place = mlp._free[0][0].data_ptr()
    first = mlp(x)
    assert first.grad_fn is not None and not mlp._free
    second = mlp(y)  # while the first graph still holds the memory
    assert_same((first, gradients(mlp, first, x)), plain(mlp, x))
    assert mlp._free[0][0].data_ptr() == place
    assert_same((second, gradients(mlp, second, y)), plain(mlp, y))


def test_an_input_without_gradient_gets_none() -> None:
    mlp = layer()
    mlp.narrow = True
    x = tokens().detach()
    mlp(x).pow(3).sum().backward()
    found = [parameter.grad for parameter in mlp.parameters()]
    expected = plain(mlp, x.requires_grad_())[1][1:]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_a_second_backward_pass_is_refused() -> None:
    mlp = layer()
    mlp.narrow = True
    output = mlp(tokens()).sum()
    output.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        output.backward()


def test_kept_memory_is_for_training_narrow_layers_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert narrow_mlp.pays(torch.randn(1, 2, 96)) and not narrow_mlp.pays(torch.randn(1, 2, 384))
    with torch.no_grad():
        assert not narrow_mlp.pays(torch.randn(1, 2, 96))
    with torch.autocast("cpu", torch.bfloat16):
        assert not narrow_mlp.pays(torch.randn(1, 2, 96))
    monkeypatch.setattr(narrow_mlp, "mlp", None)
    noisy = Mlp(DIM, dropout=0.5)
    noisy.narrow = True
    assert noisy(torch.randn(2, 5, DIM)).shape == (2, 5, DIM)


def test_state_and_copies_know_nothing_of_the_memory() -> None:
    mlp = layer()
    mlp.narrow = True
    x = tokens()
    gradients(mlp, mlp(x), x)
    assert set(mlp.state_dict()) == set(Mlp(DIM).state_dict())
