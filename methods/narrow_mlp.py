"""A narrow MLP on a CPU: its hidden activations live in memory that is kept from step to step.

    h = x W1^T + b1;  a = GELU(h);  y = a W2^T + b2
At 96 channels the two products take hardly longer than the system takes to hand out, page by page, fresh memory for h, a and their
gradients, 2.4 MB each for a batch of 8, at every step and layer. Here h and a are written into buffers that the backward pass gives
back, and both gradients overwrite a. The same numbers as torch's own operations; used in training by the fast engine alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDEST = 256  # channels: beyond, the products leave nothing to gain, and the buffers would be large

Buffers = list[tuple[Tensor, Tensor]]
"""Pairs (h, a), each (B N, hidden), that no graph holds."""


def pays(x: Tensor) -> bool:
    """Whether to use this module for tokens (B, N, D): gradients on a CPU, at most 256 channels; B is 0 on some ranks."""
    return (
        torch.is_grad_enabled()  # first: an exporter, which asks without gradients, is not to learn the size of its batch
        and x.device.type == "cpu"
        and len(x) > 0
        and x.shape[-1] <= WIDEST
        and not torch.is_autocast_enabled("cpu")
    )


def mlp(x: Tensor, first: nn.Linear, second: nn.Linear, free: Buffers) -> Tensor:
    """second(GELU(first(x))) of tokens (..., D); `free` are the layer's buffers between steps."""
    rows = x.reshape(-1, x.shape[-1])
    output: Tensor = _Mlp.apply(rows, first.weight, first.bias, second.weight, second.bias, free)
    return output.view(*x.shape[:-1], -1)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, free: Buffers) -> Tensor:
        shape = (len(x), len(weight1))
        h, a = free.pop() if free else (x.new_empty(shape), x.new_empty(shape))
        if h.shape != shape or h.dtype != x.dtype:  # another batch
            h, a = x.new_empty(shape), x.new_empty(shape)
        torch.addmm(bias1, x, weight1.t(), out=h)
        torch.ops.aten.gelu.out(h, out=a)
        ctx.save_for_backward(x, weight1, weight2)
        ctx.buffers, ctx.free = (h, a), free
        return torch.addmm(bias2, a, weight2.t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, None]:
        (x, weight1, weight2), (gradient,) = ctx.saved_tensors, gradients
        if ctx.buffers is None:
            raise RuntimeError("This MLP keeps its activations for one backward pass.")
        (h, a), ctx.buffers = ctx.buffers, None
        at_weight2 = torch.mm(gradient.t(), a)
        at_hidden = torch.mm(gradient, weight2, out=a)
        torch.ops.aten.gelu_backward.grad_input(at_hidden, h, grad_input=at_hidden)
        at_weight1, at_bias1 = torch.mm(at_hidden.t(), x), at_hidden.sum(0)
        at_x = torch.mm(at_hidden, weight1) if ctx.needs_input_grad[0] else None
        ctx.free.append((h, a))
        return at_x, at_weight1, at_bias1, at_weight2, gradient.sum(0), None
