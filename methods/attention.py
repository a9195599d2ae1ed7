"""The attentions of the trainable parts. Heads are head-major: channel = head * d + index; Linear layers have biases.

Self-attention (Dinomaly's decoder): `LinearAttention` phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)) with phi = ELU + 1,
`ExplicitLinearAttention` the same by its (N, N) matrix, `SoftmaxAttention`.
Cross-attention (INP-Former): `SoftmaxCrossAttention` extracts the prototypes, `ReluCosineAttention` reads from them.
Attribute names (qkv, q, kv, proj, learn_scale) are a contract: official checkpoints need them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.methods import narrow_heads


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """(B, N, parts * D) as `parts` tensors (B, heads, N, d).

    Cut along the channels, so that the parts' gradients are put side by side in the layout of `x`, not stacked and then copied.
    """
    batch, count, width = x.shape
    shape = (batch, count, heads, width // parts // heads)
    return tuple(part.reshape(shape).transpose(1, 2) for part in x.chunk(parts, dim=-1))


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) as (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)


def _row_sums(q: Tensor, k: Tensor) -> Tensor:
    """sum_m q_n . k_m of (B, heads, N, d) twice -> (B, heads, N)."""
    return (q @ k.sum(dim=-2)[..., None])[..., 0]


# --- self-attention -----------------------------------------------------------------------------------------------------


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, eps: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.eps = eps
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)


class LinearAttention(_SelfAttention):
    """Attention without a softmax, linear in N.

    eps is added to the denominator, which underflows to 0 (NaN) for inputs below about -17 in float32; the published class has 0.
    """

    narrow = False  # whether training may use `methods.narrow_heads`; the fast engine switches it on

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        if self.narrow and narrow_heads.pays(x, self.heads):
            qkv = narrow_heads.columns(x, self.qkv)
            return narrow_heads.tokens(narrow_heads.linear_attention(qkv, self.heads, self.eps), self.proj)
        return self.attend(x)[0]

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output (B, N, D) and the summary sum_n phi(k_n) v_n^T (B, heads, d, d)."""
        q, k, v = self._features(x)
        # Heads in a row before k is turned: a product reads a turned matrix as it is, `@` would make a turned copy.
        summary = torch.bmm(k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)).view(*k.shape[:2], k.shape[-1], v.shape[-1])
        normaliser = _row_sums(q, k)[..., None] + self.eps  # (B, heads, N, 1)
        return self.proj(merge_heads(q @ summary / normaliser)), summary

    def denominator(self, x: Tensor) -> Tensor:
        """phi(q) . sum phi(k) before eps is added (B, heads, N): where it is 0 the output is NaN."""
        q, k, _ = self._features(x)
        return _row_sums(q, k)

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        return F.elu(q) + 1.0, F.elu(k) + 1.0, v


class ExplicitLinearAttention(_SelfAttention):
    """The same by its normalised matrix; quadratic in N, equal up to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.attend(x)[0]

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output (B, N, D) and the normalised attention (B, heads, N, N)."""
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        matrix = (F.elu(q) + 1.0) @ (F.elu(k) + 1.0).transpose(-2, -1)
        matrix = matrix / (matrix.sum(dim=-1, keepdim=True) + self.eps)
        return self.proj(merge_heads(matrix @ v)), matrix


class SoftmaxAttention(_SelfAttention):
    """Scaled dot-product attention, for comparison; eps has no meaning here."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        output: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return output


SELF_ATTENTIONS: dict[str, type[_SelfAttention]] = {
    "linear": LinearAttention,
    "explicit_linear": ExplicitLinearAttention,
    "softmax": SoftmaxAttention,
}


# --- cross-attention ----------------------------------------------------------------------------------------------------


class _CrossAttention(nn.Module):
    narrow = False  # whether training may use `methods.narrow_heads`; the fast engine switches it on

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def project(self, queries: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q (B, heads, N, d) of the queries, k and v (B, heads, M, d) of the source."""
        k, v = split_heads(self.kv(source), 2, self.heads)
        return split_heads(self.q(queries), 1, self.heads)[0], k, v


def few_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention by its matrix: q (B, heads, M, d), k and v (B, heads, N, d) -> (B, heads, M, d), M a handful.

    The matrix is small. Torch 2.11 gives Hopper cuDNN's fused kernel: it has raised for few queries (pytorch #138529).
    """
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1) @ v


class SoftmaxCrossAttention(_CrossAttention):
    """Scaled dot-product attention from queries to a source."""

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        """Queries (B, M, D), source (B, N, D) -> (B, M, D)."""
        if self.narrow and narrow_heads.pays(source, self.heads):
            q = split_heads(self.q(queries), 1, self.heads)[0]
            mixed = narrow_heads.softmax_cross(q, narrow_heads.columns(source, self.kv))
        elif source.device.type == "cpu":
            mixed = F.scaled_dot_product_attention(*self.project(queries, source))
        else:
            mixed = few_queries(*self.project(queries, source))
        output: Tensor = self.proj(merge_heads(mixed))
        return output


class ReluCosineAttention(_CrossAttention):
    """A = ReLU(cos(q, k) * learn_scale), not normalised, one learned scale a head."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.learn_scale = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        """Queries (B, N, D), source (B, M, D) -> (B, N, D)."""
        if self.narrow and narrow_heads.pays(queries, self.heads):
            k, v = split_heads(self.kv(source), 2, self.heads)
            k = F.normalize(k, dim=-1) * self.learn_scale
            return narrow_heads.tokens(narrow_heads.relu_cosine(narrow_heads.columns(queries, self.q), k, v), self.proj)
        return self.attend(queries, source)[0]

    def attend(self, queries: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Output (B, N, D) and the attention (B, heads, N, M)."""
        attention, v = self.weights(queries, source)
        return self.proj(merge_heads(attention @ v)), attention

    def weights(self, queries: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """The attention (B, heads, N, M) and the values (B, heads, M, d) it is applied to."""
        q, k, v = self.project(queries, source)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return F.relu(q @ k.transpose(-2, -1) * self.learn_scale), v
