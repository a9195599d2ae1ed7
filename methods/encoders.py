"""Building the frozen encoder that a parameter names: architecture from the table, tensors from the context.

Every encoder has: dim, heads, patch, prefix (tokens before the patches), grid(size) -> (h, w),
layers(images (B, 3, H, W), indices) -> list of (B, prefix + h * w, D), official_state(), load_official(state).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from inpbench.harness.api import Context, Size
from inpbench.methods.beit import BeitEncoder
from inpbench.methods.encoder_table import EncoderEntry, get_encoder
from inpbench.methods.vit import VisionTransformer


class EncoderLike(Protocol):
    """The interface every encoder has; it is an `nn.Module` besides."""

    dim: int
    heads: int
    patch: int
    prefix: int

    def grid(self, size: Size) -> Size:
        """(h, w) tokens of an image of (H, W) pixels; impossible sizes raise `UsageError`."""
        ...

    def layers(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Outputs (B, prefix + h * w, D) of the blocks `indices`, without gradient."""
        ...

    def official_state(self) -> dict[str, Tensor]:
        """The tensors under their official names."""
        ...

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load a published file; raises `WeightsError` naming what differs."""
        ...


class Encoder(nn.Module, EncoderLike):
    """For annotations: a module with the encoder's interface."""


def construct(entry: EncoderEntry, image_size: Size) -> Encoder:
    """The network of a table entry, its weights random (the built-in one has its own)."""
    entry.grid(image_size)  # validates the size
    if entry.kind == "builtin":
        # Imported here: only who asks for it pays for it.
        from inpbench.methods.builtin_encoder import BuiltinEncoder

        return cast(Encoder, BuiltinEncoder(image_size))
    return cast(Encoder, BeitEncoder(entry) if entry.kind == "beit" else VisionTransformer(entry))


def build_encoder(name: str, ctx: Context, image_size: Size) -> Encoder:
    """The encoder `name`, frozen, in eval mode, on the context's device and dtype.

    Raises `UsageError` for an unknown name or an impossible size, `WeightsError` for missing or unfitting weights. Where random
    weights were asked for by name they are a function of the context's seed.
    """
    entry = get_encoder(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ctx.seed)
        encoder = construct(entry, image_size).to(dtype=ctx.dtype)
    if entry.kind != "builtin":
        state = ctx.weights.state(entry.weights)
        if state is not None:
            encoder.load_official(state)
    return encoder.to(device=ctx.device).requires_grad_(False).eval()
