"""The trainable part of INP-Former: prototypes out of an image, the image out of its prototypes.

    P = extractor(learnable queries, x)                   prototypes (B, M, D), one cross-attention block
    z = bottleneck MLP(x);  z <- block(z, P), 8 times     no residual around the attention: only prototypes pass
    coherence = mean over tokens of the smallest 1 - cos(x, P)
x is the mean of the target layers; patch tokens only, unless class and register tokens were kept: they then take part in everything
but the maps, the coherence included. Attribute names are a contract: official checkpoints need them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.methods.attention import ReluCosineAttention, SoftmaxCrossAttention
from inpbench.methods.blocks import CrossAttentionBlock, Mlp, initialise
from inpbench.methods.factored import factored_block, pays
from inpbench.methods.fusion import Features, Groups, group_maps


class InpFormerOutput(NamedTuple):
    """A reconstruction and what the coherence loss and the zero-shot map need."""

    targets: tuple[Tensor, ...]  # grouped encoder maps (B, D, h, w)
    outputs: tuple[Tensor, ...]  # grouped decoder maps (B, D, h, w)
    coherence: Tensor  # scalar, the mean of `distance` (and of the class and register tokens', where they are kept)
    distance: Tensor  # (B, h * w) 1 - cos of each token to its nearest prototype
    assignment: Tensor  # (B, h * w) which prototype that is
    prototypes: Tensor  # (B, M, D)


class InpFormerNetwork(nn.Module):
    """See the module docstring.

    The order of construction is the original's, so that the same generator draws the same tensors.
    """

    def __init__(self, dim: int, heads: int, inp_num: int, depth: int, groups: Groups) -> None:
        super().__init__()
        self.groups, self.heads = groups, heads
        self.factored = False  # whether decoder blocks may run in factors; the fast engine switches it on
        self.bottleneck = nn.ModuleList([Mlp(dim)])
        self.prototype_token = nn.Parameter(torch.randn(inp_num, dim))
        self.aggregation = nn.ModuleList([CrossAttentionBlock(dim, SoftmaxCrossAttention(dim, heads), residual=True)])
        self.decoder = nn.ModuleList(
            CrossAttentionBlock(dim, ReluCosineAttention(dim, heads), residual=False) for _ in range(depth)
        )
        initialise((self.bottleneck, self.decoder, self.aggregation))

    def extract(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> prototypes (B, M, D)."""
        prototypes = self.prototype_token.expand(tokens.shape[0], -1, -1)
        for block in self.aggregation:
            prototypes = block(prototypes, tokens)
        return prototypes

    def forward(self, features: Features) -> InpFormerOutput:
        """Features with fused (B, T, D), T = h * w, or more where class and register tokens are kept -> the reconstruction."""
        tokens = features.fused
        prototypes = self.extract(tokens)
        distance, assignment = nearest_prototype(tokens, prototypes)
        hidden = tokens
        for layer in self.bottleneck:
            hidden = layer(hidden)
        (_, count, dim), inp_num = tokens.shape, prototypes.shape[1]
        in_factors = self.factored and pays(dim, self.heads, inp_num, count)
        decoded = []
        for block in self.decoder:
            hidden = factored_block(block, hidden, prototypes) if in_factors else block(hidden, prototypes)
            decoded.append(hidden)
        height, width = features.groups[0].shape[-2:]
        outputs = group_maps([layer.to(tokens.dtype) for layer in reversed(decoded)], self.groups, (height, width))
        patches = count - height * width  # where they begin
        return InpFormerOutput(
            features.groups, outputs, distance.mean(), distance[:, patches:], assignment[:, patches:], prototypes
        )


def nearest_prototype(tokens: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cos of each token (B, N, D) to its nearest prototype (B, M, D), and which one: (B, N) and (B, N).

    Each norm is clamped at 1e-8; computed in the tokens' dtype, outside autocast.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens, dim=-1, eps=1e-8)
        directions = F.normalize(prototypes.to(tokens.dtype), dim=-1, eps=1e-8)
        nearest = (1.0 - unit @ directions.transpose(-2, -1)).min(dim=-1)
    return nearest.values, nearest.indices
