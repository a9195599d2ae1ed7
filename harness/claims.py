"""Claims: one process at a time works on one thing, and a killed process gives its claim back by dying.

A claim is an advisory lock of the operating system on a small file, so there is no heartbeat, no clock and no stale claim.
On file systems without locks (some network mounts) the claim is granted with a warning in the log, once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from inpbench.harness.atomic import cannot
from inpbench.harness.errors import BenchError

log = logging.getLogger("inpbench")


class ClaimedError(BenchError):
    """Another process is at work on this very thing."""


@contextlib.contextmanager
def claim(path: Path, *, wait: bool = False, what: str = "") -> Iterator[None]:
    """Hold the lock file `path` for the time of the block.

    wait: block until it is free; otherwise raise `ClaimedError` at once. The empty lock file is left in place: removing it
    would let two processes hold "the same" lock on two files. Raises `RecordError` where the file system refuses the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise cannot(f"write {path}", error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClaimedError(
                f"Another bench is at work on {what or path}.", "Wait for it, or choose another folder with --results."
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): do not run two benches on this folder.", path, error.strerror)
        yield
    finally:
        os.close(handle)
