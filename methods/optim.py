"""StableAdamW: AdamW with AMSGrad on uncorrected moments and a step that shrinks where the gradient outgrows its own history.

    p *= 1 - lr wd;  m, v <- moments;  vmax <- max(vmax, v);  den = sqrt(vmax) / sqrt(1 - b2^k) + eps
    r = max(1, rms(g / den) / clip_threshold), a tensor each, of the gradient and not of m;  p -= lr / (1 - b1^k) / r * m / den
All tensors of a group are updated together (torch._foreach), or with `foreach=False` one after another, as the originals' loop
over tensors does; equal up to rounding. Nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from inpbench.methods.compiled_update import CompiledUpdate


class StableAdamW(Optimizer):
    """See the module docstring; weight decay acts on every parameter, biases and norms included.

    Parameters without a gradient are skipped, sparse gradients raise RuntimeError, impossible constants ValueError.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        clip_threshold: float = 1.0,
        foreach: bool = True,
        compiled: CompiledUpdate | None = None,
    ) -> None:
        """foreach: all tensors together. compiled: what updates a group instead, where it can; see there."""
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0.0:
                raise ValueError(f"{name} must be at least 0, found {value}")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), found {betas}")
        if clip_threshold <= 0.0:
            raise ValueError(f"clip_threshold must be above 0, found {clip_threshold}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "clip_threshold": clip_threshold,
        }
        super().__init__(params, defaults)
        self._foreach = foreach
        self._compiled = compiled
        self.divisors: list[Tensor] = []  # r of each updated tensor at the last step, in order: for tests and diagnosis

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.divisors = []
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                (self._update if self._foreach else self._update_in_turn)(params, group)
        return loss

    def _moments(self, params: list[Tensor], amsgrad: bool) -> list[dict[str, Any]]:
        states = []
        for param in params:
            assert param.grad is not None
            if param.grad.is_sparse:
                raise RuntimeError("StableAdamW does not support sparse gradients")
            state = self.state[param]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
                if amsgrad:
                    state["max_exp_avg_sq"] = torch.zeros_like(param)
            state["step"] += 1
            states.append(state)
        return states

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
        states = self._moments(params, group["amsgrad"])
        grads: list[Tensor] = [param.grad for param in params]  # type: ignore[misc]
        if self._compiled is not None and self._compiled.fits(group, states):
            self.divisors += self._compiled(params, grads, states, group)
            return
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]

        torch._foreach_mul_(params, 1.0 - lr * group["weight_decay"])
        torch._foreach_lerp_(means, grads, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1.0 - beta2)
        if group["amsgrad"]:
            squares_max = [state["max_exp_avg_sq"] for state in states]
            torch._foreach_maximum_(squares_max, squares)
            squares = squares_max

        # den = d / c with d = sqrt(vmax) + eps c and c = sqrt(1 - b2^k): c goes into factors of whole tensors: fewer passes.
        corrections = [math.sqrt(1.0 - beta2 ** state["step"]) for state in states]
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, [eps * correction for correction in corrections])

        norms = torch._foreach_norm(torch._foreach_div(grads, denominators))
        divisors = torch._foreach_mul(
            norms, [c / (math.sqrt(param.numel()) * group["clip_threshold"]) for c, param in zip(corrections, params, strict=True)]
        )
        torch._foreach_clamp_min_(divisors, 1.0)
        self.divisors += list(divisors)

        sizes = [
            (1.0 - beta1 ** state["step"]) / (-lr * c) if lr else math.inf for state, c in zip(states, corrections, strict=True)
        ]
        torch._foreach_mul_(denominators, list(torch._foreach_mul(divisors, sizes)))
        torch._foreach_addcdiv_(params, means, denominators)

    def _update_in_turn(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """The equations as they stand, tensor by tensor."""
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
        for param, state in zip(params, self._moments(params, group["amsgrad"]), strict=True):
            grad, mean, square, step = param.grad, state["exp_avg"], state["exp_avg_sq"], state["step"]
            assert grad is not None
            param.mul_(1.0 - lr * group["weight_decay"])
            mean.mul_(beta1).add_(grad, alpha=1.0 - beta1)
            square.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
            if group["amsgrad"]:
                square = torch.maximum(state["max_exp_avg_sq"], square, out=state["max_exp_avg_sq"])
            denominator = square.sqrt().div_(math.sqrt(1.0 - beta2**step)).add_(eps)
            rms = (grad / denominator).norm() / math.sqrt(grad.numel())
            divisor = (rms / group["clip_threshold"]).clamp_min(1.0)
            self.divisors.append(divisor)
            param.addcdiv_(mean, denominator.mul_(divisor), value=-lr / (1.0 - beta1**step))
