"""The images of the conformance kit (harness/testing.py): drawn in memory, a function of their number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inpbench.harness.api import Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class Stripes:
    """A training set in memory: oblique stripes with a little noise, two categories. Implements `harness.api.TrainingSet`.

    anomalies: every fifth image has a spot and label 1. numbers: which images, where they are not the first `count`.
    """

    size: tuple[int, int]
    count: int
    dtype: torch.dtype
    samples: Sequence[Sample] = field(default_factory=list)
    categories: Sequence[str] = ("fine", "coarse")  # even and odd numbers
    anomalies: bool = False
    numbers: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.numbers = self.numbers or range(self.count)
        self.samples = [Sample(f"{i:03d}.png", self.categories[i % 2], "train", self._label(i)) for i in self.numbers]
        self.categories = [category for category in self.categories if any(s.category == category for s in self.samples)]

    def _label(self, number: int) -> int:
        return int(self.anomalies and number % 5 == 4)

    def __len__(self) -> int:
        return self.count

    def image(self, index: int, spot: bool = False) -> Tensor:
        """Image (3, H, W), normalised scale; `spot` plants a bright square."""
        import torch

        height, width = self.size
        rows = torch.arange(height, dtype=torch.float64)[:, None]
        columns = torch.arange(width, dtype=torch.float64)[None, :]
        generator = torch.Generator().manual_seed(index)
        period = 9.0 if index % 2 == 0 else 23.0
        image = torch.sin((rows + 0.7 * columns + 3.0 * index) * (6.2831853 / period)).expand(3, -1, -1).clone()
        image += 0.1 * torch.randn(3, height, width, generator=generator, dtype=torch.float64)
        if spot:
            image[:, height // 3 : height // 2, width // 3 : width // 2] = 3.0
        return image.to(self.dtype)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W)."""
        import torch

        return torch.stack([self._of(index) for index in indices])

    def _of(self, index: int) -> Tensor:
        number = int(self.numbers[index])
        return self.image(number, spot=self._label(number) == 1)

    def masks(self, indices: Sequence[int]) -> Tensor:
        """The spots of anomalous images: (B, H, W) bool."""
        import torch

        height, width = self.size
        masks = torch.zeros(len(indices), height, width, dtype=torch.bool)
        spotted = torch.tensor([self.samples[int(index)].label == 1 for index in indices], dtype=torch.bool)
        masks[spotted, height // 3 : height // 2, width // 3 : width // 2] = True
        return masks

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """The images as bytes: (B, 3, h, w) uint8; nothing is cropped here, so at the same size."""
        import torch

        return self.batch(indices).mul(32).add(128).clamp(0, 255).to(torch.uint8)
