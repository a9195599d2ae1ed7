"""Dinomaly as a method under test: global cosine loss whose gradient is shrunk at the easy points."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from inpbench.harness.api import Context
from inpbench.methods.dinomaly import DinomalyParams
from inpbench.methods.dinomaly.model import DinomalyNetwork
from inpbench.methods.losses import hard_mining_weight, mined_global_cosine
from inpbench.methods.reconstruction import Reconstruction, ReconstructionMethod


class Dinomaly(ReconstructionMethod):
    """`harness.api.Method` of Dinomaly."""

    params: DinomalyParams
    advice = "The linear attention's denominator can reach 0. Type: --set dinomaly.attention_eps=1e-6"

    def __init__(self, params: DinomalyParams, ctx: Context) -> None:
        self.keep_prefix = not params.remove_class_token
        super().__init__(params, ctx)

    def build(self) -> nn.Module:
        """The bottleneck and the decoder."""
        params = self.params
        return DinomalyNetwork(
            self.encoder.dim,
            self.encoder.heads,
            params.decoder_depth,
            params.decoder_groups,
            params.dropout,
            params.attention,
            params.attention_eps,
        )

    def mining_share(self, step: int) -> float:
        """The share p of easy points at a step (0-based): a ramp from 0 to the final share."""
        final, ramp = self.params.mining_share, self.params.mining_ramp
        return min(final * step / ramp, final) if ramp else final

    def loss(self, output: Reconstruction, step: int) -> Tensor:
        """The global cosine loss with the gradient hook of this step."""
        weight = partial(hard_mining_weight, share=self.mining_share(step), factor=self.params.mining_factor)
        return mined_global_cosine(output.targets, output.outputs, weight)

    def total_steps(self, per_epoch: int) -> int:
        """`steps`, or the paper's number for the setting (where it has none: multi_class)."""
        if self.params.steps is not None:
            return self.params.steps
        return self.params.PAPER_STEPS.get(self.ctx.setting, self.params.PAPER_STEPS["multi_class"])
