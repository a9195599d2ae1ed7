"""The BEiT transformer of the reconstruction model and of the VQ-KD tokenizer, with every switch that their files can have.

    tokens = [class, patches] (+ position embedding);  h += DP(g1 * Attn(LN(h)));  h += DP(g2 * MLP(LN(h)))
    attention: no key bias; logits + relative position bias (a table for all blocks, or one for each)
Attribute names are a contract: official files load strictly. timm's Beit has the same numbers but no mask token, another stream
of drop-path draws, and names that move between its releases, so the 100 lines stand here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.methods.attention import merge_heads, split_heads

NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class TrunkShape:
    """A transformer's architecture; the defaults are BEiT-base at 224 pixels."""

    image: int = 224  # side in pixels (in cells of its input map for the tokenizer's decoder)
    patch: int = 16
    channels: int = 3
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    absolute: bool = False  # position embedding
    shared_bias: bool = True  # one relative position table for all blocks
    block_bias: bool = False  # a relative position table in each block
    layer_scale: float | None = 0.1  # start value; none or 0: no LayerScale
    drop_path: float = 0.0  # rate of the last block; the first has none

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image // self.patch


def relative_index(side: int) -> Tensor:
    """Rows of the bias table for every (query, key) of [class, side x side patches], (N + 1, N + 1) int64."""
    at = torch.arange(side)
    rows, columns = at.repeat_interleave(side), at.repeat(side)
    width = 2 * side - 1
    index = torch.zeros(side * side + 1, side * side + 1, dtype=torch.int64)
    index[1:, 1:] = (rows[:, None] - rows + side - 1) * width + (columns[:, None] - columns + side - 1)
    index[0, :] = width * width
    index[:, 0] = width * width + 1
    index[0, 0] = width * width + 2
    return index


class RelativeBias(nn.Module):
    """A table of relative positions and its look-up."""

    relative_position_index: Tensor

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2 + 3, heads))
        self.register_buffer("relative_position_index", relative_index(side))

    def forward(self) -> Tensor:
        """The bias (heads, N + 1, N + 1)."""
        return look_up(self.relative_position_bias_table, self.relative_position_index)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """Table (T, heads) at index (N + 1, N + 1) -> (heads, N + 1, N + 1)."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


class BeitAttention(nn.Module):
    """Softmax attention with query and value biases and an added bias of relative positions."""

    relative_position_index: Tensor

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_bias = nn.Parameter(torch.zeros(shape.dim)) if shape.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(shape.dim)) if shape.qkv_bias else None
        self.relative_position_bias_table: nn.Parameter | None = None
        if shape.block_bias:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * shape.side - 1) ** 2 + 3, shape.heads))
            self.register_buffer("relative_position_index", relative_index(shape.side))
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim, bias=False)
        self.proj = nn.Linear(shape.dim, shape.dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X (B, N, D), bias (heads, N, N) -> (B, N, D)."""
        linear = None
        if self.q_bias is not None and self.v_bias is not None:
            linear = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        q, k, v = split_heads(F.linear(x, self.qkv.weight, linear), 3, self.heads)
        if self.relative_position_bias_table is not None:
            own = look_up(self.relative_position_bias_table, self.relative_position_index)
            bias = own if bias is None else own + bias
        mask = None if bias is None else bias[None].to(q.dtype)
        output: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))
        return output


class DropPath(nn.Module):
    """Stochastic depth: a branch of a sample is left out with probability p, and divided by 1 - p where it stays."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.uniform: Callable[[Tensor], Tensor] = lambda x: torch.rand(len(x), dtype=x.dtype, device=x.device)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D); one number in [0, 1) is drawn for each sample, none in eval mode or at rate 0."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.floor(1.0 - self.rate + self.uniform(x))
        return x / (1.0 - self.rate) * keep[:, None, None]


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D), exact GELU."""
        output: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return output


class BeitBlock(nn.Module):
    """One block; gamma_1 and gamma_2 are there where LayerScale is on."""

    def __init__(self, shape: TrunkShape, drop_path: float) -> None:
        super().__init__()
        scaled = bool(shape.layer_scale)
        self.gamma_1 = nn.Parameter(torch.full((shape.dim,), shape.layer_scale or 0.0)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.full((shape.dim,), shape.layer_scale or 0.0)) if scaled else None
        self.norm1 = nn.LayerNorm(shape.dim, eps=NORM_EPS)
        self.attn = BeitAttention(shape)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(shape.dim, eps=NORM_EPS)
        self.mlp = _Mlp(shape.dim, int(shape.dim * shape.mlp_ratio))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X (B, N, D), shared bias (heads, N, N) -> (B, N, D)."""
        attended = self.attn(self.norm1(x), bias)
        x = x + self.drop_path(attended if self.gamma_1 is None else self.gamma_1 * attended)
        hidden = self.mlp(self.norm2(x))
        output: Tensor = x + self.drop_path(hidden if self.gamma_2 is None else self.gamma_2 * hidden)
        return output


class _PatchEmbed(nn.Module):
    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(shape.channels, shape.dim, kernel_size=shape.patch, stride=shape.patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D), row by row."""
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class Trunk(nn.Module):
    """Class token, patches and blocks; what comes after the last block belongs to who uses it."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.shape = shape
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.side**2 + 1, shape.dim)) if shape.absolute else None
        self._add_parameters()
        self.patch_embed = _PatchEmbed(shape)
        self.rel_pos_bias = RelativeBias(shape.side, shape.heads) if shape.shared_bias else None
        rates = torch.linspace(0, shape.drop_path, shape.depth, dtype=torch.float64).tolist()
        self.blocks = nn.ModuleList(BeitBlock(shape, rate) for rate in rates)

    def _add_parameters(self) -> None:
        """For a subclass: tensors that come between the class token and the patch embedding in the official order."""

    def run(self, patches: Tensor) -> Tensor:
        """Patch tokens (B, N, D) -> output of the last block (B, N + 1, D), class token first."""
        hidden = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        if self.pos_embed is not None:
            hidden = hidden + self.pos_embed
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        for block in self.blocks:
            hidden = block(hidden, bias)
        return hidden
