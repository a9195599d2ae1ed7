"""The 22 variants of a support image that INP-Former trains on in the few-shot setting.

Made of the normalised float32 crop: the original; rotations by -4..-1, +1..+4 times pi / 16; translations by 0.1 and 0.2 of half
the side; mirrored; grey (weights of RGB, but of normalised channels); turned by 90, 180 and 270 degrees counter-clockwise.
Outside pixels are reflected about the border.
Known deviation: quarter turns are exact, the original's differ by 3e-5 (interpolated).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ANGLES = tuple(k * math.pi / 16 for k in (-4, -3, -2, -1, 1, 2, 3, 4))
SHIFTS = ((0.2, 0.2), (-0.2, 0.2), (-0.2, -0.2), (0.2, -0.2), (0.1, 0.1), (-0.1, 0.1), (-0.1, -0.1), (0.1, -0.1))
GREY = (0.299, 0.587, 0.114)
COUNT = 1 + len(ANGLES) + len(SHIFTS) + 2 + 3


def _sample(image: Tensor, affine: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Tensor:
    """Image (3, H, W) read at the points that a 2 x 3 matrix gives, in normalised pixel-centre coordinates."""
    theta = torch.tensor([affine], dtype=torch.float32, device=image.device)
    grid = F.affine_grid(theta, [1, *image.shape], align_corners=False)
    sampled = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return sampled[0]


def variants(image: Tensor) -> Tensor:
    """A normalised image (3, H, W), float32 and square -> its variants (22, 3, H, W), in the original's order before shuffling."""
    assert image.dtype == torch.float32 and image.shape[-1] == image.shape[-2], "quarter turns need a square, the grid is float32"
    out = [image]
    for angle in ANGLES:
        cosine, sine = math.cos(angle), math.sin(angle)
        out.append(_sample(image, ((cosine, -sine, 0.0), (sine, cosine, 0.0))))
    out += [_sample(image, ((1.0, 0.0, a), (0.0, 1.0, b))) for a, b in SHIFTS]
    out.append(image.flip(-1))
    grey = sum(weight * channel for weight, channel in zip(GREY, image, strict=True))
    out.append(torch.as_tensor(grey).expand_as(image))
    out += [torch.rot90(image, turns, dims=(-2, -1)) for turns in (1, 2, 3)]
    return torch.stack(out)


def shuffled_variants(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The variants in a random order, drawn from torch's CPU generator as the original does."""
    return variants(image)[torch.randperm(COUNT, generator=generator).to(image.device)]
