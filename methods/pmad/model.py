"""The reconstruction model: a BEiT that sees some patches as the mask token and says which token each of them was.

    logits = head(LN(BEiT([class, patches with mask token])))   at the masked patches, row by row over (image, patch)
Start: BEiT's self-supervised weights (mask token and head included), or `initialise`, the official rule for what no file has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.pmad.transformer import NORM_EPS, BeitBlock, Trunk, TrunkShape


class ReconstructionModel(Trunk):
    """See the module docstring; vocabulary: number of token ids V."""

    mask_token: nn.Parameter  # (1, 1, D)

    def __init__(self, shape: TrunkShape, vocabulary: int) -> None:
        super().__init__(shape)
        self.norm = nn.LayerNorm(shape.dim, eps=NORM_EPS)
        self.lm_head = nn.Linear(shape.dim, vocabulary)

    def _add_parameters(self) -> None:
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.shape.dim))

    def features(self, images: Tensor, mask: Tensor) -> Tensor:
        """Images (B, 3, H, W), mask (B, N) bool, True is hidden -> normalised tokens (B, N + 1, D), class token first."""
        patches = self.patch_embed(images)
        hidden = mask.unsqueeze(-1).to(patches.dtype)
        normed: Tensor = self.norm(self.run(patches * (1.0 - hidden) + self.mask_token * hidden))
        return normed

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Logits of the hidden patches (number of them, V); images may hide different numbers."""
        logits: Tensor = self.lm_head(self.features(images, mask)[:, 1:][mask])
        return logits

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load a training checkpoint of PMAD or BEiT's pretraining file; the index buffers are not needed there.

        Raises `WeightsError` naming the first keys or shapes that differ.
        """
        indices = {key: value for key, value in self.state_dict().items() if key.endswith("relative_position_index")}
        load_strictly(self, {**indices, **state}, "PMAD's reconstruction model")


def initialise(model: ReconstructionModel) -> None:
    """The official start of tensors without a file: normal (std 0.02) cut at one sigma, tables and biases 0.

    After that the projections of block i that end a branch are divided by sqrt(2 (i + 1)). Draws from torch's generator.
    """

    def draw(tensor: Tensor) -> None:
        nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)

    for token in (model.cls_token, model.mask_token, model.pos_embed):
        if token is not None:
            draw(token)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            assert isinstance(block, BeitBlock)
            for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
                weight.div_(math.sqrt(2.0 * (index + 1)))
