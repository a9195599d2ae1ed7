"""Blocks of the trainable parts, and their initialisation.

LayerNorm eps is 1e-8 here (the encoder's is 1e-6), MLP ratio 4, exact GELU. Attribute names are a contract: official
checkpoints need them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from inpbench.methods import narrow_mlp
from inpbench.methods.shards import BatchDropout

NORM_EPS = 1e-8
MLP_RATIO = 4


class Mlp(nn.Module):
    """Linear D -> 4D, GELU, Linear 4D -> D, with dropout at input, hidden and output (0 for most uses)."""

    narrow = False  # whether training may use `methods.narrow_mlp`; the fast engine switches it on

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self._free: narrow_mlp.Buffers = []
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)
        self.drop = BatchDropout(dropout)  # one module, applied three times

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if self.narrow and self.drop.p == 0.0 and narrow_mlp.pays(x):
            return narrow_mlp.mlp(x, self.fc1, self.fc2, self._free)
        output: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(self.drop(x))))))
        return output


class SelfAttentionBlock(nn.Module):
    """x + attn(norm1(x)), then + mlp(norm2(.))."""

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class CrossAttentionBlock(nn.Module):
    """y = attn(norm1(x), norm1(source)) [+ x], then y + mlp(norm2(y)); one LayerNorm for both inputs.

    residual: whether x is added to the attention's output. INP-Former's decoder has none there, so that nothing but the
    prototypes can be passed on.
    """

    def __init__(self, dim: int, attention: nn.Module, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """X (B, N, D), source (B, M, D) -> (B, N, D)."""
        y = self.attn(self.norm1(x), self.norm1(source))
        if self.residual:
            y = x + y
        output: Tensor = y + self.mlp(self.norm2(y))
        return output


def initialise(modules: Iterable[nn.Module]) -> None:
    """Linear weights truncated normal (std 0.01, cut at 0.03), biases 0, LayerNorms 1 and 0, in the given order."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.01, a=-0.03, b=0.03)
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.LayerNorm):
                nn.init.ones_(part.weight)
                nn.init.zeros_(part.bias)
