"""The frozen ViT encoder: timm's blocks, the originals' tokens; and what it shares with BEiT.

tokens = [cls, registers, patches]; the position embedding is added to cls and patches before the registers are put between them.
Raw block outputs are used, never the final norm. Attribute names are a contract: `state_dict()` has the keys of the official
files (DINOv2, DINO v1), position embedding on its native grid, so that official checkpoints load strictly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from inpbench.harness.api import Size
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.encoder_table import EncoderEntry
from inpbench.methods.position import resize_position


class PatchEmbed(nn.Module):
    """Patches to tokens: a convolution whose stride is its kernel, row-major."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> (B, h * w, D)."""
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class FrozenTransformer(nn.Module, ABC):
    """Blocks over tokens, frozen and in eval mode; a subclass makes the tokens and reads its published files."""

    blocks: nn.ModuleList

    def __init__(self, entry: EncoderEntry) -> None:
        super().__init__()
        self.entry = entry
        self.dim, self.heads, self.patch, self.prefix = entry.dim, entry.heads, entry.patch, 1 + entry.registers

    @abstractmethod
    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> the input of the first block (B, prefix + h * w, D)."""

    def train(self, mode: bool = True) -> FrozenTransformer:
        """Frozen: stays in eval mode, whatever the model around it does."""
        super().train(False)
        return self

    def grid(self, size: Size) -> Size:
        """(h, w) tokens of an image of (H, W) pixels; sizes that do not work raise `UsageError`."""
        return self.entry.grid(size)

    @torch.no_grad()
    def layers(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Outputs (B, prefix + h * w, D) of the blocks `indices` (0-based), in that order; later blocks are not run."""
        hidden = self.tokens(images)
        found: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks[: max(indices) + 1]):
            hidden = block(hidden)
            if index in indices:
                found[index] = hidden
        return [found[index] for index in indices]

    def official_state(self) -> dict[str, Tensor]:
        """The tensors under their official names."""
        return dict(self.state_dict())


class VisionTransformer(FrozenTransformer):
    """A plain ViT with optional registers and LayerScale."""

    def __init__(self, entry: EncoderEntry) -> None:
        super().__init__(entry)
        assert entry.kind == "vit"
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (entry.native // entry.patch) ** 2, self.dim))
        if entry.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, entry.registers, self.dim))
        if entry.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, self.dim))
        self.patch_embed = PatchEmbed(self.patch, self.dim)
        self.blocks = nn.ModuleList(
            # LayerScale starts at 1 here (the originals: 1e-8, always overwritten), so that random weights give features.
            Block(self.dim, self.heads, qkv_bias=True, init_values=1.0 if entry.layer_scale else None, norm_layer=norm)  # type: ignore[arg-type]
            for _ in range(entry.depth)
        )
        self.norm = norm(self.dim)
        for token in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)
        self.requires_grad_(False)
        self.eval()

    def position(self, grid: Size) -> Tensor:
        """The position embedding (1, 1 + h * w, D) on this grid."""
        return resize_position(self.pos_embed, grid, self.entry.position_float32)

    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> the input of the first block (B, prefix + h * w, D)."""
        grid = self.grid((images.shape[-2], images.shape[-1]))
        batch = images.shape[0]
        tokens = torch.cat((self.cls_token.expand(batch, -1, -1), self.patch_embed(images)), dim=1) + self.position(grid)
        if self.entry.registers:
            tokens = torch.cat((tokens[:, :1], self.register_tokens.expand(batch, -1, -1), tokens[:, 1:]), dim=1)
        return tokens

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load a published file, official or in timm's format; raises `WeightsError` naming what differs."""
        entry = self.entry
        tensors = {key[len(entry.prefix) :]: value for key, value in state.items() if key.startswith(entry.prefix)}
        tensors = {key: value for key, value in tensors.items() if not key.startswith(entry.dropped)} if entry.dropped else tensors
        load_strictly(self, from_timm(tensors, entry), f"encoder {entry.name}")


def from_timm(state: Mapping[str, Tensor], entry: EncoderEntry) -> dict[str, Tensor]:
    """A state in timm's format under official names; an official one passes unchanged.

    timm drops the mask token and, with registers, keeps the sum of class token and its position: the parts are not
    recoverable, but every output is the same with a zero class slot.
    """
    tensors = dict(state)
    if entry.mask_token and "mask_token" not in tensors and "pos_embed" in tensors:
        tensors["mask_token"] = torch.zeros(1, entry.dim)
    if "reg_token" in tensors:
        tensors["register_tokens"] = tensors.pop("reg_token")
        position = tensors.get("pos_embed")
        if position is not None and position.shape[1] == (entry.native // entry.patch) ** 2:
            tensors["pos_embed"] = torch.cat((torch.zeros_like(position[:, :1]), position), dim=1)
    return tensors
