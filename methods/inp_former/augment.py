"""The 22 variants of a support image that INP-Former trains on in the few-shot setting.

Made of the normalised float32 crop: the original; rotations by -4..-1, +1..+4 times pi / 16; translations by 0.1 and 0.2 of half
the side; mirrored; grey (weights of RGB, but of normalised channels); turned by 90, 180 and 270 degrees counter-clockwise.
Outside pixels are reflected about the border.
Known deviation: quarter turns are exact, the original's differ by 3e-5 (interpolated).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import Sample, TrainingSet

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


def variant(image: Tensor, index: int) -> Tensor:
    """One variant of a normalised image (3, H, W), float32 and square; index: 0 to 21, the original's order before shuffling."""
    assert image.dtype == torch.float32 and image.shape[-1] == image.shape[-2], "quarter turns need a square, the grid is float32"
    assert 0 <= index < COUNT, index
    if index == 0:
        return image
    index -= 1
    if index < len(ANGLES):
        cosine, sine = math.cos(ANGLES[index]), math.sin(ANGLES[index])
        return _sample(image, ((cosine, -sine, 0.0), (sine, cosine, 0.0)))
    index -= len(ANGLES)
    if index < len(SHIFTS):
        return _sample(image, ((1.0, 0.0, SHIFTS[index][0]), (0.0, 1.0, SHIFTS[index][1])))
    index -= len(SHIFTS)
    if index == 0:
        return image.flip(-1)
    if index == 1:
        grey = sum(weight * channel for weight, channel in zip(GREY, image, strict=True))
        return torch.as_tensor(grey).expand_as(image)
    return torch.rot90(image, index - 1, dims=(-2, -1))


def variants(image: Tensor) -> Tensor:
    """A normalised image (3, H, W), float32 and square -> its variants (22, 3, H, W), in the original's order before shuffling."""
    return torch.stack([variant(image, index) for index in range(COUNT)])


def shuffled_variants(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The variants in a random order, drawn from torch's CPU generator as the original does."""
    return variants(image)[torch.randperm(COUNT, generator=generator).to(image.device)]


class Variants:
    """Every variant of every image of a training set, as a `harness.api.TrainingSet` of 22 times the images.

    Image i has the places 22 i to 22 i + 21, in the original's order before shuffling. The original shuffles the variants once and
    the loader shuffles all of them again each epoch; here the training loop's order, drawn anew each epoch, is the only shuffle.
    """

    def __init__(self, train: TrainingSet) -> None:
        self._train = train

    @property
    def samples(self) -> Sequence[Sample]:
        """The sample behind each place: every sample 22 times."""
        return [sample for sample in self._train.samples for _ in range(COUNT)]

    @property
    def categories(self) -> Sequence[str]:
        """Those of the training set."""
        return self._train.categories

    def __len__(self) -> int:
        return COUNT * len(self._train)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """(B, 3, H, W) of the training set's dtype, on its device; each image is read once a batch."""
        wanted = list(dict.fromkeys(index // COUNT for index in indices))
        images = self._train.batch(wanted)
        sources = images.float()  # the sampling grid is float32
        places = {image: row for row, image in enumerate(wanted)}
        return torch.stack([variant(sources[places[index // COUNT]], index % COUNT) for index in indices]).to(images.dtype)

    def masks(self, indices: Sequence[int]) -> Tensor:
        """(B, H, W) bool, all False: support images are normal."""
        masks = self._train.masks([index // COUNT for index in indices])
        assert not masks.any(), "a support image is anomalous"
        return masks

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """(B, 3, h, w) uint8 of the images themselves: the variants are made of the normalised images."""
        return self._train.pixels([index // COUNT for index in indices])
