"""The frozen feature maps that prototypes are made of: EfficientNet-b6 as published, or the built-in filter bank.

Both give two maps for ImageNet-normalised images of 224 x 224: (B, C1, 28, 28) and (B, C2, 14, 14). timm's default weights of this
network changed since PMAD was published, so that the tag is named: AutoAugment, `tf_efficientnet_b6.aa_in1k`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness.api import Context, WeightSpec
from inpbench.harness.errors import WeightsError
from inpbench.methods.builtin_encoder import PATCH, BuiltinEncoder
from inpbench.methods.checkpoint import load_strictly

COARSE = 14  # patches a side of the second map
SHARP, WIDE = 0, 11  # layers of the built-in encoder: without and with a look at the neighbours


class EfficientNet(nn.Module):
    """timm's `tf_efficientnet_b6` up to the maps of stride 8 and 16."""

    channels = 72 + 200

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = timm.create_model("tf_efficientnet_b6", pretrained=False, features_only=True, out_indices=(2, 3))

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W), ImageNet-normalised -> (B, 72, H / 8, W / 8) and (B, 200, H / 16, W / 16)."""
        maps: list[Tensor] = self.network(images)
        return maps

    def official_state(self) -> dict[str, Tensor]:
        """The tensors under timm's names."""
        return dict(self.network.state_dict())

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load timm's classifier file, of which the later stages are not used; raises `WeightsError` naming what is missing."""
        own = self.network.state_dict()
        load_strictly(self.network, {key: value for key, value in state.items() if key in own}, "tf_efficientnet_b6")

    def load_own(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `official_state`, which is what ProtoFlow's file has; raises `WeightsError` naming what differs."""
        load_strictly(self.network, state, "tf_efficientnet_b6 up to stride 16")


class BuiltinMaps(nn.Module):
    """The built-in encoder at two sizes: its tokens on a grid of `fine` x `fine` (28 or 14), and on one of 14 x 14."""

    def __init__(self, fine: int = 28) -> None:
        super().__init__()
        self.fine = fine
        self.encoder = BuiltinEncoder((fine * PATCH, fine * PATCH))
        self.channels = 2 * self.encoder.dim

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, 224, 224), ImageNet-normalised -> (B, 96, fine, fine) and (B, 96, 14, 14)."""
        if self.fine == COARSE:
            return self._maps(images, COARSE, [SHARP, WIDE])
        return self._maps(images, self.fine, [SHARP]) + self._maps(images, COARSE, [WIDE])

    def official_state(self) -> dict[str, Tensor]:
        """The constants of the filter bank."""
        return self.encoder.official_state()

    def load_own(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `official_state`; raises `WeightsError` naming what differs."""
        self.encoder.load_official(state)

    def _maps(self, images: Tensor, side: int, layers: list[int]) -> list[Tensor]:
        sized = F.interpolate(images, size=(side * PATCH, side * PATCH), mode="bilinear", align_corners=False, antialias=True)
        found = self.encoder.layers(sized, layers)
        return [tokens.transpose(1, 2).reshape(len(images), -1, side, side) for tokens in found]


def build_extractor(name: str, spec: WeightSpec | None, fine: int, ctx: Context) -> EfficientNet | BuiltinMaps:
    """The extractor, frozen, in eval mode, on the context's device and dtype; `spec` is None for the built-in one (of grid `fine`).

    Random weights, where they were asked for by name, are a function of the context's seed.
    """
    if spec is None:
        extractor: EfficientNet | BuiltinMaps = BuiltinMaps(fine)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            extractor = EfficientNet()
        state = ctx.weights.state(spec)
        if state is not None:
            try:
                extractor.load_official(state)
            except WeightsError as error:
                raise WeightsError(f"{name}: {error.message}", f"Give {spec.file} ({spec.url}).") from error
    return extractor.to(device=ctx.device, dtype=ctx.dtype).requires_grad_(False).eval()
