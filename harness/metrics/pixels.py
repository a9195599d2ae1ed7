"""All pixels of a category, kept as they came: every metric is then exact.

What matters at an anomalous score is how many normal pixels lie above it and how many share it. Sorting every pixel would tell, but
few pixels are near an anomalous one: a coarse histogram of all keys counts the bins that hold no score of interest, and only the
pixels of the other bins are sorted. Counts are integers, so the result does not depend on order, batch size, threads or device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics.curve import Groups
from inpbench.harness.metrics.keys import Floats, Ints, keys_of, ordered_keys
from inpbench.harness.metrics.regions import Areas
from inpbench.harness.metrics.workers import Workers, workers

CHUNK = 1 << 20  # pixels held in one tensor; NumPy asks the system for large pages from 4 MiB on, which cost a fifth to fill
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
PIECE = 1 << 18  # pixels looked at at a time: what is computed from them stays in a processor's cache
GROUP = 1 << 23  # pixels counted at a time: a call of bincount costs as much as its bins
FEWEST_BINS, MOST_BINS = 1 << 12, 1 << 20  # of the coarse histogram, which stays in a processor's cache
PIXELS_A_BIN = 16  # on average; with fewer the bins cost more than the pixels that need no sorting save


class Grid(NamedTuple):
    """The bins of the coarse histogram: key >> shift, minus base."""

    shift: int
    base: int
    bins: int
    wanted: Tensor  # (bins,) bool: those that hold a key of interest
    ordered: bool  # the scores' bits are their keys: none is negative


class Look(NamedTuple):
    """What is seen of some pixels."""

    histogram: Tensor  # (bins,) int64, pixels of each bin
    near: NDArray[Any]  # (n,) keys of the pixels in wanted bins, in the order they came


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
                self._chunks.append(_room(CHUNK, self.dtype, self.device))
                self._used = 0
            count = min(CHUNK - self._used, scores.numel() - start)
            _keep(scores[start : start + count], self._chunks[-1][self._used : self._used + count])
            self._used += count
            start += count
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
        self._chunks, self._anomalous = [chunk.float() for chunk in self._chunks], [self.anomalous().float()]
        self.dtype = torch.float32

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
            with workers(self.device, len(self._chunks)) as run:
                found = torch.stack(run(extremes, self._pieces())).to(self.dtype)
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
        above, equal = self._count(targets)
        above -= anomalous[::-1].cumsum()[::-1] - anomalous  # counts of all pixels become counts of normal ones
        equal -= anomalous
        yield Groups(targets[::-1], above[::-1], equal[::-1], anomalous[::-1], share[::-1])

    def _count(self, targets: Ints) -> tuple[Ints, Ints]:
        """Pixels strictly above each target and pixels equal to it; targets (T,) ascending, all within the extremes."""
        grid = self._grid(targets)
        with workers(self.device, -(-self.total // PIECE)) as run:
            pieces = self._pieces()
            shares = [pieces[first :: run.threads] for first in range(run.threads)]
            looks = run(lambda share: look(share, grid), shares)
            near = np.concatenate([one.near for one in looks])
            sort(near, run)
            found = run(lambda some: count_near(near, some), np.array_split(targets.astype(near.dtype), run.threads))
        above, equal = (np.concatenate(parts) for parts in zip(*found, strict=True))
        histogram = sum((one.histogram for one in looks[1:]), looks[0].histogram)
        histogram[grid.wanted] = 0
        upto_bin = histogram.cumsum(0)  # pixels in unwanted bins up to each
        at = torch.from_numpy((targets >> grid.shift) - grid.base).to(self.device)
        above += (upto_bin[-1] - upto_bin.index_select(0, at)).cpu().numpy()
        return above, equal

    def _grid(self, targets: Ints) -> Grid:
        """Bins for the pixels seen; those of the targets (T,) are wanted."""
        dtype = np.float64 if self.dtype == torch.float64 else np.float32
        low, high = (int(key) for key in keys_of(np.array(self.range(), dtype)))
        shift, most = 0, min(MOST_BINS, max(FEWEST_BINS, self.total // PIXELS_A_BIN))
        while (high >> shift) - (low >> shift) >= most:
            shift += 1
        base = low >> shift
        wanted = torch.zeros((high >> shift) - base + 1, dtype=torch.bool)
        wanted.numpy()[(targets >> shift) - base] = True
        return Grid(shift, base, wanted.numel(), wanted.to(self.device), low >= 0)

    def _pieces(self) -> list[Tensor]:
        """The scores, as many at a time as a processor's cache holds; on another device, a chunk at a time."""
        size = PIECE if self.device.type == "cpu" else CHUNK
        return [piece for chunk in self.chunks() for piece in torch.split(chunk, size)]


def extremes(scores: Tensor) -> Tensor:
    """(2,) the smallest and the largest of scores (n,); NaN if there is one."""
    return torch.stack(torch.aminmax(scores))


def look(pieces: list[Tensor], grid: Grid) -> Look:
    """Count the scores of `pieces`, each (n,) with n up to GROUP."""
    device = grid.wanted.device
    histogram = torch.zeros(grid.bins, dtype=torch.int64, device=device)
    room = _room(min(GROUP, sum(piece.numel() for piece in pieces)), torch.int32, device)
    is_near = _room(max(piece.numel() for piece in pieces), torch.bool, device)
    near, used = [], 0
    for scores in pieces:
        count = scores.numel()
        if used + count > room.numel():
            histogram += torch.bincount(room[:used], minlength=grid.bins)
            used = 0
        keys = scores.view(_BITS[scores.dtype]) if grid.ordered else ordered_keys(scores)
        bin_of = room[used : used + count]
        if keys.dtype == bin_of.dtype:
            torch.bitwise_right_shift(keys, grid.shift, out=bin_of).sub_(grid.base)
        else:
            torch.sub(keys >> grid.shift, grid.base, out=bin_of)
        near.append(_near(keys, torch.index_select(grid.wanted, 0, bin_of, out=is_near[:count])))
        used += count
    histogram += torch.bincount(room[:used], minlength=grid.bins)
    return Look(histogram, np.concatenate(near))


def sort(keys: NDArray[Any], run: Workers) -> None:
    """Sort keys (n,) in place: parted at equal distances, the stretches between are each a thread's."""
    cuts = [keys.size * part // run.threads for part in range(1, run.threads)]
    if cuts:
        keys.partition(cuts)
    run(np.ndarray.sort, np.split(keys, cuts))


def count_near(keys: NDArray[Any], targets: NDArray[Any]) -> tuple[Ints, Ints]:
    """Keys (n,) strictly above each target (T,), and keys equal to it; both ascend and are of one type."""
    first = np.searchsorted(keys, targets)
    last = keys.size - 1
    past = first + (keys[np.minimum(first, last)] == targets)
    # Most targets are the score of one pixel: only the others need a second search.
    several = np.flatnonzero((past > first) & (keys[np.minimum(past, last)] == targets))
    past[several] = np.searchsorted(keys, targets[several], "right")
    return keys.size - past, past - first


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
    return keys[starts], np.diff(starts, append=keys.size), np.add.reduceat(1.0 / areas, starts)


def _room(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor (count,); of large pages on the CPU, where NumPy asks the system for them and torch does not."""
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(count, str(dtype).removeprefix("torch.")))


def _keep(scores: Tensor, kept: Tensor) -> None:
    """Write scores (n,) to `kept` (n,); adding 0 turns -0.0 into 0.0 on the way.

    On the CPU by NumPy: a barrier of torch's threads costs more than the operation on a busy machine.
    """
    if kept.device.type == "cpu":
        np.add(scores.numpy(), 0.0, out=kept.numpy())
    else:
        torch.add(scores, 0.0, out=kept)


def take(values: Tensor, positions: Ints) -> Tensor:
    """values[positions]: (n,), (p,) int64 on the host -> (p,); on the CPU by NumPy, which is twice as fast."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy()[positions])
    return values[sent(torch.from_numpy(positions), values.device)]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; the host does not wait for what the device is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _near(keys: Tensor, is_near: Tensor) -> NDArray[Any]:
    """The keys (n,) that are near (n,), on the host; by position, which costs half of a selection by truth."""
    if keys.device.type == "cpu":
        return take(keys, np.flatnonzero(is_near.numpy())).numpy()
    return keys[is_near].cpu().numpy()


def raise_not_finite(value_of: str, index: int) -> None:
    """Raise the `MetricError` that names the image."""
    raise MetricError(
        f"{value_of} of image {index} (counted from 0 in the order of the category's images) is NaN or infinite, not a score.",
        "Look at the method's output for that image; half precision overflows above 65504.",
    )
