"""Where data lies: the root a user gave, `$INPBENCH_DATA/<name>`, or a folder that the bench draws itself once.

A drawn set (`DatasetInfo.generate`) is written into the cache folder under a name made of its parameters, complete or not at
all: it is drawn into a temporary neighbour, which is renamed at the end, under a lock that a killed process gives back.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from inpbench.harness.api import DatasetInfo
from inpbench.harness.claims import claim
from inpbench.harness.errors import DataError, PrerequisiteError, UsageError
from inpbench.harness.params import plain
from inpbench.harness.registry import resolve
from inpbench.harness.user_paths import expanded


def cache_folder() -> Path:
    """`$INPBENCH_CACHE`, or `~/.cache/inpbench`: drawn sets and decoded pixels; safe to delete at any time."""
    given = os.environ.get("INPBENCH_CACHE")
    hint = "Type: export INPBENCH_CACHE=/a/folder/you/can/write"
    try:
        folder = expanded(given or "~/.cache/inpbench")
        folder.mkdir(parents=True, exist_ok=True)
    except UsageError as error:
        raise PrerequisiteError(f"The cache folder cannot be made: {error.message}", hint) from error
    except OSError as error:
        raise PrerequisiteError(f"The cache folder {folder} cannot be made: {error.strerror}.", hint) from error
    return folder


def places(info: DatasetInfo, given: Path | None) -> list[Path]:
    """Where the root of a data set is looked for, in this order."""
    if given is not None:
        return [expanded(given)]
    base = os.environ.get("INPBENCH_DATA")
    return [expanded(base) / info.name] if base else []


def locate(info: DatasetInfo, params: Any, given: Path | None) -> Path:
    """The data root. Raises `DataError` that says where it was looked for, what it should look like and what to type."""
    if info.generate is not None:
        if given is not None:
            raise DataError(
                f"{info.name} is drawn by the bench, it has no --data-root.",
                f"Leave --data-root out, or type: --dataset folder --data-root {given}",
            )
        return drawn(info, params)
    looked = places(info, given)
    for place in looked:
        try:
            if place.is_dir():
                return place
        except OSError as error:
            raise DataError(f"{info.name}: {place} cannot be read: {error.strerror}.", "Check its permissions.") from error
    where = (
        f"{', '.join(map(str, looked))}: no such folder" if looked else "no place: neither --data-root nor $INPBENCH_DATA is set"
    )
    tree = f"\nIts root looks like this:\n{info.expected_tree.rstrip()}" if info.expected_tree else ""
    raise DataError(
        f"{info.name}: no data found (looked in {where}).{tree}",
        f"Type: --data-root DIR, or: export INPBENCH_DATA=DIR with DIR/{info.name} in it"
        + (f". It is published at {info.homepage}" if info.homepage else ""),
    )


def drawn(info: DatasetInfo, params: Any) -> Path:
    """The folder of a drawn set, drawn now if it is not there yet."""
    assert info.generate is not None, f"{info.name} is found on disk, not drawn"
    text = json.dumps([info.name, info.version, plain(params)], sort_keys=True)
    folder = cache_folder() / "drawn" / f"{info.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    with claim(folder.with_suffix(".lock"), wait=True):
        if folder.is_dir():  # another process drew it while we waited
            return folder
        for left_over in folder.parent.glob(f".draft-{folder.name}-*"):  # ours is the claim, so its writer was killed
            shutil.rmtree(left_over, ignore_errors=True)
        draft = folder.parent / f".draft-{folder.name}-{secrets.token_hex(4)}"
        try:
            draft.mkdir()
            resolve(info.generate)(draft, params)
            draft.rename(folder)
        except OSError as error:
            raise DataError(
                f"{info.name} could not be drawn into {folder.parent}: {error.strerror}.",
                "Free some space, or type: export INPBENCH_CACHE=/another/folder",
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder
