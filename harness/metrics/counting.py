"""How many pixels lie above each of some scores and how many share it, without sorting all of them.

Few pixels are near a score of interest: a coarse histogram of all keys counts the bins that hold none, and only the pixels of the
other bins are sorted and compared. On the CPU one compiled loop does both where numba is installed; the counts are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpbench.harness.metrics import loops
from inpbench.harness.metrics.keys import BITS, Ints, bits_of, keys_of, ordered_keys
from inpbench.harness.metrics.memory import room, take
from inpbench.harness.metrics.workers import workers

PIECE = 1 << 18  # pixels looked at at a time: what is computed from them stays in a processor's cache
GROUP = 1 << 23  # pixels counted at a time: a call of bincount costs as much as its bins
FEWEST_BINS, MOST_BINS = 1 << 12, 1 << 20  # of the coarse histogram, which stays in a processor's cache
PIXELS_A_BIN, PIXELS_A_BIN_OF_LOOPS = 16, 24  # on average; with fewer the bins cost more than the pixels near none save
COUNTERS = (np.uint16, np.uint64)  # of the loops' histogram: the first wide enough, because narrow ones stay in the cache
MOST_COMPARISONS = 8  # of a near pixel, on average; beyond, sorting is faster


class Grid(NamedTuple):
    """The bins of the coarse histogram: key >> shift, minus base."""

    shift: int
    base: int
    bins: int
    wanted: Tensor  # (bins,) bool: those that hold a key of interest
    ordered: bool  # the scores' bits are their keys: none is negative


class Share(NamedTuple):
    """What a thread found among its pixels."""

    histogram: Tensor  # (bins,) pixels of each bin
    above: Ints  # (T,) pixels of wanted bins strictly above each target
    equal: Ints  # (T,) pixels equal to it


def count(chunks: Sequence[Tensor], targets: Ints, extremes: tuple[float, float]) -> tuple[Ints, Ints]:
    """Pixels strictly above each target and pixels equal to it, (T,) each.

    chunks: (n,) float32 or float64 each, without NaN and -0.0; targets: (T,) keys, ascending, all between the keys of `extremes`,
    the smallest and the largest score. Integers: neither order nor chunks nor threads nor device change them.
    """
    device, total = chunks[0].device, sum(chunk.numel() for chunk in chunks)
    by_loops = device.type == "cpu" and loops.COMPILED
    per_bin, find = (PIXELS_A_BIN_OF_LOOPS, find_by_loops) if by_loops else (PIXELS_A_BIN, find_by_tables)
    dtype = np.float64 if chunks[0].dtype == torch.float64 else np.float32
    grid = make_grid(targets, keys_of(np.array(extremes, dtype)), total // per_bin, device)
    sought = targets.astype(bits_of(dtype))
    with workers(device, total) as run:
        pieces = split(chunks)
        threads = min(run.threads, len(pieces))
        shares = run(lambda first: find(pieces[first::threads], grid, sought), range(threads))
        above, equal = (sum(parts[1:], parts[0]) for parts in ([one.above for one in shares], [one.equal for one in shares]))
        histogram = sum((one.histogram.long() for one in shares[1:]), shares[0].histogram.long())
        histogram[grid.wanted] = 0
        upto_bin = histogram.cumsum(0)  # pixels in unwanted bins up to each
        at = torch.from_numpy((targets >> grid.shift) - grid.base).to(device)
        above += (upto_bin[-1] - upto_bin.index_select(0, at)).cpu().numpy()
    return above, equal


def make_grid(targets: Ints, extremes: Ints, bins: int, device: torch.device) -> Grid:
    """At most `bins` bins, within limits, for keys between the extremes (2,); those of the targets (T,) are wanted."""
    low, high = (int(key) for key in extremes)
    shift, most = 0, min(MOST_BINS, max(FEWEST_BINS, bins))
    while (high >> shift) - (low >> shift) >= most:
        shift += 1
    base = low >> shift
    wanted = torch.zeros((high >> shift) - base + 1, dtype=torch.bool)
    wanted.numpy()[(targets >> shift) - base] = True
    return Grid(shift, base, wanted.numel(), wanted.to(device), low >= 0)


def split(chunks: Sequence[Tensor]) -> list[Tensor]:
    """The scores, as many at a time as a processor's cache holds; on another device, a chunk at a time."""
    return [piece for chunk in chunks for piece in (torch.split(chunk, PIECE) if chunk.device.type == "cpu" else (chunk,))]


# --- one thread's pixels --------------------------------------------------------------------------------------------------


def find_by_loops(pieces: Sequence[Tensor], grid: Grid, targets: NDArray[Any]) -> Share:
    """Pieces (n,) each, targets (T,) keys of the same width -> what they say, by compiled loops."""
    size, wanted = sum(piece.numel() for piece in pieces), grid.wanted.numpy()
    near = np.empty(size + 1, targets.dtype)  # most of it is never touched, and takes no memory
    for kind in COUNTERS:
        marked = kind(np.iinfo(kind).max // 2 + 1)
        histogram, used = wanted * marked, 0
        for piece in pieces:
            used += loops.look(keys_in(piece, grid).numpy(), grid.shift, grid.base, histogram, near[used:])
        histogram &= marked - kind(1)
        if histogram.sum(dtype=np.int64) == size:  # what does not fit is lost, never gained
            break
    counts = histogram.astype(np.int64)
    return Share(torch.from_numpy(counts), *compare(near[:used], counts[wanted], targets, grid))


def compare(near: NDArray[Any], counts: Ints, targets: NDArray[Any], grid: Grid) -> tuple[Ints, Ints]:
    """Near keys (n,) strictly above each target (T,), and near keys equal to it; counts: (W,) near keys of each wanted bin."""
    ends = counts.cumsum()
    bin_of = (targets >> grid.shift) - grid.base  # ascends, as the targets do
    target_ends = np.flatnonzero(np.append(bin_of[1:] != bin_of[:-1], True)) + 1
    above, equal = np.empty(targets.size, np.int64), np.empty(targets.size, np.int64)
    if counts @ np.diff(target_ends, prepend=0) > MOST_COMPARISONS * near.size:  # scores crowd in a few bins
        near.sort()
        loops.compare(near, targets, above, equal)
        return above, equal
    begin = np.zeros(grid.bins, np.int32 if near.size <= np.iinfo(np.int32).max else np.int64)
    begin[bin_of[target_ends - 1]] = ends - counts
    by_bin = np.empty_like(near)
    loops.sort_into_bins(near, grid.shift, grid.base, begin, by_bin)
    loops.compare_in_bins(by_bin, ends, targets, target_ends, above, equal)
    return above, equal


def find_by_tables(pieces: Sequence[Tensor], grid: Grid, targets: NDArray[Any]) -> Share:
    """The same by operations of torch and NumPy; of pieces on a device, what is near comes to the host."""
    device = grid.wanted.device
    histogram = torch.zeros(grid.bins, dtype=torch.int64, device=device)
    bins = room(min(GROUP, sum(piece.numel() for piece in pieces)), torch.int32, device)
    is_near = room(max(piece.numel() for piece in pieces), torch.bool, device)
    parts, used = [], 0
    for scores in pieces:
        size = scores.numel()
        if used + size > bins.numel():
            histogram += torch.bincount(bins[:used], minlength=grid.bins)
            used = 0
        keys = keys_in(scores, grid)
        bin_of = bins[used : used + size]
        if keys.dtype == bin_of.dtype:
            torch.bitwise_right_shift(keys, grid.shift, out=bin_of).sub_(grid.base)
        else:
            torch.sub(keys >> grid.shift, grid.base, out=bin_of)
        parts.append(_near(keys, torch.index_select(grid.wanted, 0, bin_of, out=is_near[:size])))
        used += size
    histogram += torch.bincount(bins[:used], minlength=grid.bins)
    near = np.concatenate(parts)
    near.sort()
    return Share(histogram, *search(near, targets))


def search(keys: NDArray[Any], targets: NDArray[Any]) -> tuple[Ints, Ints]:
    """Keys (n,) strictly above each target (T,), and keys equal to it; both ascend and are of one type."""
    if not keys.size:
        return np.zeros(targets.size, np.int64), np.zeros(targets.size, np.int64)
    first = np.searchsorted(keys, targets)
    last = keys.size - 1
    past = first + (keys[np.minimum(first, last)] == targets)
    # Most targets are the score of one pixel: only the others need a second search.
    several = np.flatnonzero((past > first) & (keys[np.minimum(past, last)] == targets))
    past[several] = np.searchsorted(keys, targets[several], "right")
    return keys.size - past, past - first


def keys_in(scores: Tensor, grid: Grid) -> Tensor:
    """Keys (n,) of scores (n,)."""
    return scores.view(BITS[scores.dtype]) if grid.ordered else ordered_keys(scores)


def _near(keys: Tensor, is_near: Tensor) -> NDArray[Any]:
    """The keys (n,) that are near (n,), on the host; by position, which costs half of a selection by truth."""
    if keys.device.type == "cpu":
        return take(keys, np.flatnonzero(is_near.numpy())).numpy()
    return keys[is_near].cpu().numpy()
