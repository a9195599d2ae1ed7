"""Files that are either the old one or the new one, never half of each.

Write beside the target, flush to the disk, rename over it, flush the folder: after a crash at any moment a reader finds the old
file complete or the new file complete. Whatever goes wrong leaves the old file alone and no temporary file behind (a process
killed outright may leave one; its name ends in `.tmp`, which no reader looks at, and `sweep` removes it). Only a regular file is
ever replaced: a rename over a device or a fifo would put a file in its place.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import stat
from pathlib import Path

from inpbench.harness.errors import RecordError

_HINTS = {
    errno.ENOSPC: "The disk is full: free some space and run the same command again.",
    errno.EDQUOT: "The disk quota is used up: free some space and run the same command again.",
    errno.EROFS: "The file system is read-only: choose another folder for the results.",
    errno.EACCES: "Choose a folder that you may write to, or change its permissions.",
    errno.EPERM: "Choose a folder that you may write to, or change its permissions.",
    errno.ENOTDIR: "A file stands where a folder is needed: move it away or choose another folder.",
    errno.EEXIST: "A file stands where a folder is needed: move it away or choose another folder.",
    errno.EISDIR: "A folder stands where the file belongs: move it away.",
    errno.EINVAL: "Choose the name of a file, or of a new one.",
    errno.EFBIG: "The file system or a limit (ulimit -f) allows no file of this size: choose another folder.",
    errno.ENOENT: "Choose a folder that can be made.",
}


def cannot(what: str, error: OSError) -> RecordError:
    """What the file system refused, as the two lines of a user error. what: e.g. "write runs/x.json"."""
    hint = _HINTS.get(error.errno or 0, "Check the disk and the folder, then run the same command again.")
    return RecordError(f"Cannot {what}: {error.strerror or error}.", hint)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file `path` by `data`; missing folders are made. Raises `RecordError`, the old file then being intact."""
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        _refuse_special(path)
        made = _missing_folders(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Opened with the user's umask (unlike `tempfile`), so that others may read results on a shared disk.
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            # Ctrl-C included. An error while tidying up must not hide the one that brought us here.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        for folder in (path.parent, *(folder.parent for folder in made)):  # a new folder is an entry of its parent, too
            _sync_folder(folder)
    except OSError as error:
        raise cannot(f"write {path}", error) from error


def _refuse_special(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:  # not there yet, or not to be seen: the write itself will tell
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))


def _missing_folders(folder: Path) -> list[Path]:
    """The folders that have to be made, the innermost first."""
    missing = []
    while not folder.exists() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    return missing


def sweep(folder: Path, beginning: str) -> None:
    """Remove what killed writers left of the files whose names begin so. Only for one who holds the claim on these files."""
    with contextlib.suppress(OSError):
        for left_over in folder.glob(f".{glob.escape(beginning)}*.tmp"):
            left_over.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8, line ends as they are."""
    write_bytes(path, text.encode("utf-8"))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable. Windows cannot open folders, and needs it less."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to flush a folder; the file is in place and complete all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
