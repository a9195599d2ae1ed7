"""Linear attention with narrow heads on a CPU: whole matrices of D channels instead of a small product a head.

What belongs to two different heads is 0 in a block-diagonal matrix: every head is computed by one product, and tokens never leave
the layout (B, N, D). That is H times the operations of a product a head, and less time where heads have a few channels: products
of 8 x 8 leave the processor idle, transposed copies cost more than they do. Measured on Dinomaly's preset `demo` (12 heads of 8):
a step takes 6 to 22 % less. The gradients are written out, in as few passes over the tokens as they take. The same function as
`methods.attention.LinearAttention`, up to rounding; used by the fast engine alone. (INP-Former's attention gains nothing by it.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

WIDEST = 16  # channels of a head


def pays(x: Tensor, heads: int) -> bool:
    """Whether to use this module for tokens (B, N, D): gradients on a CPU, heads of at most 16 channels."""
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.shape[-1] <= WIDEST * heads
        and not torch.is_autocast_enabled("cpu")
    )


@lru_cache(maxsize=8)
def membership(dim: int, heads: int, dtype: torch.dtype) -> Tensor:
    """(heads, dim): 1 where a channel belongs to a head, else 0. x @ its transpose sums over a head, y @ it repeats for a head."""
    return torch.eye(heads, dtype=dtype).repeat_interleave(dim // heads, dim=1)


@lru_cache(maxsize=8)
def diagonal(dim: int, heads: int, dtype: torch.dtype) -> Tensor:
    """(dim, dim): 1 where two channels belong to one head, else 0."""
    member = membership(dim, heads, dtype)
    return member.t() @ member


def linear_attention(qkv: Tensor, heads: int, eps: float) -> Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) . sum phi(k) + eps) a head, phi = ELU + 1: qkv (B, N, 3 D) -> (B, N, D)."""
    output: Tensor = _LinearAttention.apply(qkv, heads, eps)
    return output


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, eps: float) -> Tensor:
        dim = qkv.shape[-1] // 3
        member = membership(dim, heads, qkv.dtype)
        both = F.elu(qkv[..., : 2 * dim]).add_(1.0)
        q, k, v = both[..., :dim], both[..., dim:], qkv[..., 2 * dim :]
        summary = torch.bmm(k.transpose(1, 2), v).mul_(diagonal(dim, heads, qkv.dtype))  # (B, D, D)
        total = k.sum(1)[..., None] * member.t()  # (B, D, heads)
        inverse = torch.bmm(q, total).add_(eps).reciprocal_() @ member  # (B, N, D)
        output = torch.bmm(q, summary).mul_(inverse)
        ctx.save_for_backward(both, v, summary, total, inverse, output)
        ctx.heads = heads
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        both, v, summary, total, inverse, output = ctx.saved_tensors
        batch, count, dim = output.shape
        member = membership(dim, ctx.heads, output.dtype)
        q, k = both[..., :dim], both[..., dim:]
        towards = gradients[0] * inverse  # at the numerator
        away = (towards * output) @ member.t()  # less at the denominator, (B, N, heads)
        at_summary = torch.bmm(q.transpose(1, 2), towards).mul_(diagonal(dim, ctx.heads, output.dtype))
        at_total = (torch.bmm(q.transpose(1, 2), away) * member.t()).sum(-1, keepdim=True).transpose(1, 2)  # less, (B, 1, D)
        result = torch.empty(batch, count, 3 * dim, dtype=output.dtype)
        slope = both.clamp(max=1.0)  # phi' = min(phi, 1)
        at_q = torch.bmm(towards, summary.transpose(1, 2)).baddbmm_(away, total.transpose(1, 2), alpha=-1.0)
        torch.mul(at_q, slope[..., :dim], out=result[..., :dim])
        at_k = torch.bmm(v, at_summary.transpose(1, 2)).sub_(at_total)
        torch.mul(at_k, slope[..., dim:], out=result[..., dim : 2 * dim])
        result[..., 2 * dim :] = torch.bmm(k, at_summary)
        return result, None, None
