"""A trained method as one graph: image in, smoothed anomaly map and image score out, the bench's scoring included.

    image (B, 3, H, W) -> [normalise] -> predict -> enlarge, 256 x 256, Gaussian -> anomaly_map (B, 256, 256), score (B,)
H x W is the method's crop size, B is free. The image is RGB in [0, 1] (`pixels="unit"`, normalised inside), or normalised already.
`preprocessing` says in plain numbers how a picture becomes such an image; it travels in the file's metadata.
Any method whose `predict` can be traced works: its modules are found among its attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from inpbench.harness.errors import UsageError
from inpbench.harness.scoring import DEFAULT_SCORING, Scoring, image_scores, smooth_maps

if TYPE_CHECKING:
    from inpbench.harness.api import Method, Preprocess, Size

Pixels = Literal["unit", "normalised"]
Mode = Literal["reconstruction", "zero_shot"]


class ScoredMethod(nn.Module):
    """A method and the bench's scoring as one module, on the CPU or wherever the method is."""

    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)

    def __init__(
        self,
        method: Method,
        preprocess: Preprocess,
        *,
        mode: Mode = "reconstruction",
        pixels: Pixels = "unit",
        scoring: Scoring = DEFAULT_SCORING,
    ) -> None:
        """mode: what the map is, `predict` or `zero_shot_map`; a method without the latter raises `UsageError`."""
        super().__init__()
        if mode == "zero_shot" and not hasattr(method, "zero_shot_map"):
            raise UsageError(f"{type(method).__name__} has no zero-shot map.", "Type: --scoring reconstruction")
        self.method, self.mode, self.pixels, self.scoring = method, mode, pixels, scoring
        self.crop: Size = (int(preprocess.crop[0]), int(preprocess.crop[1]))
        for name, value in vars(method).items():
            if isinstance(value, nn.Module) and not isinstance(method, nn.Module):
                self.add_module(f"method_{name}", value)  # so that its tensors are the graph's weights, not constants
        self.register_buffer("mean", torch.tensor(preprocess.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocess.std)[:, None, None])
        self.eval().requires_grad_(False)

    def example(self, count: int, seed: int = 0) -> Tensor:
        """Made-up images (count, 3, H, W) in the range that the graph takes: coarse noise with a fine grain, as pictures have."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(count, 3, 8, 8, generator=generator)
        grain = torch.rand(count, 3, *self.crop, generator=generator)
        unit = 0.8 * nn.functional.interpolate(coarse, size=self.crop, mode="bilinear") + 0.2 * grain
        return unit if self.pixels == "unit" else (unit - self.mean.cpu()) / self.std.cpu()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (B, 3, H, W) float32. Returns the smoothed maps (B, *metric_size) and the image scores (B,)."""
        images = (image - self.mean) / self.std if self.pixels == "unit" else image
        score: Tensor | None = None
        if self.mode == "zero_shot":
            amap = self._zero_shot(images)
        else:
            amap, score = self.method.predict(images)
        smoothed = smooth_maps(amap, self.crop, self.scoring)
        return smoothed, image_scores(smoothed, self.scoring) if score is None else score

    def _zero_shot(self, images: Tensor) -> Tensor:
        amap: Tensor = self.method.zero_shot_map(images)  # type: ignore[attr-defined]  # checked above
        return amap


def preprocessing(preprocess: Preprocess, pixels: Pixels) -> dict[str, Any]:
    """How a picture becomes the graph's image, as JSON values."""
    return {
        "resize": list(preprocess.resize),
        "shorter_side": preprocess.shorter_side,
        "interpolation": preprocess.interpolation,
        "crop": list(preprocess.crop),
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "pixels": pixels,
    }
