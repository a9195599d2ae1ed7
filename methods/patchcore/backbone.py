"""The frozen encoder of PatchCore: images to feature maps, from timm's ResNets or the ViT encoders that all methods share.

A ViT's tokens are brought to mean 0 and variance 1 (a layer norm without parameters, as the next block would): the scale of raw
block outputs grows with depth and a few channels dominate Euclidean distances. The paper has convolutional encoders only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness.api import Context
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.encoder_table import CONVNETS
from inpbench.methods.encoders import build_encoder
from inpbench.methods.fusion import to_grid
from inpbench.methods.patchcore import PatchCoreParams


class ConvBackbone(nn.Module):
    """The stages `layers` (1 to 4) of a timm ResNet, frozen; later stages and the classifier are not built."""

    def __init__(self, name: str, layers: Sequence[int]) -> None:
        import timm

        super().__init__()
        self.name = name
        self.network = timm.create_model(name, pretrained=False, features_only=True, out_indices=tuple(sorted(layers)))
        self.order = [sorted(layers).index(layer) for layer in layers]

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load a published file of the whole network; raises `WeightsError` naming what differs.

        Stages that are not built and the classifier are left out; counters that old files lack stay 0 (only training reads them).
        """
        own = self.network.state_dict()
        stages = {key.split(".")[0] for key in own}
        tensors = {key: value for key, value in state.items() if key.split(".")[0] in stages}
        counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
        load_strictly(self.network, counters | tensors, f"encoder {self.name}")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> one map (B, D, h, w) a stage, in the order asked for."""
        maps: list[Tensor] = self.network(images)
        return [maps[position] for position in self.order]


class VitBackbone(nn.Module):
    """Blocks of a shared ViT encoder as maps."""

    def __init__(self, params: PatchCoreParams, ctx: Context) -> None:
        super().__init__()
        self.encoder = build_encoder(params.encoder, ctx, params.crop_size)
        self.layers = params.used_layers

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> one map (B, D, h, w) a block."""
        grid = self.encoder.grid((images.shape[-2], images.shape[-1]))
        tokens = self.encoder.layers(images, self.layers)
        return [to_grid(F.layer_norm(layer, layer.shape[-1:]), grid) for layer in tokens]


def build_backbone(params: PatchCoreParams, ctx: Context) -> nn.Module:
    """The encoder that the parameters name, frozen, in eval mode, on the context's device and dtype.

    Raises `WeightsError` for missing or unfitting weights. Random weights (asked for by name) are a function of the seed.
    """
    if params.encoder not in CONVNETS:
        return VitBackbone(params, ctx)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ctx.seed)
        backbone = ConvBackbone(params.encoder, params.used_layers).to(dtype=ctx.dtype)
    state = ctx.weights.state(CONVNETS[params.encoder].weights)
    if state is not None:
        backbone.load_official(state)
    return backbone.to(device=ctx.device).requires_grad_(False).eval()
