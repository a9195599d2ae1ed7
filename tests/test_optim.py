"""StableAdamW against a slow scalar reference, and the learning-rate schedule."""

from __future__ import annotations

import math
from copy import deepcopy as copy_of

import numpy as np
import pytest
import torch

from inpbench.methods.compiled_update import CompiledUpdate
from inpbench.methods.optim import StableAdamW
from inpbench.methods.schedule import WarmCosine


def reference(
    start: np.ndarray,
    gradients: list[np.ndarray],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    amsgrad: bool,
    clip: float,
) -> np.ndarray:
    """The update of the specification, number by number."""
    p = start.astype(np.float64).ravel().tolist()
    m, v, vmax = [0.0] * len(p), [0.0] * len(p), [0.0] * len(p)
    for k, gradient in enumerate(gradients, start=1):
        g = gradient.ravel().tolist()
        p = [x * (1 - lr * decay) for x in p]
        m = [betas[0] * a + (1 - betas[0]) * b for a, b in zip(m, g, strict=True)]
        v = [betas[1] * a + (1 - betas[1]) * b * b for a, b in zip(v, g, strict=True)]
        vmax = [max(a, b) for a, b in zip(vmax, v, strict=True)]
        second = vmax if amsgrad else v
        den = [math.sqrt(a) / math.sqrt(1 - betas[1] ** k) + eps for a in second]
        rms = math.sqrt(sum((a / b) ** 2 for a, b in zip(g, den, strict=True)) / len(g))
        step = lr / (1 - betas[0] ** k) / max(1.0, rms / clip)
        p = [x - step * a / b for x, a, b in zip(p, m, den, strict=True)]
    return np.array(p).reshape(start.shape)


@pytest.mark.parametrize("amsgrad", [True, False])
@pytest.mark.parametrize("clip", [1.0, 0.3])
@pytest.mark.parametrize("foreach", [True, False])
def test_several_tensors_against_the_reference(amsgrad: bool, clip: float, foreach: bool) -> None:
    state = np.random.RandomState(3)
    shapes = [(3, 4), (5,), (1,), (2, 1, 2)]
    starts = [state.standard_normal(shape) for shape in shapes]
    gradients = [[scale * state.standard_normal(shape) for shape in shapes] for scale in (1.0, 50.0, 0.01, 1.0, 3.0)]
    tensors = [torch.from_numpy(start.copy()).requires_grad_() for start in starts]
    optimiser = StableAdamW(tensors, 0.05, (0.8, 0.95), 1e-8, 0.1, amsgrad, clip, foreach)
    for row in gradients:
        for tensor, gradient in zip(tensors, row, strict=True):
            tensor.grad = torch.from_numpy(gradient)
        optimiser.step()
    for index, tensor in enumerate(tensors):
        wanted = reference(starts[index], [row[index] for row in gradients], 0.05, (0.8, 0.95), 1e-8, 0.1, amsgrad, clip)
        np.testing.assert_allclose(tensor.detach().numpy(), wanted, rtol=1e-12)
    assert max(float(divisor) for divisor in optimiser.divisors) >= 1.0


def test_parameters_without_a_gradient_are_left_alone() -> None:
    moved, still = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimiser = StableAdamW([moved, still], lr=0.1)
    moved.grad = torch.ones(2)
    optimiser.step()
    assert not torch.equal(moved, torch.ones(2))
    assert torch.equal(still, torch.ones(2)) and still not in optimiser.state


def test_a_late_gradient_starts_its_own_count() -> None:
    early, late = torch.ones(2, dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimiser = StableAdamW([early, late], lr=0.1, weight_decay=0.0)
    early.grad = torch.ones(2, dtype=torch.float64)
    optimiser.step()
    late.grad = torch.ones(2, dtype=torch.float64)
    optimiser.step()
    np.testing.assert_allclose(
        late.detach().numpy(), reference(np.ones(2), [np.ones(2)], 0.1, (0.9, 0.999), 1e-8, 0.0, False, 1.0), rtol=1e-12
    )


@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_impossible_constants_and_sparse_gradients_raise() -> None:
    tensor = torch.ones(2, requires_grad=True)
    bad: list[dict[str, object]] = [
        {"lr": -1.0},
        {"eps": -1e-9},
        {"weight_decay": -0.1},
        {"betas": (1.0, 0.9)},
        {"clip_threshold": 0.0},
    ]
    for options in bad:
        with pytest.raises(ValueError, match=next(iter(options))):
            StableAdamW([tensor], **options)  # type: ignore[arg-type]
    tensor.grad = torch.sparse_coo_tensor([[0]], [1.0], (2,))
    with pytest.raises(RuntimeError, match="sparse"):
        StableAdamW([tensor]).step()


def test_a_state_round_trip_continues_with_the_same_bits() -> None:
    def run(steps: int, tensor: torch.Tensor, optimiser: StableAdamW, first: int = 0) -> None:
        for step in range(first, first + steps):
            tensor.grad = torch.from_numpy(np.random.RandomState(step).standard_normal(6)).float()
            optimiser.step()

    whole = torch.ones(6, requires_grad=True)
    optimiser = StableAdamW([whole], lr=0.1, amsgrad=True)
    run(3, whole, optimiser)
    copy = whole.detach().clone().requires_grad_()
    again = StableAdamW([copy], lr=0.1, amsgrad=True)
    again.load_state_dict(copy_of(optimiser.state_dict()))  # torch shares tensors otherwise
    run(2, whole, optimiser, 3)
    run(2, copy, again, 3)
    assert torch.equal(whole, copy)


def test_warm_cosine_against_the_table() -> None:
    base, final, total, warmup = 1e-3, 1e-4, 60, 10
    table = [
        *np.linspace(0.0, base, warmup),
        *(final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(total - warmup) / (total - warmup)))),
    ]
    schedule = WarmCosine(base=base, final=final, total=total, warmup=warmup)
    np.testing.assert_allclose([schedule(step) for step in range(total)], table, rtol=0, atol=1e-15)
    assert schedule(0) == 0.0
    assert schedule(warmup - 1) == schedule(warmup) == base  # the base rate is used twice
    assert schedule(total - 1) > final
    assert schedule(total) == schedule(10 * total) == final


def test_a_run_shorter_than_the_warm_up_has_no_cosine() -> None:
    schedule = WarmCosine(base=1.0, final=0.1, total=5, warmup=11)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.1])
    assert WarmCosine(base=1.0, final=0.1, total=5, warmup=1, start=0.3)(0) == 0.3


@pytest.mark.parametrize("captured", [False, True])
def test_the_compiled_update_is_the_same(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, and as whole graphs that no learning rate and no step number compiles again."""
    compiler, counters = torch.compile, torch._dynamo.utils.counters
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compiler(function, backend="eager", fullgraph=True, **options)
    )
    torch._dynamo.reset()
    counters.clear()
    pairs = []
    for compiled in (None, CompiledUpdate(captured)):
        generator = torch.Generator().manual_seed(5)
        tensors = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in ((7,), (6, 4), (3, 1, 1))]
        optimiser = StableAdamW(tensors, 0.05, weight_decay=0.1, eps=1e-10, amsgrad=True, compiled=compiled)
        divisors = []
        for step in range(8):
            optimiser.param_groups[0]["lr"] = 0.02 * step  # 0 first, as in a warm-up
            for tensor in tensors:
                tensor.grad = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 4.0**step
            optimiser.step()
            divisors.append(torch.stack(optimiser.divisors))
        pairs.append((tensors, torch.stack(divisors)))
    (expected, rates), (found, found_rates) = pairs
    assert (rates > 1.5).any()
    torch.testing.assert_close(found_rates, rates, rtol=1e-12, atol=0.0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    assert counters["stats"]["unique_graphs"] == (2 if captured else 0) and not counters["graph_break"]
    torch._dynamo.reset()
