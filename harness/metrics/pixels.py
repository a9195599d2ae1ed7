"""All pixels of a category, kept as they came: every metric is then exact.

What matters at an anomalous score is how many normal pixels lie above it and how many share it. Sorting every pixel would tell, but
few pixels are near an anomalous one: a coarse histogram of all keys counts the bins that hold no score of interest, and only the
pixels of the other bins are sorted. Counts are integers, so the result does not depend on order, batch size, threads or device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics.curve import Groups
from inpbench.harness.metrics.keys import Floats, Ints, keys_of, ordered_keys
from inpbench.harness.metrics.regions import Areas

CHUNK = 1 << 20  # pixels held in one tensor; NumPy asks the system for large pages from 4 MiB on, which cost a fifth to fill
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
PIECE = 1 << 18  # pixels looked at at a time: what is computed from them stays in a processor's cache
GROUP = 1 << 23  # pixels counted at a time: a call of bincount costs as much as its bins
FEWEST_BINS, MOST_BINS = 1 << 12, 1 << 20  # of the coarse histogram, which stays in a processor's cache
PIXELS_A_BIN = 8  # on average; with fewer the bins cost more than the pixels that need no sorting save
MOST_THREADS = 4  # each holds a group and a histogram


class Grid(NamedTuple):
    """The bins of the coarse histogram: key >> shift, minus base."""

    shift: int
    base: int
    bins: int
    wanted: Tensor  # (bins,) bool: those that hold a key of interest
    ordered: bool  # the scores' bits are their keys: none is negative
    targets: Ints  # (T,) the keys of interest, ascending


class Look(NamedTuple):
    """What is seen of some pixels."""

    histogram: Tensor  # (bins,) int64, pixels of each bin
    above: Ints  # (T,) pixels of wanted bins that lie strictly above each target, and
    equal: Ints  # (T,) that are equal to it


class PixelStore:
    """Scores in chunks of CHUNK pixels, in the order they came, and the anomalous ones again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtype = torch.float32  # float64 from the first float64 map on
        self.total = 0  # pixels
        self._chunks: list[Tensor] = []
        self._used = 0  # pixels of the last chunk
        self._extremes: list[Tensor] = []  # (2,) smallest and largest score of what was added at a time
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
            count = min(CHUNK - self._used, scores.numel() - start, PIECE)
            kept = self._chunks[-1][self._used : self._used + count]
            self._extremes.append(_keep(scores[start : start + count], kept))
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
        self._chunks, self._anomalous, self._extremes = [], [], []
        self._used = self.total = 0

    def range(self) -> tuple[float, float]:
        """Smallest and largest score; NaN if there is one. Waits for the device."""
        extremes = torch.stack([some.to(self.dtype) for some in self._extremes])
        self._extremes = [torch.stack((extremes[:, 0].amin(), extremes[:, 1].amax()))]
        low, high = self._extremes[0].tolist()
        return low, high

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
        with one_thread(self.device) as threads:
            above, equal = self._count(targets, threads)
        above -= anomalous[::-1].cumsum()[::-1] - anomalous  # counts of all pixels become counts of normal ones
        equal -= anomalous
        yield Groups(targets[::-1], above[::-1], equal[::-1], anomalous[::-1], share[::-1])

    def _count(self, targets: Ints, threads: int) -> tuple[Ints, Ints]:
        """Pixels strictly above each target and pixels equal to it; targets (T,) ascending, all within the extremes."""
        dtype = np.float64 if self.dtype == torch.float64 else np.float32
        low, high = (int(key) for key in keys_of(np.array(self.range(), dtype)))
        shift, most = 0, min(MOST_BINS, max(FEWEST_BINS, self.total // PIXELS_A_BIN))
        while (high >> shift) - (low >> shift) >= most:
            shift += 1
        base = low >> shift
        bins = (high >> shift) - base + 1
        target_bins = torch.from_numpy((targets >> shift) - base).to(self.device)
        wanted = torch.zeros(bins, dtype=torch.bool, device=self.device)
        wanted[target_bins] = True
        grid = Grid(shift, base, bins, wanted, low >= 0, targets)
        looks = self._look(grid, threads)
        histogram = sum((one.histogram for one in looks[1:]), looks[0].histogram)
        histogram[target_bins] = 0
        upto_bin = histogram.cumsum(0)  # pixels in unwanted bins up to each
        above: Ints = (upto_bin[-1] - upto_bin.index_select(0, target_bins)).cpu().numpy()
        return sum((one.above for one in looks), above), sum((one.equal for one in looks[1:]), looks[0].equal)

    def _look(self, grid: Grid, threads: int) -> list[Look]:
        """What each of the threads sees of its share of the pixels."""
        pieces = list(self.chunks())
        if self.device.type == "cpu":
            pieces = [piece for chunk in pieces for piece in torch.split(chunk, PIECE)]
        threads = min(threads, MOST_THREADS, len(pieces))
        if threads == 1:
            return [look(pieces, grid)]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda share: look(share, grid), [pieces[first::threads] for first in range(threads)]))


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[int]:
    """Torch works in one thread meanwhile; yields how many threads may run in its place: one where `device` is not the CPU.

    The barriers of torch's threads cost more than the few operations between them, and its idle threads keep the processor busy.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield usual if device.type == "cpu" else 1
    finally:
        torch.set_num_threads(usual)


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
    return Look(histogram, *count_near(np.concatenate(near), grid.targets))


def count_near(keys: NDArray[Any], targets: Ints) -> tuple[Ints, Ints]:
    """Keys (n,) above each target (T,) and equal to it; sorts the keys in place, targets ascend."""
    keys.sort()
    # One search among the distinct keys gives both ends of the stretch that equals a target; it may be empty.
    starts = np.flatnonzero(np.concatenate((keys[:1] == keys[:1], keys[1:] != keys[:-1])))
    different = keys[starts]
    narrow = targets.astype(keys.dtype)
    at = np.searchsorted(different, narrow)
    found = np.append(different, narrow[:1])[at] == narrow
    found &= at < different.size
    starts = np.append(starts, keys.size)
    first, last = starts[at], starts[at + found]
    return keys.size - last, last - first


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


def _keep(scores: Tensor, kept: Tensor) -> Tensor:
    """Write scores (n,) to `kept` (n,) and return the smallest and the largest (2,); adding 0 turns -0.0 into 0.0 on the way.

    On the CPU by NumPy: a barrier of torch's threads costs more than these few operations on a busy machine.
    """
    if kept.device.type != "cpu":
        torch.add(scores, 0.0, out=kept)
        return torch.stack(torch.aminmax(kept))
    out = kept.numpy()
    np.add(scores.numpy(), 0.0, out=out)
    with np.errstate(invalid="ignore"):  # NaN is found by those who look at the extremes
        return torch.tensor((out.min(), out.max()), dtype=kept.dtype)


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
