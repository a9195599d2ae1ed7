"""Training images with synthetic anomalies, made on the host while the device works on the batch before.

Every sample has a generator of its own, seeded by (seed, stage, step, place in the batch): neither threads nor a resumed run change
a bit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpbench.harness.api import Context, ImageFolder, Size, TrainingSet
from inpbench.harness.errors import DataError
from inpbench.methods.crr import CrrParams
from inpbench.methods.crr.synthesis import Synthetic, procedural_texture, resize_bilinear, synthesise

MOST_THREADS = 16


class SyntheticBatch(NamedTuple):
    """Images with anomalies, as the encoder takes them."""

    images: Tensor  # (B, 3, H, W) normalised, of the context's dtype, on its device
    masks: Tensor  # (B, H, W) in [0, 1], at crop size


def at_crop(images: Tensor, masks: Tensor, params: CrrParams, device: torch.device, dtype: torch.dtype) -> SyntheticBatch:
    """Bytes (B, h, w, 3) and (B, h, w) -> what the encoder and the loss take: cut and normalised as the bench does it."""
    images = images.permute(0, 3, 1, 2)
    (height, width), (rows, columns) = images.shape[-2:], params.crop_size
    top, left = round((height - rows) / 2.0), round((width - columns) / 2.0)
    cut = (..., slice(top, top + rows), slice(left, left + columns))
    mean, std = (
        torch.tensor(values, dtype=dtype, device=device)[:, None, None]
        for values in (params.preprocess.mean, params.preprocess.std)
    )
    unit = images[cut].contiguous().to(device).to(dtype).div_(255)
    return SyntheticBatch(unit.sub_(mean).div_(std), masks[cut].contiguous().to(device).to(dtype).div_(255))


def segmentation_target(masks: Tensor, size: Size) -> Tensor:
    """Masks (B, H, W) in [0, 1] -> (B, *size) bool: bilinear, then at least 0.5."""
    return torch.nn.functional.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] >= 0.5


def pixels_of(folder: ImageFolder, index: int) -> NDArray[np.uint8]:
    """(h, w, 3) of one image of a folder."""
    return np.ascontiguousarray(folder.pixels(index).permute(1, 2, 0).numpy())


class SyntheticImages:
    """Batches of a training set with anomalies; `stage` keeps the draws of two trainings apart."""

    def __init__(self, train: TrainingSet, params: CrrParams, ctx: Context, stage: int, steps: int) -> None:
        self._train, self._params, self._ctx, self._stage, self._steps = train, params, ctx, stage, steps
        self._textures = self._open(params.texture_folder)
        self._foregrounds = self._open(params.foreground_folder)
        self._pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="synthesis")
        self._coming: tuple[int, list[Future[Synthetic]]] | None = None

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def batch(self, indices: Sequence[int], step: int, upcoming: Sequence[int] = ()) -> SyntheticBatch:
        """The images `indices` of a step; those of the next step, `upcoming`, are begun meanwhile."""
        coming = self._coming[1] if self._coming is not None and self._coming[0] == step else self._submit(indices, step)
        self._coming = (step + 1, self._submit(upcoming, step + 1)) if upcoming and step + 1 < self._steps else None
        samples = [future.result() for future in coming]
        images = torch.from_numpy(np.stack([sample.image for sample in samples]))
        masks = torch.from_numpy(np.stack([sample.mask for sample in samples]))
        return at_crop(images, masks, self._params, self._ctx.device, self._ctx.dtype)

    def _submit(self, indices: Sequence[int], step: int) -> list[Future[Synthetic]]:
        pixels = self._train.pixels(indices).cpu().permute(0, 2, 3, 1).contiguous().numpy()
        return [self._pool.submit(self._make, pixels[place], index, (step, place)) for place, index in enumerate(indices)]

    def _make(self, image: NDArray[np.uint8], index: int, where: tuple[int, int]) -> Synthetic:
        rng = np.random.default_rng((self._ctx.seed, self._stage, *where))
        return synthesise(image, self._foreground(index, (image.shape[0], image.shape[1])), self._texture, rng)

    # --- what is read ---------------------------------------------------------------------------------------------------

    def _open(self, folder: str | None) -> ImageFolder | None:
        if folder is None:
            return None
        assert self._ctx.images is not None, "a context without a reader of folders"
        return self._ctx.images(folder)

    def _texture(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        if self._textures is None:
            return procedural_texture(rng)
        return pixels_of(self._textures, int(rng.integers(len(self._textures))))

    def _foreground(self, index: int, size: Size) -> NDArray[np.float32]:
        if self._foregrounds is None:
            return np.ones(size, dtype=np.float32)
        image = self._train.samples[index].image
        place = self._foregrounds.find(image)
        if place is None:
            raise DataError(
                f"{self._params.foreground_folder} has no foreground map for {image}.",
                "It holds one map under each training image's path, any extension. Without maps: leave crr.foreground_folder out.",
            )
        grey = pixels_of(self._foregrounds, place)[..., 0]
        unit: NDArray[np.float32] = resize_bilinear(grey, size).astype(np.float32) / np.float32(255)
        return unit
