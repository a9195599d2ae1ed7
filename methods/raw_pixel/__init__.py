"""The yardstick: how far each pixel is from the training images' pixels at the same place. It learns no structure.

Importing this folder imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from inpbench.harness.api import MethodInfo, Preprocess, Size
from inpbench.harness.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RawPixelParams:
    """What a reader should know about the yardstick: nothing is tuned."""

    input_size: Size = (256, 256)  # resize, aspect ratio not kept
    crop_size: Size = (256, 256)  # centre crop
    floor: float = 0.02  # smallest deviation, in normalised pixel units: a pixel that never varies is not infinitely certain
    batch_size: int = 32  # images read at a time; changes no number

    @property
    def preprocess(self) -> Preprocess:
        """Resize and centre crop, ImageNet normalisation."""
        return Preprocess(resize=self.input_size, crop=self.crop_size)

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together."""
        if min(self.crop_size) < 1 or any(crop > side for crop, side in zip(self.crop_size, self.input_size, strict=True)):
            height, width = self.input_size
            raise UsageError(
                f"raw_pixel.crop_size: expected 1 to input_size {height}x{width}, found {self.crop_size[0]}x{self.crop_size[1]}.",
                f"Type: --set raw_pixel.crop_size={height}x{width}",
            )
        if self.floor <= 0.0:
            raise UsageError(f"raw_pixel.floor: expected above 0, found {self.floor}.", "Type: --set raw_pixel.floor=0.02")
        if self.batch_size < 1:
            raise UsageError(
                f"raw_pixel.batch_size: expected at least 1, found {self.batch_size}.", "Type: --set raw_pixel.batch_size=32"
            )


INFO = MethodInfo(
    name="raw_pixel",
    version=1,
    title="raw pixels: distance from the mean training image, in standard deviations",
    target="inpbench.methods.raw_pixel.model:RawPixel",
    params=RawPixelParams,
    settings=frozenset({"multi_class", "single_class", "few_shot", "zero_shot", "super_multi_class", "cross_class"}),
    presets={
        "paper": {},
        "fast": {},
        "demo": {},
        "smoke": {"input_size": (64, 64), "crop_size": (64, 64)},
    },
    baseline=True,
)
