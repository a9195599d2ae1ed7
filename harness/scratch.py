"""Large temporary tensors in files: what does not fit into memory, for the time of one process.

The file is given its full size first (a full disk is an answer, not a crash) and unlinked at once, so that nothing is left behind,
however the process ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger("inpbench")


class Scratch:
    """`harness.api.Context.array`: memory-mapped tensors below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """An uninitialised tensor of this shape in a file, or None (said in the log) where the disk has no room for it."""
        size = torch.Size(shape).numel()
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        needed = size * dtype.itemsize
        path = self._folder / f"{name}.{os.getpid()}.bin"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
            if needed > free:
                raise OSError(f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, needed)
                else:
                    file.truncate(needed)
            return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
        except OSError as error:
            log.warning("%s cannot be kept in %s (%s).", name, self._folder, error)
            return None
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # the mapping keeps the bytes
