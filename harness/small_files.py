"""Small files that somebody else may have written, read without trust: records, baselines, histories, lists.

Only a regular file is read (a fifo would wait for ever, a device never ends), and only up to a size. JSON is strict: UTF-8, no
NaN, no number that a float cannot hold, no key twice in an object (the last one would win in silence), no endless nesting.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

LARGEST = 1 << 28  # bytes
_DIGITS = 309  # of a whole number that a float can hold


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The bytes of a regular file. Raises `OSError`, also for what is no regular file, and for more than `most` bytes."""
    # Without the flag a fifo would block here until somebody writes to it; regular files do not know it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, "it is no regular file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


def read_json(path: Path, most: int = LARGEST) -> Any:
    """The JSON value of a file. Raises `OSError` as `read_bytes` and `ValueError` as `parse_json`."""
    return parse_json(read_bytes(path, most))


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text; raises `ValueError`, and nothing else, for what the module docstring excludes."""
    text = data if isinstance(data, str) else data.decode("utf-8")
    try:
        return json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole, object_pairs_hook=_each_key_once
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not allowed")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"no float holds the number {text[:20]}")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"no float holds a whole number of {len(text)} digits")
    return int(text)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} stands there twice")
    return found
