"""A folder that appears whole or not at all: what `bench data prepare` and `bench data download` write.

The work goes on in a draft beside the target (`.NAME.draft`), renamed at the end. A draft that an interruption left is taken up
again by the same task (same key); of any other task it is thrown away. The finished folder says in `provenance.json` where it
comes from; one with the same key is left as it is. A folder with anything in it is never replaced, except with `force`, and then
only one that the bench itself wrote. One process at a time works on a target.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inpbench.harness.atomic import write_text
from inpbench.harness.claims import claim
from inpbench.harness.errors import BenchError, DataError, RecordError, UsageError
from inpbench.harness.roots import cache_folder
from inpbench.harness.small_files import read_json
from inpbench.harness.user_paths import expanded
from inpbench.harness.walking import files_below

PROVENANCE = "provenance.json"
_KEY = ".task"  # in a draft: the key of its task


class PausedError(DataError):
    """A task that could not go on, and that the same command takes up again: its draft is kept."""


class Draft:
    """A folder in the making."""

    def __init__(self, folder: Path, resumed: bool) -> None:
        self.folder = folder
        self.resumed = resumed
        self.provenance: dict[str, Any] = {}  # what the task says of its result


def finished(target: Path, key: str) -> bool:
    """Whether the target already is what this task makes, with no file gone since."""
    about = read_provenance(target)
    if about.get("key") != key:
        return False
    try:
        there = sum(1 for _ in files_below(target)) - 1  # less the provenance itself
    except OSError:  # what cannot be listed cannot be trusted to be there
        return False
    return there >= int(about.get("files", 0))


def read_provenance(target: Path) -> Mapping[str, Any]:
    """What a folder says of itself; empty for one that the bench did not write."""
    try:
        found = read_json(target / PROVENANCE)
    except (OSError, ValueError):
        return {}
    sound = isinstance(found, dict) and found.get("written_by") == "inpbench" and type(found.get("files", 0)) is int
    return found if sound and isinstance(found.get("archives", {}), dict) else {}


def real_path(given: Path) -> Path:
    """The absolute path behind links, whether something is there or not. Raises `DataError` for a loop of links."""
    path = Path(os.path.realpath(expanded(given)))
    if path.is_symlink():
        raise DataError(f"{given} is a loop of links.", "Choose another folder with --to.")
    return path


def real_target(given: Path, force: bool) -> Path:
    """The target behind links. Raises `UsageError` where something stands that must not be replaced."""
    target = real_path(given)
    try:
        if not target.exists():
            return target
        if not target.is_dir():
            raise UsageError(f"{target} is a file; a folder is to be written there.", "Choose another folder with --to.")
        empty = not any(target.iterdir())
    except OSError as error:
        raise DataError(f"The folder {given} cannot be used: {error.strerror}.", "Choose another folder with --to.") from error
    if empty or (force and read_provenance(target)):
        return target
    if force:
        raise UsageError(
            f"{target} is not empty and was not written by bench, so --force does not replace it.",
            "Move it away, or choose another folder with --to.",
        )
    raise UsageError(
        f"{target} is not empty.", "Choose another folder with --to; --force replaces a folder that bench data wrote itself."
    )


@contextlib.contextmanager
def new_folder(target: Path, key: str) -> Iterator[Draft]:
    """Work in a draft; at the end of the block it becomes `target` (from `real_target`), with its provenance.

    A full disk or an interruption leaves the draft for the next try; any other `BenchError` removes it.
    Raises `PausedError` for what the file system refuses.
    """
    draft = target.with_name(f".{target.name}.draft")
    lock = cache_folder() / "locks" / f"{hashlib.sha256(str(target).encode()).hexdigest()[:16]}.lock"
    with claim(lock, what=str(target)):
        try:
            task = Draft(draft, _begin(draft, key))
            yield task
            text = {"written_by": "inpbench", "key": key, **task.provenance}
            write_text(draft / PROVENANCE, json.dumps(text, indent=1, ensure_ascii=False) + "\n")
            _replace(draft, target)
            (target / _KEY).unlink(missing_ok=True)
        except (PausedError, RecordError):  # RecordError: the disk refused a small file
            raise
        except BenchError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        except OSError as error:
            raise refused(error, target) from error


def refused(error: OSError, target: Path) -> PausedError:
    """The user's error for what the file system refused; what was written so far is kept for the next try."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PausedError(
            f"The disk of {target} is full.", "Free some space and run the same command again: it goes on from there."
        )
    return PausedError(
        f"{error.filename or target} cannot be read or written: {error.strerror or error}.",
        "Check the folder and its permissions, then run the same command again: it goes on from there.",
    )


def _begin(draft: Path, key: str) -> bool:
    """Make the draft, or take up that of the same task; whether it was taken up."""
    try:
        if (draft / _KEY).read_text(encoding="utf-8") == key:
            return True
    except (OSError, UnicodeDecodeError):
        pass  # no draft, or one that was interrupted before it had a key
    if draft.is_symlink() or draft.is_file():
        draft.unlink()
    elif draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(parents=True)
    write_text(draft / _KEY, key)
    return False


def _replace(draft: Path, target: Path) -> None:
    """Put the draft in the target's place; the old folder goes only after the new one stands."""
    if not target.exists():
        draft.rename(target)
        return
    old = target.with_name(f".{target.name}.old")
    if old.exists():
        shutil.rmtree(old)
    target.rename(old)
    try:
        draft.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)
