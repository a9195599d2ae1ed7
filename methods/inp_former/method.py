"""INP-Former as a method under test: soft-mined global cosine loss + 0.2 * coherence loss.

few_shot trains on 22 fixed variants of each support image; zero_shot maps the distance to the nearest prototype instead of the
reconstruction. Everything else is the same in every setting.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from inpbench.harness.api import Context, Prediction, TrainingSet
from inpbench.harness.errors import UsageError
from inpbench.methods.blocks import CrossAttentionBlock
from inpbench.methods.inp_former import InpFormerParams
from inpbench.methods.inp_former.augment import Variants
from inpbench.methods.inp_former.model import InpFormerNetwork, InpFormerOutput
from inpbench.methods.losses import mined_global_cosine, soft_mining_weight
from inpbench.methods.reconstruction import Reconstruction, ReconstructionMethod

DRAWN_BLOCK = 3  # 0-based decoder block whose attention is drawn


class InpFormer(ReconstructionMethod):
    """`harness.api.Method` of INP-Former."""

    params: InpFormerParams
    advice = "Type: --set inp_former.lr=5e-4 --set inp_former.warmup=500"

    def __init__(self, params: InpFormerParams, ctx: Context) -> None:
        self.keep_prefix = not params.remove_class_token
        super().__init__(params, ctx)

    def build(self) -> nn.Module:
        """The extractor, bottleneck and decoder."""
        params = self.params
        network = InpFormerNetwork(
            self.encoder.dim, self.encoder.heads, params.inp_num, params.decoder_depth, params.decoder_groups
        )
        network.factored = self.ctx.engine == "fast"
        return network

    def reconstruction_loss(self, output: Reconstruction) -> Tensor:
        """The soft-mined cosine loss; the mining acts on the gradient only."""
        weight = partial(soft_mining_weight, power=self.params.mining_power, whole=self.shard.whole)
        return mined_global_cosine(output.targets, output.outputs, weight, passes=self.passes)

    def loss(self, output: Reconstruction, step: int) -> Tensor:
        """The total loss; it does not depend on the step."""
        inp_output = cast(InpFormerOutput, output)
        return self.reconstruction_loss(inp_output) + self.params.gather_weight * inp_output.coherence

    def fit(self, train: TrainingSet) -> None:
        """Train the network; in few_shot on the variants of the support images. Raises `UsageError` where they do not exist."""
        if self.ctx.setting != "few_shot":
            return super().fit(train)
        height, width = self.params.crop_size
        if height != width:
            raise UsageError(
                f"inp_former few_shot turns its images by quarters: expected a square crop, found {height}x{width}.",
                f"Type: --set inp_former.crop_size={min(height, width)}x{min(height, width)}",
            )
        return super().fit(Variants(train))

    def predict(self, images: Tensor) -> Prediction:
        """Images (B, 3, H, W) -> the setting's map on the token grid (B, h, w)."""
        return Prediction(self.zero_shot_map(images)) if self.ctx.setting == "zero_shot" else super().predict(images)

    def zero_shot_map(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> the distance of each token to its nearest prototype (B, h, w); nothing is reconstructed."""
        self.network.eval()
        with torch.no_grad():
            output = cast(InpFormerOutput, self.decode(self.encode(images)))
        height, width = output.targets[0].shape[-2:]
        return output.distance.reshape(-1, height, width)

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> where each prototype is read, (B, M, h, w), and the distance to the nearest one, (B, 1, h, w).

        The attention is that of the fourth decoder block, as in the paper's figures (the last of fewer), averaged over heads.
        """
        network = cast(InpFormerNetwork, self.network.eval())
        attention = cast(CrossAttentionBlock, network.decoder[min(DRAWN_BLOCK, len(network.decoder) - 1)]).attn
        seen: list[Tensor] = []
        hook = attention.register_forward_hook(lambda module, inputs, output: seen.append(module.attend(*inputs)[1]))
        factored, network.factored = network.factored, False  # block by block and not compiled: the hook must see the attention
        try:
            with self._autocast():
                output: InpFormerOutput = network(self.encode(images))
        finally:
            hook.remove()
            network.factored = factored
        height, width = output.targets[0].shape[-2:]
        weights = seen[0].mean(dim=1).transpose(-2, -1)[..., -height * width :]  # (B, heads, T, M) -> (B, M, N)
        return {
            "prototype": weights.reshape(len(images), -1, height, width),
            "distance": output.distance.reshape(-1, 1, height, width),
        }

    def total_steps(self, per_epoch: int) -> int:
        """`steps`, or `epochs` times the steps of an epoch."""
        return self.params.steps if self.params.steps is not None else self.params.epochs * per_epoch
