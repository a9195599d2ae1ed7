"""Samples to tensors: what a method trains on and what it is tested on.

Pixels come from `harness.pixels` as uint8 at crop size, cross to the device as bytes and are scaled and normalised there:
x / 255, minus mean, over std, in the run's dtype. A training set holds normal images only; images that cannot be decoded are
left out in lenient mode (`manifest.findings` says which), never replaced. Ground truth is made once, at the metrics' size.
An anomalous image whose mask is missing has `has_pixels` False; so has every image of a category without any mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inpbench.harness.api import Finding, Preprocess, Sample, Size
from inpbench.harness.errors import DataError
from inpbench.harness.images import Mask, UnreadableError, check_preprocess, image_size, mask_at_crop, read_mask, size_message
from inpbench.harness.pixels import Decode, Row, Rows, open_pixels, open_rows, workers
from inpbench.harness.scoring import ground_truth

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.api import Progress
    from inpbench.harness.manifest import Manifest
    from inpbench.harness.scoring import Scoring


class Batch(NamedTuple):
    """A batch of test images of one category, in the manifest's order."""

    images: Tensor  # (B, 3, H, W) float, normalised, on the device
    masks: Tensor  # (B, *metric_size) bool, on the host, where regions are found; all False where has_pixels is False
    labels: Tensor  # (B,) int64, on the host: 0 normal, 1 anomalous
    has_pixels: Tensor  # (B,) bool, on the host: whether the image takes part in the pixel metrics
    indices: list[int]  # positions in manifest.samples


class Normaliser:
    """uint8 pixels (B, 3, H, W) to normalised floats on the device."""

    def __init__(self, preprocess: Preprocess, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._mean = torch.tensor(preprocess.mean, dtype=dtype, device=device)[:, None, None]
        self._std = torch.tensor(preprocess.std, dtype=dtype, device=device)[:, None, None]

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """The same arithmetic as torchvision's ToTensor and Normalize, in this order."""
        batch = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return batch.to(self._dtype).div_(255).sub_(self._mean).div_(self._std)


class TrainingImages:
    """The normal training images of some categories: implements `harness.api.TrainingSet`."""

    def __init__(
        self,
        manifest: Manifest,
        categories: Sequence[str],
        preprocess: Preprocess,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        cache: bool = True,
        progress: Progress | None = None,
        samples: Sequence[Sample] | None = None,
    ) -> None:
        """samples: only these of the manifest's (few-shot support images), instead of all normal training images.

        Raises `DataError` for a category without a readable training image, and, in strict mode, for the first unreadable one.
        """
        check_preprocess(preprocess)
        chosen = [s for s in manifest.samples if s.split == "train" and s.label == 0] if samples is None else list(samples)
        self._manifest, self._preprocess, self._device = manifest, preprocess, device
        self._normalise = Normaliser(preprocess, device, dtype)
        self._rows: dict[str, Rows] = {}
        self._whole: dict[str, Rows] = {}  # before the crop; opened when asked for
        self._cache = cache
        self._samples: list[Sample] = []
        self._categories = [category for category in manifest.categories if category in categories]
        for category in self._categories:
            group = [sample for sample in chosen if sample.category == category]
            rows = open_pixels(manifest, group, preprocess, cache=cache, progress=progress)
            readable = [sample for sample in group if sample.image in rows.position]
            if not readable:
                raise DataError(
                    f"{manifest.info.name} in {manifest.root}: category {category} has no readable normal training image.",
                    f"Type: bench data verify {manifest.info.name} --data-root {manifest.root}, or leave it out with --categories.",
                )
            self._rows[category] = rows
            self._samples += readable

    @property
    def samples(self) -> Sequence[Sample]:
        """The readable ones, in the manifest's order."""
        return self._samples

    @property
    def categories(self) -> Sequence[str]:
        """In the official order."""
        return self._categories

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """(B, 3, H, W), normalised, on the device."""
        return self._normalise(self._read(self._rows, self._preprocess.crop, indices))

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """(B, 3, h, w) uint8 at resize size, on the device; at crop size with `shorter_side`, whose sizes would differ.

        Decoded into a cache of their own when first asked for; where nothing is cut off they are those of `batch`.
        """
        whole = self._preprocess
        if not whole.shorter_side and whole.crop != whole.resize:
            whole = replace(whole, crop=whole.resize)
            for category in self._categories:
                if category not in self._whole:
                    group = [sample for sample in self._samples if sample.category == category]
                    self._whole[category] = open_pixels(self._manifest, group, whole, cache=self._cache)
        rows = self._rows if whole is self._preprocess else self._whole
        return torch.from_numpy(self._read(rows, whole.crop, indices)).to(self._device)

    def _read(self, rows: Mapping[str, Rows], size: Size, indices: Sequence[int]) -> NDArray[np.uint8]:
        """(B, 3, *size) of the rows of each sample's category."""
        out = np.empty((len(indices), 3, *size), dtype=np.uint8)

        def read(i: int) -> None:
            sample = self._samples[indices[i]]
            out[i] = rows[sample.category].read([sample])[0]

        if any(part.data is None for part in rows.values()):  # at each access: by threads, as the originals' loader by processes
            with ThreadPoolExecutor(workers(), thread_name_prefix="decode") as pool:
                list(pool.map(read, range(len(indices))))
        else:
            for i in range(len(indices)):
                read(i)
        return out

    def masks(self, indices: Sequence[int]) -> Tensor:
        """(B, H, W) bool at crop size, on the device; all False for normal images. Read from the files at each call."""
        height, width = self._preprocess.crop
        out = torch.zeros(len(indices), height, width, dtype=torch.bool)
        for i, index in enumerate(indices):
            sample = self._samples[index]
            if sample.label == 1:
                if sample.mask is None:
                    raise DataError(f"{sample.image} is anomalous and has no mask to train with.", "Leave it out, or add its mask.")
                grey = mask_at_crop(stored_mask(self._manifest, sample), self._preprocess)
                out[i] = torch.from_numpy((grey > 0.5).any(axis=0))
        return out.to(self._device)


def test_batches(
    manifest: Manifest,
    category: str,
    preprocess: Preprocess,
    scoring: Scoring,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    cache: bool = True,
    progress: Progress | None = None,
) -> Iterator[Batch]:
    """The test images of a category, in the manifest's order, with their ground truth; the next batch is read ahead.

    Raises `DataError` for a category without a readable test image and, in strict mode, for the first unreadable file.
    """
    check_preprocess(preprocess)
    group = [(i, s) for i, s in enumerate(manifest.samples) if s.category == category and s.split == "test" and s.label >= 0]
    rows = open_pixels(manifest, [s for _, s in group], preprocess, cache=cache, progress=progress)
    group = [(i, s) for i, s in group if s.image in rows.position]
    if not group:
        raise DataError(
            f"{manifest.info.name} in {manifest.root}: category {category} has no readable test image.",
            f"Type: bench data verify {manifest.info.name} --data-root {manifest.root}, or leave it out with --categories.",
        )
    truth = _open_truth(manifest, [s for _, s in group], preprocess, scoring, cache)
    normalise = Normaliser(preprocess, device, dtype)
    batches = [group[start : start + batch_size] for start in range(0, len(group), batch_size)]

    def read(batch: Sequence[tuple[int, Sample]]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        samples = [sample for _, sample in batch]
        return rows.read(samples), _read_truth(truth, samples, scoring.metric_size)

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        coming = pool.submit(read, batches[0])
        for number, batch in enumerate(batches):
            pixels, masks = coming.result()
            if number + 1 < len(batches):
                coming = pool.submit(read, batches[number + 1])
            known = [s.image in truth.position if s.label == 1 else bool(truth.position) for _, s in batch]
            yield Batch(
                normalise(pixels),
                torch.from_numpy(masks),
                torch.tensor([s.label for _, s in batch]),
                torch.tensor(known),
                [i for i, _ in batch],
            )


def prepare(
    manifest: Manifest,
    categories: Sequence[str],
    preprocess: Preprocess,
    scoring: Scoring,
    *,
    cache: bool = True,
    progress: Progress | None = None,
    train: Sequence[Sample] | None = None,
) -> None:
    """Decode everything a run will need before it begins: a broken test image is found now, not after hours of training.

    train: only these training images (few-shot support images), instead of all normal ones.
    What was decoded earlier is not decoded again, but its findings are noted again, so that a resumed run knows them too.
    Raises as `TrainingImages` and `test_batches` do for broken files.
    """
    check_preprocess(preprocess)
    for category in categories:
        normal = [s for s in manifest.samples if s.split == "train" and s.label == 0] if train is None else train
        wanted = [s for s in normal if s.category == category]
        test = [s for s in manifest.samples if s.category == category and s.split == "test" and s.label >= 0]
        if wanted:
            open_pixels(manifest, wanted, preprocess, cache=cache, progress=progress)
        rows = open_pixels(manifest, test, preprocess, cache=cache, progress=progress)
        _open_truth(manifest, [s for s in test if s.image in rows.position], preprocess, scoring, cache)


def stored_mask(manifest: Manifest, sample: Sample) -> Mask:
    """The mask of a sample on its image's grid. Raises `UnreadableError` naming the mask."""
    assert sample.mask is not None, sample.image
    size = image_size(manifest.root / sample.image, sample.image)
    return read_mask(manifest.root / sample.mask, size, sample.mask)


# --- ground truth at the metrics' size ------------------------------------------------------------------------------


def _decode_truth(manifest: Manifest, preprocess: Preprocess, scoring: Scoring) -> Decode:
    """A sample's mask as packed bits (H * W / 8,) at the metrics' size."""

    def decode(sample: Sample) -> Row:
        try:
            mask = stored_mask(manifest, sample)
        except UnreadableError as error:
            return None, [Finding(sample.mask or "", "unreadable_mask", error.reason)]
        grid: Size = (mask.channels.shape[1], mask.channels.shape[2])
        findings = []
        if mask.stored != grid:
            findings.append(Finding(sample.mask or "", "size_mismatch", size_message(mask.stored, grid)))
        bits = ground_truth(torch.from_numpy(mask_at_crop(mask, preprocess))[None], scoring)[0]
        return np.packbits(bits.numpy()), findings

    return decode


def _open_truth(manifest: Manifest, samples: Sequence[Sample], preprocess: Preprocess, scoring: Scoring, cache: bool) -> Rows:
    """Packed ground truth of the anomalous samples that have a mask; an unreadable mask has no row."""
    geometry = asdict(preprocess)
    shape = (-(-scoring.metric_size[0] * scoring.metric_size[1] // 8),)
    what = {"rows": "mask", **{key: geometry[key] for key in ("resize", "crop", "shorter_side")}, "scoring": asdict(scoring)}
    decode = _decode_truth(manifest, preprocess, scoring)
    masked = [sample for sample in samples if sample.label == 1 and sample.mask is not None]
    return open_rows(manifest, masked, decode, shape, what, cache=cache) if masked else Rows(shape, {}, None, decode)


def _read_truth(truth: Rows, samples: Sequence[Sample], size: Size) -> NDArray[np.bool_]:
    """(B, *size) bool; all False for samples without a mask."""
    out = np.zeros((len(samples), *size), dtype=np.bool_)
    for i, sample in enumerate(samples):
        if sample.image in truth.position:
            bits = np.unpackbits(truth.read([sample])[0], count=size[0] * size[1])
            out[i] = bits.reshape(size).astype(np.bool_)
    return out
