"""Raw pixels: map = mean over channels of |x - mean| / max(deviation, floor), per pixel, over the training images of the model.

One pass over the training images with float64 sums; the deviation is the population's (divided by the number of images).
In multi_class the statistics are those of all categories together, as every method there has one model for all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inpbench.harness.api import Context, Prediction, TrainingSet
from inpbench.harness.errors import BenchError
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.raw_pixel import RawPixelParams


class RawPixel(torch.nn.Module):
    """`harness.api.Method` of the raw-pixel baseline."""

    mean: Tensor  # (3, H, W) float64
    deviation: Tensor  # (3, H, W) float64

    def __init__(self, params: RawPixelParams, ctx: Context) -> None:
        super().__init__()
        params.check()
        self.params, self.ctx = params, ctx
        shape = (3, *params.crop_size)
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64, device=ctx.device))
        self.register_buffer("deviation", torch.ones(shape, dtype=torch.float64, device=ctx.device))

    def fit(self, train: TrainingSet) -> None:
        """Mean and deviation of every pixel and channel, in one pass of batches."""
        count = len(train)
        if count == 0:
            raise BenchError("There is no image to train on.", "Type: bench data verify NAME --data-root DIR")
        # Sums are taken around the first image: E[x^2] - E[x]^2 of numbers near 0 loses no digits.
        origin = train.batch([0])[0].double()
        total, squares = torch.zeros_like(origin), torch.zeros_like(origin)
        for start in range(0, count, self.params.batch_size):
            indices = range(start, min(start + self.params.batch_size, count))
            shifted = train.batch(list(indices)).double() - origin
            total += shifted.sum(dim=0)
            squares += (shifted * shifted).sum(dim=0)
            self.ctx.progress(indices.stop, count, "pixels")
        shift = total / count
        self.mean.copy_(origin + shift)
        self.deviation.copy_((squares / count - shift * shift).clamp_min(0.0).sqrt())

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """The map (B, H, W) of images (B, 3, H, W), at full resolution."""
        score = (images.double() - self.mean).abs() / self.deviation.clamp_min(self.params.floor)
        return Prediction(score.mean(dim=1).to(images.dtype))

    def state(self) -> dict[str, Tensor]:
        """`mean` and `deviation`, (3, H, W) float64."""
        return dict(self.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; raises `WeightsError` naming what differs."""
        load_strictly(self, state, "raw_pixel")
