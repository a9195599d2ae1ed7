"""CRR's bottleneck: single elements of its input are set to 0 before the dropout MLP, in training and at test time alike.

Nothing is rescaled, so that a mask is part of what the rest was trained on: without it the input is 1 / (1 - share) times larger.
The original draws a new mask at each forward of the test as well, so that its maps depend on the batch and on the order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from inpbench.methods.blocks import Mlp

MaskPolicy = Literal["official", "expected", "off"]


class MaskedMlp(Mlp):
    """`Mlp` behind an element mask.

    While `frozen` is None each forward draws a mask; else it is what every image is multiplied by, (T, D) or a scalar.
    """

    frozen: Tensor | None

    def __init__(self, dim: int, dropout: float, share: float) -> None:
        super().__init__(dim, dropout)
        self.share = share  # of elements that are set to 0
        self.register_buffer("frozen", None, persistent=False)

    def uniform(self, x: Tensor) -> Tensor:
        """Numbers of [0, 1) in the shape of x (B, T, D). The original draws them on the CPU, whatever the device."""
        return torch.rand_like(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        factor = (self.uniform(x) <= 1.0 - self.share).to(x.dtype) if self.frozen is None else self.frozen
        return super().forward(x * factor)

    def freeze(self, policy: MaskPolicy, shape: tuple[int, int], seed: int) -> None:
        """From now on the same factor for every image. shape: (T, D) of the tokens.

        official: one mask, drawn from the seed on the CPU; each image alone sees what the original's would, but all see the same
        one, so that neither batch nor order matters. expected: times 1 - share. off: no mask.
        """
        weight = self.fc1.weight
        if policy == "official":
            generator = torch.Generator().manual_seed(seed)
            factor = (torch.rand(shape, generator=generator) <= 1.0 - self.share).to(weight.dtype)
        else:
            factor = torch.tensor(1.0 - self.share if policy == "expected" else 1.0, dtype=weight.dtype)
        self.frozen = factor.to(weight.device)

    def thaw(self) -> None:
        """Draw at each forward again."""
        self.frozen = None
