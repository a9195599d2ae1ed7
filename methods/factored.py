"""INP-Former's decoder block with its attention in factors: the same function, fewer products.

Without a residual, a token leaves the attention as a mixture of R = heads x M rows, the prototypes' values through the projection:
    y = A rows,  rows (R, D)                      instead of (A v) through a D x D projection of every token
    LN(y) fc1 = (A / std y) (centred rows) fc1    instead of D x 4D products of every token; bias and mean are two more rows
Exact but for rounding. At ViT-B, 392 pixels and 6 prototypes R is 72: 5.9 D^2 multiply-adds a token and block instead of 10 D^2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.methods.attention import ReluCosineAttention
from inpbench.methods.blocks import CrossAttentionBlock

_ALIGN = 8  # rows are padded to a multiple: matrix units want it


def pays(dim: int, heads: int, prototypes: int, tokens: int) -> bool:
    """Whether the factors take clearly fewer products: R rows a token, and R rows an image instead of one a token."""
    rows = heads * prototypes
    return rows * (1.0 / dim + 1.0 / tokens) < 0.5


def factored_block(block: nn.Module, x: Tensor, source: Tensor) -> Tensor:
    """`block(x, source)` for a block without residual: x (B, N, D), source (B, M, D) -> (B, N, D)."""
    assert isinstance(block, CrossAttentionBlock) and isinstance(block.attn, ReluCosineAttention)
    assert not block.residual and block.mlp.drop.p == 0.0
    attention, norm, mlp = block.attn, block.norm2, block.mlp
    matrix, v = attention.weights(block.norm1(x), block.norm1(source))  # (B, heads, N, M), (B, heads, M, d)
    batch, heads, count, prototypes = matrix.shape
    width = attention.proj.weight.shape[0]
    used = heads * prototypes
    extra = -(-(used + 2) // _ALIGN) * _ALIGN - used  # columns: the bias of the projection, that of fc1, then zeros

    projection = attention.proj.weight.view(width, heads, width // heads).permute(1, 2, 0)  # (heads, d, D)
    rows = torch.cat(((v @ projection).flatten(1, 2), attention.proj.bias.to(v.dtype).expand(batch, 1, width)), dim=1)
    mixture = matrix.transpose(1, 2).flatten(2)  # (B, N, R)
    ones = torch.ones((batch, count, 1), dtype=mixture.dtype, device=mixture.device)
    y = torch.cat((mixture, ones, mixture.new_zeros(batch, count, extra - 1)), dim=2) @ F.pad(rows, (0, 0, 0, extra - 1))

    variance = torch.var(y.to(torch.promote_types(y.dtype, torch.float32)), dim=-1, unbiased=False, keepdim=True)  # not in bfloat16
    scale = torch.rsqrt(variance + norm.eps)  # (B, N, 1)
    centred = (rows - rows.mean(dim=-1, keepdim=True)) * norm.weight
    hidden_rows = F.linear(centred, mlp.fc1.weight)  # (B, R + 1, 4D)
    bias = F.linear(norm.bias, mlp.fc1.weight, mlp.fc1.bias).to(hidden_rows.dtype)
    hidden_rows = torch.cat((hidden_rows, bias.expand(batch, 1, -1)), dim=1)
    padding = mixture.new_zeros(batch, count, extra - 2)
    hidden = torch.cat((mixture * scale, scale.to(mixture.dtype), ones, padding), dim=2) @ F.pad(hidden_rows, (0, 0, 0, extra - 2))
    output: Tensor = y + mlp.fc2(mlp.act(hidden))
    return output
