"""All pixels of a category, kept as they came: every metric is then exact.

What matters at an anomalous score is how many normal pixels lie above it and how many share it: `counting` tells. Counts are
integers, so the result does not depend on order, batch size, threads or device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics.counting import count, split
from inpbench.harness.metrics.curve import Groups
from inpbench.harness.metrics.keys import Floats, Ints, keys_of
from inpbench.harness.metrics.memory import keep, room
from inpbench.harness.metrics.regions import Areas
from inpbench.harness.metrics.workers import workers

CHUNK = 1 << 20  # pixels held in one tensor; NumPy asks the system for large pages from 4 MiB on, which cost a fifth to fill


class PixelStore:
    """Scores in chunks of CHUNK pixels, in the order they came, and the anomalous ones again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float32  # float64 from the first float64 map on
        self.total = 0  # pixels
        self._chunks: list[Tensor] = []
        self._used = 0  # pixels of the last chunk
        self._extremes: tuple[int, float, float] = (0, np.inf, -np.inf)  # of how many pixels; the smallest and the largest score
        self._anomalous: list[Tensor] = []

    def add(self, scores: Tensor) -> None:
        """scores: (n,) float32 or float64."""
        if scores.dtype == torch.float64 and self.dtype == torch.float32:
            self.dtype = torch.float64  # float32 scores are float64 scores: nothing is lost
            self._chunks = [chunk.double() for chunk in self._chunks]
        start = 0
        while start < scores.numel():
            if not self._chunks or self._used == CHUNK:
                self._chunks.append(room(CHUNK, self.dtype, self.device))
                self._used = 0
            size = min(CHUNK - self._used, scores.numel() - start)
            found = keep(scores[start : start + size], self._chunks[-1][self._used : self._used + size])
            if found is not None:
                seen, low, high = self._extremes
                self._extremes = (seen + size, float(np.minimum(low, found[0])), float(np.maximum(high, found[1])))
            self._used += size
            start += size
        self.total += scores.numel()

    def add_anomalous(self, scores: Tensor) -> None:
        """scores: (p,) the anomalous ones of those added before, again."""
        self._anomalous.append(scores)

    def chunks(self) -> Iterator[Tensor]:
        """The scores, (n,) at a time."""
        yield from self._chunks[:-1]
        if self._used:
            yield self._chunks[-1][: self._used]

    def anomalous(self) -> Tensor:
        """Scores (P,) of the anomalous pixels, in the order they came."""
        if len(self._anomalous) != 1:
            parts = [part.to(self.dtype) for part in self._anomalous]
            self._anomalous = [torch.cat(parts) if parts else torch.empty(0, dtype=self.dtype, device=self.device)]
        return self._anomalous[0].to(self.dtype)

    def round(self) -> None:
        """Round float64 scores to float32."""
        if self.dtype == torch.float32:
            return
        self._chunks, self._anomalous = [chunk.float() for chunk in self._chunks], [self.anomalous().float()]
        self.dtype = torch.float32
        self._extremes = (0, np.inf, -np.inf)  # those of float64 may lie outside

    def pop(self) -> Iterator[Tensor]:
        """The scores, (n,) at a time, forgetting each; the anomalous ones stay until `clear`."""
        chunks, self._chunks = list(self.chunks()), []
        while chunks:
            yield chunks.pop(0)

    def clear(self) -> None:
        """Forget every pixel."""
        self._chunks, self._anomalous = [], []
        self._used = self.total = 0
        self._extremes = (0, np.inf, -np.inf)

    def range(self) -> tuple[float, float]:
        """Smallest and largest score; NaN if there is one. Waits for the device."""
        if self._extremes[0] != self.total:
            with workers(self.device, self.total) as run:
                found = torch.stack(run(extremes, split(list(self.chunks())))).to(self.dtype)
            self._extremes = (self.total, float(found[:, 0].amin()), float(found[:, 1].amax()))
        return self._extremes[1:]

    def first_not_finite(self) -> int | None:
        """Position of the first NaN or infinite score, or None. Waits for the device."""
        if not self.total or np.isfinite(self.range()).all():
            return None
        start = 0
        for chunk in self.chunks():
            bad = torch.nonzero(~torch.isfinite(chunk))
            if bad.numel():
                return start + int(bad[0])
            start += chunk.numel()
        raise AssertionError("the extremes are not finite, but every score is")

    # --- the walk ---------------------------------------------------------------------------------------------------

    def walk(self, areas: Areas, queries: Ints) -> Iterator[Groups]:
        """One piece with a group for every distinct anomalous score and every key of `queries`.

        areas: (P,) of the regions of the anomalous pixels; queries: (Q,) keys between the extremes.
        """
        keys, counts, shares = distinct(self.anomalous().cpu().numpy(), areas)
        if queries.size:
            targets = np.union1d(keys, queries)  # ascending
            at = np.searchsorted(targets, keys)
            anomalous, share = np.zeros(targets.size, np.int64), np.zeros(targets.size, np.float64)
            anomalous[at], share[at] = counts, shares
        else:
            targets, anomalous, share = keys, counts, shares
        if targets.size == 0:
            return
        above, equal = count(list(self.chunks()), targets, self.range())
        above -= anomalous[::-1].cumsum()[::-1] - anomalous  # counts of all pixels become counts of normal ones
        equal -= anomalous
        yield Groups(targets[::-1], above[::-1], equal[::-1], anomalous[::-1], share[::-1])


def extremes(scores: Tensor) -> Tensor:
    """(2,) the smallest and the largest of scores (n,); NaN if there is one."""
    return torch.stack(torch.aminmax(scores))


def distinct(scores: Floats, areas: Areas) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Distinct keys ascending, how many pixels have each, and their summed 1 / area.

    scores: (P,) float32 or float64; areas: (P,) int32. The sums are taken in an order that the pixels alone decide.
    """
    keys = keys_of(scores)
    if scores.dtype == np.float32:
        both = (keys << 32) | areas  # one sort of 64-bit integers instead of a sort by two columns
        both.sort()
        keys, areas = both >> 32, both.astype(np.int32)
    else:
        order = np.lexsort((areas, keys))
        keys, areas = keys[order], areas[order]
    if not keys.size:
        return keys, keys, np.empty(0, np.float64)
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    # Not by bincount, which adds one by one: reduceat adds in pairs, and a constant map has millions of terms.
    return keys[starts], np.diff(starts, append=keys.size), np.add.reduceat(1.0 / areas, starts)


def raise_not_finite(value_of: str, index: int) -> None:
    """Raise the `MetricError` that names the image."""
    raise MetricError(
        f"{value_of} of image {index} (counted from 0 in the order of the category's images) is NaN or infinite, not a score.",
        "Look at the method's output for that image; half precision overflows above 65504.",
    )
