"""Cosine losses between grouped maps a (encoder, no gradient) and b (decoder), and their gradient hooks.

global: 1 - cos of one flat vector an image, mean over the batch, mean over the groups. The mining lies in the gradient only: a hook on
b multiplies the gradient that arrives there by a weight a point; the value of the loss does not change.
    soft mining (INP-Former):         w = (d / mean d)^power, d = 1 - cos over channels, mean over the batch
    hard mining by share (Dinomaly):  w = factor where d < the k-th largest of the batch, k = int(numel * (1 - share)), else 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PointWeight = Callable[[Tensor], Tensor]
"""Distances (B, 1, h, w) to gradient weights (B, 1, h, w)."""


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos over channels: (B, D, h, w) twice -> (B, 1, h, w); each norm is clamped at 1e-8."""
    return 1.0 - F.cosine_similarity(a, b, dim=1).unsqueeze(1)


def image_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos of the flattened maps of each image: (B, D, h, w) twice -> (B,)."""
    return 1.0 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


def soft_mining_weight(distance: Tensor, power: float) -> Tensor:
    """(d / mean d)^power; the mean is over the whole batch. No clamp, no renormalisation."""
    return (distance / distance.mean()) ** power


def hard_mining_count(numel: int, share: float) -> int:
    """How many points keep their gradient: int(numel * (1 - share)) in floating point, at least one.

    The original raises IndexError where that is 0 (tiny inputs); here the hardest point is kept.
    """
    return max(1, int(numel * (1 - share)))


def hard_mining_threshold(distance: Tensor, share: float) -> Tensor:
    """The k-th largest distance of the batch, a scalar tensor."""
    return torch.topk(distance.reshape(-1), hard_mining_count(distance.numel(), share)).values[-1]


def hard_mining_weight(distance: Tensor, share: float, factor: float) -> Tensor:
    """`factor` where the distance is strictly below the threshold, else 1."""
    easy = distance < hard_mining_threshold(distance, share)
    return torch.where(easy, distance.new_tensor(factor), distance.new_ones(()))


def scale_gradient(target: Tensor, weight: Tensor) -> None:
    """Register a hook that multiplies the gradient arriving at `target` by `weight` (broadcast)."""
    if target.requires_grad:
        target.register_hook(lambda gradient: gradient * weight)


def mined_global_cosine(targets: Sequence[Tensor], outputs: Sequence[Tensor], weight: PointWeight | None = None) -> Tensor:
    """The mean over groups of the global cosine loss; with `weight`, a hook scales the gradient at each output.

    Calling it twice on the same outputs before one backward scales twice.
    """
    losses = []
    for a, b in zip(targets, outputs, strict=True):
        if weight is not None:
            with torch.no_grad():
                scale = weight(cosine_distance(a.detach(), b))
            scale_gradient(b, scale)
        losses.append(image_distance(a.detach(), b).mean())
    return torch.stack(losses).mean()
