"""BEiT and BEiT v2 through timm: relative positions, no position embedding, hence 224 x 224 pixels only.

Used up to the last target layer; final norm and head are not loaded. Official and timm files have the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.models.beit import Beit
from torch import Tensor

from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.encoder_table import EncoderEntry
from inpbench.methods.vit import FrozenTransformer


class BeitEncoder(FrozenTransformer):
    """A frozen BEiT; any size but 224 x 224 raises `UsageError`."""

    def __init__(self, entry: EncoderEntry) -> None:
        super().__init__(entry)
        assert entry.kind == "beit"
        network = Beit(
            img_size=entry.native,
            patch_size=entry.patch,
            num_classes=0,
            embed_dim=entry.dim,
            depth=entry.depth,
            num_heads=entry.heads,
            init_values=0.1,
            use_abs_pos_emb=False,
            use_rel_pos_bias=True,
        )
        self.cls_token, self.patch_embed, self.blocks = network.cls_token, network.patch_embed, network.blocks
        self.requires_grad_(False)
        self.eval()

    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, 224, 224) -> (B, 1 + h * w, D)."""
        self.grid((images.shape[-2], images.shape[-1]))
        return torch.cat((self.cls_token.expand(images.shape[0], -1, -1), self.patch_embed(images)), dim=1)

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load a published file; raises `WeightsError` naming what differs."""
        kept = {
            key: value
            for key, value in state.items()
            if not key.startswith(self.entry.dropped) and not key.endswith("relative_position_index")
        }
        load_strictly(self, kept, f"encoder {self.entry.name}")
