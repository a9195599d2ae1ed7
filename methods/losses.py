"""Cosine losses between grouped maps a (encoder, no gradient) and b (decoder), and what they do to the gradient.

global: 1 - cos of one flat vector an image, mean over the batch, mean over the groups. The mining lies in the gradient only: what
reaches b is multiplied by a weight a point (the originals do it in a hook on b); the value of the loss does not change.
    soft mining (INP-Former):         w = (d / mean d)^power, d = 1 - cos over channels, mean over the batch
    hard mining by share (Dinomaly):  w = factor where d < the k-th largest of the batch, k = int(numel * (1 - share)), else 1
Where several processes have a part of the batch each, `whole` makes the distances of the batch of one's own (methods/shards.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-8  # every norm is at least this

PointWeight = Callable[[Tensor], Tensor]
"""Distances (B, 1, h, w) to gradient weights (B, 1, h, w)."""

Whole = Callable[[Tensor], Tensor]
"""The distances of this process's images to those of the whole batch, of which statistics are taken."""


def itself(distance: Tensor) -> Tensor:
    """`Whole` of a process that has the whole batch."""
    return distance


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos over channels: (B, D, h, w) twice -> (B, 1, h, w); each norm is clamped at 1e-8."""
    return 1.0 - F.cosine_similarity(a, b, dim=1).unsqueeze(1)


def image_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos of the flattened maps of each image: (B, D, h, w) twice -> (B,)."""
    return 1.0 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


def soft_mining_weight(distance: Tensor, power: float, whole: Whole = itself) -> Tensor:
    """(d / mean d)^power; the mean is over the whole batch. No clamp, no renormalisation."""
    return (distance / whole(distance).mean()) ** power


def hard_mining_count(numel: int, share: float) -> int:
    """How many points keep their gradient: int(numel * (1 - share)) in floating point, at least one.

    The original raises IndexError where that is 0 (tiny inputs); here the hardest point is kept.
    """
    return max(1, int(numel * (1 - share)))


def hard_mining_threshold(distance: Tensor, share: float) -> Tensor:
    """The k-th largest distance of the batch, a scalar tensor."""
    count = distance.numel()
    return torch.kthvalue(distance.reshape(-1), count - hard_mining_count(count, share) + 1).values  # nothing is sorted


def hard_mining_weight(distance: Tensor, share: float, factor: float, whole: Whole = itself) -> Tensor:
    """`factor` where the distance is strictly below the threshold of the whole batch, else 1."""
    easy = distance < hard_mining_threshold(whole(distance), share)
    return torch.ones_like(distance).masked_fill_(easy, factor)  # a tensor made of `factor` would wait for the device


def scale_gradient(target: Tensor, weight: Tensor) -> None:
    """Register a hook that multiplies the gradient arriving at `target` by `weight` (broadcast)."""
    if target.requires_grad:
        target.register_hook(lambda gradient: gradient * weight)  # type: ignore[no-untyped-call]


def threshold_weight(distance: Tensor, alpha: float, whole: Whole = itself) -> Tensor:
    """0 below mean + alpha * std of the whole batch (unbiased), else 1 (ReContrast's mining)."""
    batch = whole(distance)
    return (distance >= batch.mean() + alpha * batch.std()).to(distance.dtype)


def focal_weight(distance: Tensor, share: float, whole: Whole = itself) -> Tensor:
    """(d / threshold)^2, at most 1; the threshold is that of the hard mining."""
    return (distance / hard_mining_threshold(whole(distance), share)).clamp(max=1.0) ** 2


def hardest_weight(distance: Tensor, share: float, whole: Whole = itself) -> Tensor:
    """For a mean over the hardest 1 - share of the points alone: numel / count there, else 0."""
    batch = whole(distance)
    threshold = hard_mining_threshold(batch, share)
    return (distance >= threshold).to(distance.dtype) / (batch >= threshold).to(distance.dtype).mean()


Reduction = Literal["mean", "sum"]  # over the groups


def point_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sums over channels of ab, aa and bb: (B, D, h, w) twice -> (B, h, w) three times."""
    return (a * b).sum(1), a.square().sum(1), b.square().sum(1)


def mixture(a: Tensor, b: Tensor, towards: Tensor, away: Tensor) -> Tensor:
    """`a * towards + b * away`: (B, D, h, w) twice, factors of images or points -> (B, D, h, w)."""
    return torch.addcmul(a * towards, b, away)


class Passes(NamedTuple):
    """What of `mined_global_cosine` goes over whole maps; on a GPU compiled, one pass each instead of six and two."""

    sums: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] = point_sums
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = mixture


AS_WRITTEN = Passes()


def mined_global_cosine(
    targets: Sequence[Tensor],
    outputs: Sequence[Tensor],
    weight: PointWeight | None = None,
    over_groups: Reduction = "mean",
    passes: Passes = AS_WRITTEN,
) -> Tensor:
    """The global cosine loss of pairs of maps (B, D, h, w), averaged over groups.

    over_groups: the originals sum where they use `threshold_weight` or `focal_weight`.
    weight: gradient weights of the points; they act on this loss alone, not on another one of the same outputs.
    """
    losses = [_MinedImageDistance.apply(a.detach(), b, weight, passes).mean() for a, b in zip(targets, outputs, strict=True)]
    return _reduce(losses, over_groups)


class _MinedImageDistance(torch.autograd.Function):
    """`image_distance` whose gradient at b is weighted point by point, in one pass over the maps each way.

    With the sums over channels ab, aa, bb of each point, both distances follow without another look at the maps:
    point 1 - ab / (|a| |b|), image 1 - S ab / (|A| |B|) with |A|^2 = S aa;  d image / d b = S ab / |A| |B|^3 b - a / (|A| |B|).
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: PointWeight | None, passes: Passes) -> Tensor:
        """(B, D, h, w) twice -> (B,)."""
        ab, aa, bb = passes.sums(a, b)
        points = None
        if weight is not None:
            points = weight((1.0 - ab / (aa.sqrt().clamp_min(_EPS) * bb.sqrt().clamp_min(_EPS)))[:, None])
        norm_a = aa.sum((1, 2)).sqrt().clamp_min(_EPS)
        norm_b = bb.sum((1, 2)).sqrt()
        clamped = norm_b.clamp_min(_EPS)
        cosine = ab.sum((1, 2)) / (norm_a * clamped)
        # Where |B| is clamped it is a constant and has no gradient.
        pull = torch.where(norm_b > _EPS, cosine / clamped.square(), torch.zeros_like(cosine))
        ctx.save_for_backward(a, b, points, 1.0 / (norm_a * clamped), pull)
        ctx.passes = passes
        return 1.0 - cosine

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        """(B,) -> (B, D, h, w)."""
        a, b, points, push, pull = ctx.saved_tensors
        shape = (-1, 1, 1, 1)
        towards, away = -(gradients[0] * push).view(shape), (gradients[0] * pull).view(shape)
        if points is not None:
            towards, away = towards * points, away * points
        return None, ctx.passes.gradient(a, b, towards, away), None, None


def regional_cosine(
    targets: Sequence[Tensor],
    outputs: Sequence[Tensor],
    weight: PointWeight | None = None,
    over_groups: Reduction = "mean",
    in_value: bool = False,
) -> Tensor:
    """The mean of 1 - cos of each point instead of each image: the variant that Dinomaly's ablation compares with.

    weight: acts on the gradient, as above, or with `in_value` on the loss itself (a constant factor of each point).
    """
    losses = []
    for a, b in zip(targets, outputs, strict=True):
        scale = None if weight is None else _constant(weight, a, b)
        if scale is not None and not in_value:
            scale_gradient(b, scale)
        distance = cosine_distance(a.detach(), b)
        losses.append((distance * scale if scale is not None and in_value else distance).mean())
    return _reduce(losses, over_groups)


@torch.no_grad()
def _constant(weight: PointWeight, a: Tensor, b: Tensor) -> Tensor:
    return weight(cosine_distance(a, b))


def _reduce(losses: list[Tensor], over_groups: Reduction) -> Tensor:
    total = torch.stack(losses)
    return total.mean() if over_groups == "mean" else total.sum()
