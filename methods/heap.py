"""Training on a CPU keeps the memory that a step has freed: the next step needs the same.

By default glibc gives the top of its heap back to the system after each backward pass, and every page of the next forward pass is
then mapped and cleared anew: measured, a sixth of a step of the preset `demo`. Elsewhere (other C libraries, CUDA) nothing changes.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from inpbench.harness.api import Context

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_LARGEST = 32 << 20  # bytes: glibc's own upper bound for blocks that are cut from the heap
_KEPT = {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 1 << 30, _TOP_PAD: 64 << 20}
# What glibc's own adjustment ends at once blocks of that size were freed; it is off as soon as a value is set.
_USUAL = {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2 * _LARGEST, _TOP_PAD: 128 << 10}


@contextlib.contextmanager
def kept_heap(ctx: Context) -> Iterator[None]:
    """Keep up to 1 GiB of freed memory meanwhile: for the fast engine on a CPU, where the C library is glibc."""
    library = ctypes.CDLL(None)
    if ctx.engine != "fast" or ctx.device.type != "cpu" or not hasattr(library, "gnu_get_libc_version"):
        yield
        return
    try:
        for name, value in _KEPT.items():
            library.mallopt(name, value)
        yield
    finally:
        for name, value in _USUAL.items():
            library.mallopt(name, value)
        library.malloc_trim(0)
