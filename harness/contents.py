"""What is in the files of a data root: the SHA-256 of each, so that two people know whether they measured the same pixels.

A file is read for it once: the hash is remembered in the cache folder for as long as the file keeps its size and both its times
(that of its last change cannot be set, so a copy that takes the place of another under the same time is seen as well). A drawn set
is not read: it is what its name, version and parameters say.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from inpbench.harness.atomic import write_text
from inpbench.harness.claims import claim
from inpbench.harness.errors import BenchError
from inpbench.harness.roots import cache_folder
from inpbench.harness.small_files import parse_json, read_bytes

if TYPE_CHECKING:
    from inpbench.harness.manifest import FileFact

log = logging.getLogger("inpbench")

UNREADABLE = ""  # the digest of a file that cannot be read: strict runs stop at it, lenient ones leave it out
_LARGEST = 1 << 40  # bytes of an image
_MUCH = 1 << 30  # bytes that take long enough to say so
_CHUNK = 256  # files at a time: the results are small, a queue of a million tasks is not


def contents_of(name: str, root: Path, files: Mapping[str, FileFact]) -> dict[str, str]:
    """Path -> SHA-256 as hex of the files of a data set below `root`, in the order of `files`; `UNREADABLE` where there is none.

    files: as they were before the call: what changes while it is read is read again by the next call.
    """
    if not files:
        return {}
    known: dict[str, str] = {}
    try:
        memory = _memory_of(root)
        known = _remembered(memory, files)
        if len(known) < len(files):
            with claim(memory.with_suffix(".lock"), wait=True):
                known = _remembered(memory, files)  # another process may have read them while we waited
                _read_missing(name, root, files, known, memory)
    except BenchError as error:  # a cache that cannot be written
        log.warning("what is in the files of %s is not remembered: %s", name, error.message)
        known |= dict(_digests(root, [path for path in files if path not in known]))
    return {path: known[path] for path in files}


def forget(root: Path) -> None:
    """Read every file below `root` again when asked next: a failing disk changes bits, and neither sizes nor times."""
    with contextlib.suppress(BenchError, OSError):  # what cannot be removed cannot have been remembered
        _memory_of(root).unlink(missing_ok=True)


def _memory_of(root: Path) -> Path:
    return cache_folder() / "contents" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"


def _read_missing(name: str, root: Path, files: Mapping[str, FileFact], known: dict[str, str], memory: Path) -> None:
    """Add the digests that are not in `known`; they are remembered, also those of a reading that Ctrl-C ends."""
    missing = [path for path in files if path not in known]
    if (size := sum(files[path].size for path in missing)) > _MUCH:
        log.warning("%s: %d files (%.1f GB) are read once, to know what is in them.", name, len(missing), size / 1e9)
    new: dict[str, str] = {}
    try:
        for path, digest in _digests(root, missing):
            known[path] = digest
            if digest != UNREADABLE:
                new[path] = f"{_stated(files[path])} {digest}"
    finally:
        if new:
            text = json.dumps(_lines(memory) | new)
            write_text(memory, f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")


def _stated(fact: FileFact) -> str:
    return f"{fact.size} {fact.mtime_ns} {fact.ctime_ns}"


def _remembered(memory: Path, files: Mapping[str, FileFact]) -> dict[str, str]:
    """What is known of those files that are still the same."""
    known = {}
    for path, line in _lines(memory).items():
        stated, _, digest = line.rpartition(" ")
        if path in files and stated == _stated(files[path]):
            known[path] = digest
    return known


def _lines(memory: Path) -> dict[str, str]:
    """`{path: "size mtime_ns ctime_ns sha256"}` of the last reading; {} where there was none, or its file is damaged."""
    try:
        content, _, digest = read_bytes(memory).rstrip().rpartition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest:
            raise ValueError("it is damaged")
        lines = parse_json(content)
        return {str(path): str(line) for path, line in lines.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("%s cannot be read (%s): the files are read again.", memory, error)
        return {}


def _digests(root: Path, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Files with their digests, in order."""
    from inpbench.harness.pixels import workers

    def digest(path: str) -> str:
        try:
            return hashlib.sha256(read_bytes(root / path, _LARGEST)).hexdigest()
        except OSError:
            return UNREADABLE

    with ThreadPoolExecutor(workers(), thread_name_prefix="contents") as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            yield from zip(chunk, pool.map(digest, chunk), strict=True)
