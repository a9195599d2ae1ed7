"""From an encoder's layers to what a reconstruction method learns from: the fused tokens and the grouped maps.

Loose groups: the layers of a group are averaged, and groups (not single layers) are compared. Decoder outputs are reversed first:
the last decoder block reconstructs the shallowest layer. Where the encoder is frozen, `Features` of an image never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inpbench.harness.api import Size

Groups = tuple[tuple[int, ...], ...]


class Features(NamedTuple):
    """What of the encoder's output the trainable part and the loss need."""

    fused: Tensor  # (B, T, D) mean of the target layers; T = h * w, prefix tokens before them where they are kept
    groups: tuple[Tensor, ...]  # each (B, D, h, w)


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """The element-wise mean of tensors of one shape."""
    return torch.stack(tuple(tensors), dim=1).mean(dim=1)


def to_grid(tokens: Tensor, grid: Size) -> Tensor:
    """Patch tokens (B, h * w, D) as a map (B, D, h, w); tokens before the last h * w (class, registers) are dropped."""
    height, width = grid
    patches = tokens[:, tokens.shape[1] - height * width :]
    return patches.transpose(1, 2).reshape(tokens.shape[0], -1, height, width).contiguous()


def group_maps(layers: Sequence[Tensor], groups: Groups, grid: Size) -> tuple[Tensor, ...]:
    """The mean of each group of layers (B, T, D) as a map (B, D, h, w); groups index into `layers`."""
    return tuple(to_grid(mean_of([layers[index] for index in group]), grid) for group in groups)


def gather(layers: Sequence[Tensor], groups: Groups, grid: Size, keep_prefix: bool) -> Features:
    """`Features` of encoder layers (B, prefix + h * w, D)."""
    if not keep_prefix:
        layers = [layer[:, layer.shape[1] - grid[0] * grid[1] :] for layer in layers]
    return Features(mean_of(layers), group_maps(layers, groups, grid))
