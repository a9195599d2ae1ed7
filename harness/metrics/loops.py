"""The loops over all pixels, compiled where numba is installed (extra `fast`): one pass where NumPy and torch take several.

Their callers take them where COMPILED, and count by tables elsewhere; both find the same integers. A loop lets go of the
interpreter, so threads run side by side, and is compiled once for a machine and a type of keys: numba keeps what it compiled beside
this file, or in the user's cache folder where that cannot be written. An index that is computed for each pixel is unsigned: numba
asks of others whether they count from the end, which costs a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from inpbench.harness.metrics.keys import Ints

try:
    import numba
except ImportError:
    numba = None

COMPILED: bool = numba is not None and not numba.config.DISABLE_JIT
F = TypeVar("F", bound=Callable[..., Any])
Keys = NDArray[Any]  # int32 or int64
Longs = NDArray[np.int64]


def compiled(function: F) -> F:
    """The compiled function, or itself; numba's own decorator has no types."""
    if not COMPILED:
        return function
    done: F
    try:
        done = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep it in can be written: every process compiles for itself, two seconds
        done = numba.njit(nogil=True)(function)
    return done


@compiled
def keep(scores: Keys, kept: Keys) -> tuple[int, int]:
    """Copy the bits of scores (n,) to `kept` (n,), those of -0.0 as those of 0.0; returns the smallest and the largest key.

    The key of a NaN lies beyond those of the infinities.
    """
    sign, most, lowest = scores.dtype.type(8 * scores.itemsize - 1), np.iinfo(scores.dtype).max, np.iinfo(scores.dtype).min
    low, high = most, lowest
    for at in range(scores.size):
        bits = scores[at]
        if bits == lowest:
            bits = scores.dtype.type(0)
        kept[at] = bits
        key = bits ^ ((bits >> sign) & most)
        low, high = min(low, key), max(high, key)
    return low, high


@compiled
def find_runs(pixels: NDArray[np.uint8], width: int, starts: Longs, ends: Longs) -> int:
    """Write the runs of masks (rows * width,) of 0 and 1, row by row, and return how many these are.

    starts, ends: at least as many as there are anomalous pixels; run r is pixels[starts[r] : ends[r]].
    """
    words = pixels[: pixels.size // 8 * 8].view(np.uint64)
    found = at = 0
    while at < pixels.size:
        if at & 7 == 0:
            word = at >> 3
            while word < words.size and words[np.uint64(word)] == np.uint64(0):  # most pixels are normal: eight at a time
                word += 1
            at = word << 3
            if at == pixels.size:
                break
        if pixels[np.uint64(at)] == np.uint8(0):
            at += 1
            continue
        starts[found] = at
        last = (at // width + 1) * width  # a run ends with its row
        while at < last and pixels[np.uint64(at)] != np.uint8(0):
            at += 1
        ends[found] = at
        found += 1
    return found


@compiled
def link_runs(starts: Longs, ends: Longs, height: int, width: int, above: Longs, below: Longs) -> int:
    """Write which runs touch and return how many pairs these are: run above[i] lies in the row over that of below[i], which ascend.

    starts, ends: (R,) as `find_runs` writes them; above, below: (2 R,). Runs of two images never touch.
    """
    found = first = 0  # pairs; the first run that may touch the next one
    for run in range(starts.size):
        row = starts[run] // width
        if row % height == 0:
            continue
        begin = row * width
        while starts[first] < begin - width or ends[first] + width < starts[run]:
            first += 1  # to `run` itself at most
        other = first
        while starts[other] < begin and starts[other] + width <= ends[run]:
            above[found], below[found] = other, run
            found += 1
            other += 1
    return found


@compiled
def look(keys: Keys, shift: int, base: int, histogram: NDArray[np.unsignedinteger[Any]], near: Keys) -> int:
    """Count keys in bins, copy those in marked bins to `near`, and return how many these are.

    keys: (n,); the bin of one is (key >> shift) - base. histogram: (bins,), grows by one for each key; the highest bit of marked
    bins is set. near: (n + 1,) of the type of the keys.
    """
    used, one, highest = np.uint64(0), histogram.dtype.type(1), histogram.dtype.type(8 * histogram.itemsize - 1)
    for at in range(keys.size):
        key = keys[at]
        place = np.uint64((key >> keys.dtype.type(shift)) - base)
        count = histogram[place]
        histogram[place] = count + one
        near[used] = key  # written over by the next one unless it counts: a jump that depends on the score would cost more
        used += np.uint64(count >> highest)
    return int(used)


@compiled
def sort_into_bins(keys: Keys, shift: int, base: int, begin: Keys, out: Keys) -> None:
    """Write keys (n,) to `out` (n,) bin by bin; begin: (bins,) where the keys of each bin begin, and where they end afterwards."""
    for at in range(keys.size):
        key = keys[at]
        place = np.uint64((key >> keys.dtype.type(shift)) - base)
        out[np.uint64(begin[place])] = key
        begin[place] += begin.dtype.type(1)


@compiled
def compare_in_bins(keys: Keys, ends: Ints, targets: Keys, target_ends: Ints, above: Ints, equal: Ints) -> None:
    """How many keys lie above each target and how many equal it: every key of a bin is compared with every target of the bin.

    keys: (n,) bin by bin, those of bin w end at ends[w], (W,); targets: (T,) ascending, those of bin w end at target_ends[w];
    above, equal: (T,), written to.
    """
    begin = first = np.uint64(0)
    for at in range(ends.size):
        end, last = np.uint64(ends[at]), np.uint64(target_ends[at])
        for target in range(first, last):
            value, higher, same = targets[target], np.int32(0), np.int32(0)
            for key in range(begin, end):
                higher += np.int32(keys[key] > value)
                same += np.int32(keys[key] == value)
            above[target] = keys.size - ends[at] + higher
            equal[target] = same
        begin, first = end, last


@compiled
def compare(keys: Keys, targets: Keys, above: Ints, equal: Ints) -> None:
    """The same of keys (n,) that ascend: a walk up both."""
    size = keys.size
    first = 0
    for at in range(targets.size):
        target = targets[at]
        while first < size and keys[first] < target:
            first += 1
        past = first
        while past < size and keys[past] == target:
            past += 1
        above[at] = size - past
        equal[at] = past - first
        first = past


@compiled
def key_of(bits: Any) -> Any:
    """The key of one float32 score from its bits, int32 both; that of -0.0 as of 0.0."""
    if bits == np.int32(-0x80000000):
        bits = np.int32(0)
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@compiled
def group(scores: Keys, shift: int, out: Keys) -> None:
    """Write the keys of scores to `out` so that those with the same ten bits above `shift` follow one another.

    scores: (n,) int32, the bits of float32 scores, fewer than 2^31; out: (n,) int32.
    """
    begin, lowest_ten, by = np.zeros(1025, np.int32), np.uint32(1023), np.int32(shift)
    for at in range(scores.size):
        begin[np.uint64(np.uint32(key_of(scores[at]) >> by) & lowest_ten) + np.uint64(1)] += np.int32(1)
    for at in range(1, 1024):
        begin[at] += begin[at - 1]
    for at in range(scores.size):
        key = key_of(scores[at])
        place = np.uint64(np.uint32(key >> by) & lowest_ten)
        to = begin[place]
        out[np.uint64(to)] = key
        begin[place] = to + np.int32(1)


@compiled
def count_in_pages(keys: Keys, slots: Keys, shift: int, page_bits: int, table: Keys) -> int:
    """Count keys (n,) int32 up to the first whose page has no memory, and return how many these are; as `PixelHistogram.add`.

    slots: (pages,) where each page's memory is, -1: it has none; table: (bins,), grows by one for each key. Fast where many keys of
    one page follow one another.
    """
    at, one, by, to_page = 0, table.dtype.type(1), np.int32(shift), np.int32(page_bits)
    while at < keys.size:
        page = keys[at] >> to_page
        slot = np.int64(slots[np.uint64(np.int64(page) + slots.size // 2)])
        if slot < 0:
            return at
        base = (slot - np.int64(page)) << (page_bits - shift)  # of the table's bins, less those of the keys below the page
        while at < keys.size and keys[at] >> to_page == page:
            table[np.uint64(base + np.int64(keys[at] >> by))] += one
            at += 1
    return keys.size
