"""The training mask of one image: which generator, which pool, which weights; and what the hidden patches weigh in the loss.

    a < 0.5: only foreground;   b: 0 frequency, 1 running errors (uniform before the dynamic epochs), 2 uniform;   c < 0.5: blocks
`official` frequency weights cut the spectrum itself into tiles as if it were an image: low frequencies own the corner patches.
The published models were trained so. `patch` gives each patch its own energy above its mean instead.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from inpbench.methods.pmad.mask_draws import Draws, Weights, blocks, single_patches

FrequencyMode = Literal["official", "patch"]

# Share of patches that the authors hide for each category of MVTec AD, tuned by them.
MVTEC_RATIOS = {
    "bottle": 0.42,
    "cable": 0.28,
    "capsule": 0.16,
    "carpet": 0.16,
    "grid": 0.16,
    "hazelnut": 0.36,
    "leather": 0.12,
    "metal_nut": 0.48,
    "pill": 0.48,
    "screw": 0.04,
    "tile": 0.38,
    "toothbrush": 0.22,
    "transistor": 0.48,
    "wood": 0.46,
    "zipper": 0.20,
}


def tiles(values: Tensor, patch: int) -> Tensor:
    """Sums of (C, H, W) over channels and patch x patch pixels, (N,), row by row."""
    rows = values.sum(dim=0).unfold(0, patch, patch).unfold(1, patch, patch)
    return rows.sum(dim=(2, 3)).flatten()


def frequency_weights(image: Tensor, patch: int, mode: FrequencyMode = "official") -> Tensor:
    """Weights (N,) of an image (3, H, W), normalised; see the module docstring for the modes."""
    if mode == "patch":
        blocks_of = image.unfold(1, patch, patch).unfold(2, patch, patch)  # (3, h, w, patch, patch)
        mean = blocks_of.mean(dim=(3, 4), keepdim=True)
        return (blocks_of - mean).square().sum(dim=(0, 3, 4)).flatten()
    spectrum = torch.fft.fft2(image, norm="ortho").abs()
    spectrum = (spectrum / spectrum.max()).nan_to_num(0.0).clamp(0.0, 1.0)
    return tiles(spectrum, patch)


class MaskPlan(NamedTuple):
    """What the wrapper needs to know besides the image."""

    side: int  # patches a side
    patch: int  # pixels
    cap: int  # patches of the largest block
    frequency: FrequencyMode = "official"


def foreground_patches(foreground: Tensor, patch: int) -> Tensor:
    """(N,) bool: patches with any foreground pixel of (1, H, W)."""
    return tiles(foreground, patch) != 0


def draw_mask(draws: Draws, plan: MaskPlan, count: int, image: Tensor, foreground: Tensor, errors: Tensor | None) -> Tensor:
    """The mask (N,) bool of an image (3, H, W).

    count: patches to hide; foreground: (N,) bool; errors: running errors (N,) of its category in the dynamic epochs, else None.
    """
    limited = draws.python.random() < 0.5
    kind = int(draws.numpy.choice([0, 1, 2], 1)[0])
    blockwise = draws.python.random() < 0.5
    weights = None
    if kind == 0:
        weights = Weights(frequency_weights(image, plan.patch, plan.frequency), dynamic=False)
    elif kind == 1 and errors is not None:
        weights = Weights(errors, dynamic=True)
    pool = foreground if limited else None
    if blockwise:
        return blocks(draws, plan.side, count, plan.cap, pool, weights)
    return single_patches(draws, plan.side**2, count, pool, weights)


def loss_weights(errors: Tensor, mask: Tensor) -> Tensor:
    """Weights (m,) in [1, 4] of the m hidden patches by the rank of their running errors (N,); a single one weighs 1.

    Known deviation: for m = 1 the original divides 0 by 0 and drops the whole step.
    """
    hidden = errors[mask]
    if len(hidden) < 2:
        return torch.ones_like(hidden)
    ranks = hidden.argsort().argsort().to(hidden.dtype)
    return (1.0 + ranks / (len(hidden) - 1)).square()


def running_mean(errors: Tensor, counts: Tensor, mask: Tensor, losses: Tensor) -> None:
    """Take the losses (m,) of the patches of `mask` (N,) into the running means `errors` and their `counts` (N,), in place."""
    before = counts[mask]
    errors[mask] = (errors[mask] * before + losses.to(errors.dtype)) / (before + 1)
    counts[mask] = before + 1
