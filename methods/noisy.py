"""What Dinomaly and CRR's first stage share: the network behind a noisy bottleneck, and a loss that spares the easy points.

The gradient of a growing share p of easy points is shrunk: p(step) goes from 0 to `mining_share` over `mining_ramp` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from inpbench.harness.api import Context
from inpbench.methods.blocks import Mlp
from inpbench.methods.losses import hard_mining_weight, mined_global_cosine
from inpbench.methods.noisy_network import NoisyNetwork
from inpbench.methods.noisy_params import NoisyParams
from inpbench.methods.reconstruction import Reconstruction, ReconstructionMethod


class NoisyReconstruction(ReconstructionMethod):
    """A `harness.api.Method`; a method derives from it and may change the bottleneck."""

    params: NoisyParams

    def __init__(self, params: NoisyParams, ctx: Context) -> None:
        self.keep_prefix = not params.remove_class_token
        super().__init__(params, ctx)
        self.advice = f"The linear attention's denominator can reach 0. Type: --set {params.NAME}.attention_eps=1e-6"

    def bottleneck(self) -> Mlp:
        """The bottleneck: a dropout MLP."""
        return Mlp(self.encoder.dim, self.params.dropout)

    def build(self) -> nn.Module:
        """The bottleneck and the decoder."""
        params = self.params
        return NoisyNetwork(
            self.encoder.dim,
            self.encoder.heads,
            params.decoder_depth,
            params.decoder_groups,
            self.bottleneck(),
            params.attention,
            params.attention_eps,
        )

    def mining_share(self, step: int) -> float:
        """The share p of easy points at a step (0-based): a ramp from 0 to the final share."""
        final, ramp = self.params.mining_share, self.params.mining_ramp
        return min(final * step / ramp, final) if ramp else final

    def mined(self, targets: Sequence[Tensor], outputs: Sequence[Tensor], step: int) -> Tensor:
        """The global cosine loss of grouped maps (B, D, h, w), with the gradient hook of this step."""
        params, whole = self.params, self.shard.whole
        weight = partial(hard_mining_weight, share=self.mining_share(step), factor=params.mining_factor, whole=whole)
        return mined_global_cosine(targets, outputs, weight, passes=self.passes)

    def loss(self, output: Reconstruction, step: int) -> Tensor:
        """The mined loss of a reconstruction."""
        return self.mined(output.targets, output.outputs, step)

    def total_steps(self, per_epoch: int) -> int:
        """`steps`, or the paper's number for the setting (where it has none: multi_class)."""
        if self.params.steps is not None:
            return self.params.steps
        return self.params.PAPER_STEPS.get(self.ctx.setting, self.params.PAPER_STEPS["multi_class"])
