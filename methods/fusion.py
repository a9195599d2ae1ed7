"""From an encoder's layers to what a reconstruction method learns from: the fused tokens and the grouped maps.

Loose groups: the layers of a group are averaged, and groups (not single layers) are compared. Decoder outputs are reversed first:
the last decoder block reconstructs the shallowest layer. Where the encoder is frozen, `Features` of an image never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from inpbench.harness.api import Size

Groups = tuple[tuple[int, ...], ...]


class Features(NamedTuple):
    """What of the encoder's output the trainable part and the loss need."""

    fused: Tensor  # (B, T, D) mean of the target layers; T = h * w, prefix tokens before them where they are kept
    groups: tuple[Tensor, ...]  # each (B, D, h, w)


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """The element-wise mean of tensors of one shape; nothing is stacked."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors)


def to_grid(tokens: Tensor, grid: Size) -> Tensor:
    """Patch tokens (B, h * w, D) as a map (B, D, h, w); tokens before the last h * w (class, registers) are dropped.

    A view where it can be one: the channels of a point stay neighbours in memory.
    """
    height, width = grid
    patches = tokens[:, tokens.shape[1] - height * width :].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], height, width)


def from_grid(maps: Tensor) -> Tensor:
    """The inverse: maps (B, D, h, w) as tokens (B, h * w, D)."""
    return maps.flatten(2).transpose(1, 2)


def group_maps(layers: Sequence[Tensor], groups: Groups, grid: Size) -> tuple[Tensor, ...]:
    """The mean of each group of layers (B, T, D) as a map (B, D, h, w); groups index into `layers`."""
    return tuple(to_grid(mean_of([layers[index] for index in group]), grid) for group in groups)


def is_partition(groups: Groups, count: int) -> bool:
    """Whether groups of one size hold each of `count` layers once: the mean of the layers is then the mean of the groups."""
    return sorted(index for group in groups for index in group) == list(range(count)) and len({*map(len, groups)}) == 1


def gather(layers: Sequence[Tensor], groups: Groups, grid: Size, keep_prefix: bool) -> Features:
    """`Features` of encoder layers (B, prefix + h * w, D)."""
    if not keep_prefix:
        layers = [layer[:, layer.shape[1] - grid[0] * grid[1] :] for layer in layers]
    means = [mean_of([layers[index] for index in group]) for group in groups]  # (B, T, D)
    fused = mean_of(means) if is_partition(groups, len(layers)) else mean_of(layers)
    # Contiguous as from the cache: dropout draws in the order of memory.
    return Features(fused.contiguous(), tuple(to_grid(mean, grid) for mean in means))
