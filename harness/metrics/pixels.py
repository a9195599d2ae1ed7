"""All pixels of a category, kept as they came: every metric is then exact.

What matters at an anomalous score is how many normal pixels lie above it and how many share it. Sorting every pixel would tell, but
few pixels are near an anomalous one: a coarse histogram of all keys counts the bins that hold no score of interest, and only the
pixels of the other bins are sorted. Counts are integers, so the result does not depend on order, batch size or device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics.curve import Groups
from inpbench.harness.metrics.keys import Ints, keys_of, ordered_keys

CHUNK = 1 << 23  # pixels held in one tensor
COARSE_BITS = 20  # the coarse histogram has at most 2^20 bins: it stays in a processor's cache


class PixelStore:
    """Scores in chunks of CHUNK pixels, in the order they came, and the anomalous ones again with the area of their region."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float32  # float64 from the first float64 map on
        self.total = 0  # pixels
        self._chunks: list[Tensor] = []
        self._used = 0  # pixels of the last chunk
        self._anomalous: list[Tensor] = []
        self._areas: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = []

    def add(self, scores: Tensor, anomalous: Tensor, areas: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        """scores: (n,) float32 or float64, at most what is left is stored; anomalous: (p,) of them again; areas: (p,)."""
        if scores.dtype == torch.float64 and self.dtype == torch.float32:
            self.dtype = torch.float64  # float32 scores are float64 scores: nothing is lost
            self._chunks = [chunk.double() for chunk in self._chunks]
        start = 0
        while start < scores.numel():
            if not self._chunks or self._used == CHUNK:
                self._chunks.append(torch.empty(CHUNK, dtype=self.dtype, device=self.device))
                self._used = 0
            count = min(CHUNK - self._used, scores.numel() - start)
            # Adding 0 copies, widens, and turns -0.0 into 0.0, in one pass.
            torch.add(scores[start : start + count], 0.0, out=self._chunks[-1][self._used : self._used + count])
            self._used += count
            start += count
        self.total += scores.numel()
        if areas.size:
            self._anomalous.append(anomalous)
            self._areas.append(areas)

    def chunks(self) -> Iterator[Tensor]:
        """The scores, (n,) at a time."""
        for chunk in self._chunks[:-1]:
            yield chunk
        if self._used:
            yield self._chunks[-1][: self._used]

    def anomalous(self) -> tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.int32]]]:
        """Scores (P,) of the anomalous pixels on the device and the areas (P,) of their regions."""
        if not self._areas:
            return torch.empty(0, dtype=self.dtype, device=self.device), np.empty(0, np.int32)
        if len(self._areas) > 1:
            self._anomalous = [torch.cat([part.to(self.dtype) for part in self._anomalous])]
            self._areas = [np.concatenate(self._areas)]
        return self._anomalous[0].to(self.dtype), self._areas[0]

    def clear(self) -> None:
        """Forget every pixel, keep one chunk's memory."""
        self._chunks, self._used, self.total = self._chunks[:1], 0, 0
        self._anomalous, self._areas = [], []

    def range(self) -> tuple[float, float]:
        """Smallest and largest score. Waits for the device."""
        extremes = torch.stack([torch.stack(torch.aminmax(chunk)) for chunk in self.chunks()])
        return float(extremes[:, 0].amin()), float(extremes[:, 1].amax())

    def first_not_finite(self) -> int | None:
        """Position of the first NaN or infinite score, or None. Waits for the device."""
        start = 0
        for chunk in self.chunks():
            if not bool(torch.isfinite(torch.stack(torch.aminmax(chunk))).all()):
                return start + int(torch.nonzero(~torch.isfinite(chunk))[0])
            start += chunk.numel()
        return None

    # --- the walk ---------------------------------------------------------------------------------------------------

    def walk(self, queries: Ints) -> Iterator[Groups]:
        """One piece with a group for every distinct anomalous score and every key of `queries`, each between the extremes."""
        if self.total == 0:
            return
        scores, areas = self.anomalous()
        keys, counts, shares = distinct(keys_of(scores.cpu().numpy()), areas)
        targets = np.union1d(keys, queries)  # ascending
        if targets.size == 0:
            return
        anomalous = np.zeros(targets.size, np.int64)
        share = np.zeros(targets.size, np.float64)
        at = np.searchsorted(targets, keys)
        anomalous[at], share[at] = counts, shares
        above, equal = self._count(targets)
        above -= anomalous[::-1].cumsum()[::-1] - anomalous  # of all pixels: those that are anomalous
        equal -= anomalous
        yield Groups(targets[::-1], above[::-1], equal[::-1], anomalous[::-1], share[::-1])

    def _count(self, targets: Ints) -> tuple[Ints, Ints]:
        """Pixels strictly above each target and pixels equal to it; targets (T,) ascending, all within the extremes."""
        low, high = (int(key) for key in keys_of(np.array(self.range(), np.float64 if self.dtype == torch.float64 else np.float32)))
        shift = 0
        while (high >> shift) - (low >> shift) >= 1 << COARSE_BITS:
            shift += 1
        base = low >> shift
        bins = (high >> shift) - base + 1
        target_bins = (targets >> shift) - base
        wanted = torch.zeros(bins, dtype=torch.bool, device=self.device)
        wanted[torch.from_numpy(target_bins).to(self.device)] = True
        histogram = torch.zeros(bins, dtype=torch.int64, device=self.device)
        near = []
        for chunk in self.chunks():
            keys = chunk.view(torch.int64 if self.dtype == torch.float64 else torch.int32) if low >= 0 else ordered_keys(chunk)
            bin_of = (keys >> shift).sub_(base).to(torch.int32)
            histogram += torch.bincount(bin_of, minlength=bins)
            near.append(keys[wanted.index_select(0, bin_of)].cpu().numpy())
        histogram[wanted] = 0
        beyond = (histogram.flip(0).cumsum(0).flip(0) - histogram).cpu().numpy()  # pixels in unwanted bins above each bin
        sorted_keys = np.sort(np.concatenate(near)).astype(np.int64)
        upto = np.searchsorted(sorted_keys, targets, "right")
        above = beyond[target_bins] + (sorted_keys.size - upto)
        return above, upto - np.searchsorted(sorted_keys, targets, "left")


def distinct(
    keys: Ints, areas: np.ndarray[tuple[int], np.dtype[np.int32]]
) -> tuple[Ints, Ints, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Distinct keys ascending, how many pixels have each, and their summed 1 / area; added in an order that the pixels alone decide."""
    order = np.lexsort((areas, keys))
    keys, shares = keys[order], 1.0 / areas[order]
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if keys.size else np.empty(0, np.int64)
    counts = np.diff(starts, append=keys.size)
    return keys[starts], counts, np.add.reduceat(shares, starts) if keys.size else shares


def raise_not_finite(value_of: str, index: int) -> None:
    """Raise the `MetricError` that names the image."""
    raise MetricError(
        f"{value_of} of image {index} (counted from 0 in the order of the category's images) is NaN or infinite; scores are finite.",
        "Look at the method's output for that image; half precision overflows above 65504.",
    )
