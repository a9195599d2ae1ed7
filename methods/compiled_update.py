"""StableAdamW's update in two compiled passes over the tensors, for a GPU, where memory decides how long it takes.

`optim.StableAdamW` reads or writes each tensor 27 times a step (ViT-B: 7 GB, 2.5 ms at 3 TB/s); compiled it is 13 times:
    advance   g, m, v, vmax -> m, v, vmax, g / den         the norms of g / den are taken in between, by one kernel
    move      p, m, vmax, r -> p
The same equations as there, up to the last digit. What changes from step to step comes in as tensors: numbers would be compiled in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inpbench.methods.compiling import CompiledOnce


class CompiledUpdate:
    """The update of a group whose tensors have all had the same number of steps, with AMSGrad."""

    def __init__(self, enabled: bool = True) -> None:
        """enabled: whether to compile at all; the two functions run as written otherwise."""
        self._advance = CompiledOnce(advance, "the optimiser's moments", enabled)
        self._move = CompiledOnce(move, "the optimiser's step", enabled)

    @staticmethod
    def fits(group: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> bool:
        """Whether this class can do it."""
        return bool(group["amsgrad"]) and len({state["step"] for state in states}) == 1

    def __call__(
        self, params: list[Tensor], grads: list[Tensor], states: Sequence[Mapping[str, Any]], group: Mapping[str, Any]
    ) -> list[Tensor]:
        """Update the parameters and their states, whose `step` counts this step already; returns r of each tensor."""
        lr, (beta1, beta2), step = group["lr"], group["betas"], states[0]["step"]
        means, squares, largest = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
        correction = math.sqrt(1.0 - beta2**step)
        number = partial(torch.full, (), dtype=params[0].dtype, device=params[0].device)  # by a kernel: nothing waits
        floor = number(fill_value=group["eps"] * correction)
        key = len(params)
        ratios = self._advance(key, grads, means, squares, largest, beta1, beta2, floor)
        scales = [correction / (math.sqrt(param.numel()) * group["clip_threshold"]) for param in params]
        divisors = torch._foreach_mul(torch._foreach_norm(ratios), scales)
        torch._foreach_clamp_min_(divisors, 1.0)
        keep = number(fill_value=1.0 - lr * group["weight_decay"])
        size = number(fill_value=lr * correction / (1.0 - beta1**step))
        self._move(key, params, means, largest, list(divisors), keep, size, floor)
        return list(divisors)


def advance(
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    largest: list[Tensor],
    beta1: float,
    beta2: float,
    floor: Tensor,
) -> list[Tensor]:
    """Update the moments; returns the gradients over sqrt(vmax) + floor."""
    torch._foreach_lerp_(means, grads, 1.0 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, value=1.0 - beta2)
    torch._foreach_maximum_(largest, squares)
    return list(torch._foreach_div(grads, denominators(largest, floor)))


def move(
    params: list[Tensor],
    means: list[Tensor],
    largest: list[Tensor],
    divisors: list[Tensor],
    keep: Tensor,
    size: Tensor,
    floor: Tensor,
) -> None:
    """P = keep p - size m / (r (sqrt(vmax) + floor))."""
    shrunk = torch._foreach_mul(denominators(largest, floor), divisors)
    steps = torch._foreach_mul(torch._foreach_div(means, shrunk), [size] * len(params))
    torch._foreach_mul_(params, [keep] * len(params))
    torch._foreach_sub_(params, steps)


def denominators(largest: list[Tensor], floor: Tensor) -> list[Tensor]:
    """Sqrt(vmax) + floor."""
    return list(torch._foreach_add(torch._foreach_sqrt(largest), [floor] * len(largest)))  # a list: a lone tensor may be waited for
