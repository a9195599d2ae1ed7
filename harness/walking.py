"""Every file below a folder, however deep it is nested: `os.walk` of Python 3.11 and older ends at a thousand levels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(root: Path, *, hidden: bool = True) -> Iterator[Path]:
    """The files below `root`, folder by folder; links to folders are not followed, so no loop is walked.

    hidden: False leaves out folders whose name begins with a dot. Raises `OSError` for a folder that cannot be listed: what is not
    seen must not be missing in silence.
    """
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        inside = []
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                inside.append(entry)
            elif not _is_folder(entry):
                yield Path(entry.path)
        pending += [Path(entry.path) for entry in reversed(inside) if hidden or not entry.name.startswith(".")]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links is a file that cannot be read
        return False
