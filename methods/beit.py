"""BEiT and BEiT v2 through timm: relative positions, no position embedding, hence 224 x 224 pixels only.

Used up to the last target layer; final norm and head are not loaded. Official and timm files have the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from inpbench.harness.api import Size
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.encoder_table import EncoderEntry
from inpbench.methods.vit import block_outputs


class BeitEncoder(nn.Module):
    """A frozen BEiT with the same interface as `VisionTransformer`."""

    def __init__(self, entry: EncoderEntry) -> None:
        super().__init__()
        assert entry.kind == "beit"
        self.entry = entry
        self.dim, self.heads, self.patch, self.prefix = entry.dim, entry.heads, entry.patch, 1
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

    def train(self, mode: bool = True) -> BeitEncoder:
        """Frozen: stays in eval mode."""
        super().train(False)
        return self

    def grid(self, size: Size) -> Size:
        """(h, w) tokens; any size but 224 x 224 raises `UsageError`."""
        return self.entry.grid(size)

    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, 224, 224) -> (B, 1 + h * w, D)."""
        self.grid((images.shape[-2], images.shape[-1]))
        return torch.cat((self.cls_token.expand(images.shape[0], -1, -1), self.patch_embed(images)), dim=1)

    @torch.no_grad()
    def layers(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Outputs (B, 1 + h * w, D) of the blocks `indices` (0-based), in that order."""
        return block_outputs(self.blocks, self.tokens(images), indices)

    def official_state(self) -> dict[str, Tensor]:
        """The tensors under their official names."""
        return dict(self.state_dict())

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load a published file; raises `WeightsError` naming what differs."""
        kept = {
            key: value
            for key, value in state.items()
            if not key.startswith(self.entry.dropped) and not key.endswith("relative_position_index")
        }
        load_strictly(self, kept, f"encoder {self.entry.name}")
