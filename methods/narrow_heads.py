"""Attention with narrow heads on a CPU: tokens in columns, (B, D, N) instead of (B, N, D), so that a head is a block of whole rows.

Heads of 8 channels make products of 8 x 8, transposed copies and sums over 8 neighbours, which leave a processor idle. In columns
the long side of every product is the tokens, a head's sums run over whole rows, and no head is ever copied: linear layers write
columns (`columns`) and read them (`tokens`) at no further cost. The gradients are written out, in as few passes as they take. The
same functions as in `methods.attention`, up to rounding; used in training by the fast engine alone. What it saves is in
results/speed/training_cpu.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDEST = 16  # channels of a head
_EPS = 1e-12  # every norm is at least this, as in `F.normalize`


def pays(x: Tensor, heads: int) -> bool:
    """Whether to use this module for tokens (B, N, D): gradients on a CPU, heads of at most 16 channels; B is 0 on some ranks."""
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and len(x) > 0
        and x.shape[-1] <= WIDEST * heads
        and not torch.is_autocast_enabled("cpu")
    )


# --- linear layers ------------------------------------------------------------------------------------------------------


def columns(x: Tensor, linear: nn.Linear) -> Tensor:
    """`linear(x)` in columns: (B, N, D) -> (B, out, N)."""
    output: Tensor = _Columns.apply(x, linear.weight, linear.bias)
    return output


def tokens(x: Tensor, linear: nn.Linear) -> Tensor:
    """`linear` of tokens in columns: (B, D, N) -> (B, N, out)."""
    output: Tensor = _Tokens.apply(x, linear.weight, linear.bias)
    return output


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), x.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        at_x = torch.bmm(gradient.transpose(1, 2), weight.expand(len(x), -1, -1))
        return at_x, torch.bmm(gradient, x).sum(0), gradient.sum((0, 2))


class _Tokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias, x.transpose(1, 2), weight.t().expand(len(x), -1, -1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (x, weight), across = ctx.saved_tensors, gradients[0].transpose(1, 2)
        at_x = torch.bmm(weight.t().expand(len(x), -1, -1), across)
        return at_x, torch.bmm(across, x.transpose(1, 2)).sum(0), gradients[0].sum((0, 1))


# --- self-attention -----------------------------------------------------------------------------------------------------


def linear_attention(qkv: Tensor, heads: int, eps: float) -> Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) . sum phi(k) + eps) a head, phi = ELU + 1: qkv (B, 3 D, N) -> (B, D, N), all in columns."""
    output: Tensor = _LinearAttention.apply(qkv, heads, eps)
    return output


class _LinearAttention(torch.autograd.Function):
    """With a row of ones below each head's values, one product gives its summary and, in the last row, its normaliser."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, eps: float) -> Tensor:
        batch, width, count = qkv.shape
        q, k, v = qkv.view(batch, 3, heads, width // 3 // heads, count).unbind(1)  # (B, heads, d, N)
        q, k = (F.elu(part).add_(1.0).flatten(0, 1) for part in (q, k))  # (B heads, d, N)
        values = F.pad(v, (0, 0, 0, 1), value=1.0).flatten(0, 1)  # (B heads, d + 1, N)
        summary = torch.bmm(values, k.transpose(1, 2))  # (B heads, d + 1, d)
        result = torch.bmm(summary, q)
        inverse = result[:, -1:].add(eps).reciprocal_()
        output = result[:, :-1] * inverse
        ctx.save_for_backward(q, k, values, summary, inverse, output)
        return output.view(batch, width // 3, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        q, k, values, summary, inverse, output = ctx.saved_tensors
        batch, _, count = gradients[0].shape
        at_result = torch.empty_like(values)
        torch.mul(gradients[0].reshape_as(output), inverse, out=at_result[:, :-1])
        torch.sum(at_result[:, :-1] * output, 1, keepdim=True, out=at_result[:, -1:]).neg_()
        at_summary = torch.bmm(at_result, q.transpose(1, 2))
        total = q.new_empty(batch, 3, *output.view(batch, -1, *output.shape[1:]).shape[1:])  # (B, 3, heads, d, N)
        at_q, at_k, at_v = total.unbind(1)
        at_phi = torch.bmm(summary.transpose(1, 2), at_result)
        torch.mul(at_phi.view_as(at_q), q.clamp(max=1.0).view_as(at_q), out=at_q)  # phi' = min(phi, 1)
        at_phi = torch.bmm(at_summary.transpose(1, 2), values)
        torch.mul(at_phi.view_as(at_k), k.clamp(max=1.0).view_as(at_k), out=at_k)
        at_v.copy_(torch.bmm(at_summary[:, :-1], k).view_as(at_v))
        return total.view(batch, -1, count), None, None


# --- cross-attention ----------------------------------------------------------------------------------------------------


def relu_cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ReLU(cos(q, k)) v a head: q in columns (B, D, N), k and v (B, heads, M, d), k of any length -> (B, D, N)."""
    output: Tensor = _ReluCosine.apply(q, k, v)
    return output


class _ReluCosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, dim, count = q.shape
        k, v = k.flatten(0, 1), v.flatten(0, 1)  # (B heads, M, d)
        q = q.view(len(k), -1, count)  # (B heads, d, N)
        norm = q.square().sum(1, keepdim=True).sqrt_()
        unit = q / norm.clamp_min(_EPS)
        mixture = torch.bmm(k, unit).relu_()  # (B heads, M, N)
        ctx.save_for_backward(k, v, norm, unit, mixture)
        return torch.bmm(v.transpose(1, 2), mixture).view(batch, dim, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v, norm, unit, mixture = ctx.saved_tensors
        shape = gradients[0].shape
        gradient = gradients[0].reshape_as(unit)
        at_v = torch.bmm(mixture, gradient.transpose(1, 2))
        at_score = torch.bmm(v, gradient).mul_(mixture > 0.0)
        at_k = torch.bmm(at_score, unit.transpose(1, 2))
        at_unit = torch.bmm(k.transpose(1, 2), at_score)
        along = (at_unit * unit).sum(1, keepdim=True).mul_(norm >= _EPS)  # a clamped norm is a constant
        at_q = at_unit.addcmul_(unit, along, value=-1.0).div_(norm.clamp_min(_EPS))
        heads = (shape[0], -1, *k.shape[1:])
        return at_q.view(shape), at_k.view(heads), at_v.view(heads)


def softmax_cross(q: Tensor, kv: Tensor) -> Tensor:
    """Scaled dot-product attention a head: q (B, heads, M, d), k and v in columns (B, 2 D, N) -> (B, heads, M, d)."""
    batch, heads, _, width = q.shape
    k, v = kv.view(batch, 2, heads, width, -1).unbind(1)  # (B, heads, d, N)
    return torch.softmax((q * width**-0.5) @ k, dim=-1) @ v.transpose(-2, -1)
