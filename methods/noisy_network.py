"""The trainable part of Dinomaly and of CRR's first stage: a noisy bottleneck and 8 blocks with linear attention.

    z = bottleneck(x), x the mean of the target layers (class and register tokens included);  z <- block(z), 8 times
The bottleneck is a dropout MLP; CRR's masks its input besides. Attribute names are a contract: official checkpoints need them.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from inpbench.methods.attention import SELF_ATTENTIONS
from inpbench.methods.blocks import Mlp, SelfAttentionBlock, initialise
from inpbench.methods.fusion import Features, Groups, group_maps


class NoisyOutput(NamedTuple):
    """A reconstruction."""

    targets: tuple[Tensor, ...]  # grouped encoder maps (B, D, h, w)
    outputs: tuple[Tensor, ...]  # grouped decoder maps (B, D, h, w)


class NoisyNetwork(nn.Module):
    """See the module docstring. attention: a name of `SELF_ATTENTIONS`; bottleneck: an `Mlp` of this width, or a subclass's."""

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int,
        groups: Groups,
        bottleneck: Mlp,
        attention: str = "linear",
        attention_eps: float = 0.0,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.bottleneck = nn.ModuleList([bottleneck])
        self.decoder = nn.ModuleList(
            SelfAttentionBlock(dim, SELF_ATTENTIONS[attention](dim, heads, attention_eps)) for _ in range(depth)
        )
        initialise((self.bottleneck, self.decoder))

    def forward(self, features: Features) -> NoisyOutput:
        """Features with fused (B, T, D) -> the reconstruction."""
        hidden = features.fused
        for layer in self.bottleneck:
            hidden = layer(hidden)
        decoded = []
        for block in self.decoder:
            hidden = block(hidden)
            decoded.append(hidden)
        height, width = features.groups[0].shape[-2:]
        outputs = group_maps([layer.to(features.fused.dtype) for layer in reversed(decoded)], self.groups, (height, width))
        return NoisyOutput(features.groups, outputs)
