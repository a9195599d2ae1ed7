"""The training of ProtoFlow: plain Adam over the residuals of batches of images of all seen categories.

    meta epoch m of M: rate = cosine from lr to lr / 1000 over m;  in the first two, per batch, a line from lr / 10 to that of m = 2
A meta epoch is `sub_epochs` passes; every pass is shuffled anew and its last, smaller batch dropped. Images are augmented (random
resized crop, flip), which keeps a residual from being exactly 0 at the images that became prototypes.
Known deviation: crops are taken from the 224-pixel image, the originals take them from the full file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import IMAGENET_MEAN, IMAGENET_STD

WARM_EPOCHS = 2
LAST_SHARE = 1e-3  # of the rate, at the end of the cosine
SCALE = (0.2, 1.0)  # share of the area that a random crop keeps
_ASPECT = (3.0 / 4.0, 4.0 / 3.0)
_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """The learning rate of step i (0-based)."""

    lr: float
    meta_epochs: int
    per_epoch: int  # batches of a meta epoch, all its passes

    def cosine(self, epoch: int) -> float:
        """The rate of a meta epoch beyond the warm-up."""
        final = self.lr * LAST_SHARE
        return final + (self.lr - final) * (1.0 + math.cos(math.pi * epoch / self.meta_epochs)) / 2.0

    def __call__(self, step: int) -> float:
        """The rate of one step."""
        epoch = step // self.per_epoch
        if epoch >= WARM_EPOCHS:
            return self.cosine(epoch)
        start = self.lr / 10.0
        return start + step / (WARM_EPOCHS * self.per_epoch) * (self.cosine(WARM_EPOCHS) - start)


def _crop_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop: a share of the area, an aspect ratio, the whole image after ten misses."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    for _ in range(_ATTEMPTS):
        area = height * width * uniform(*SCALE)
        aspect = math.exp(uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return top, left, h, w
    return 0, 0, height, width


def augmented(pixels: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Pixels (B, 3, H, W) uint8 -> randomly cropped, enlarged (bicubic), flipped, ImageNet-normalised images of the same size."""
    height, width = pixels.shape[-2:]
    out = torch.empty(pixels.shape, dtype=dtype, device=pixels.device)
    for row, image in enumerate(pixels):
        top, left, h, w = _crop_box(height, width, generator)
        part = image[None, :, top : top + h, left : left + w].to(torch.float32)
        part = F.interpolate(part, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
        part = part.round().clamp(0.0, 255.0)  # the originals crop 8-bit images
        out[row] = (part.flip(-1) if float(torch.rand(1, generator=generator)) < 0.5 else part)[0].to(dtype) / 255.0
    mean, std = out.new_tensor(IMAGENET_MEAN)[:, None, None], out.new_tensor(IMAGENET_STD)[:, None, None]
    return (out - mean) / std
