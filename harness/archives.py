"""Archives from the network, unpacked without trust: zip, and tar with any compression.

Refused are, by the name of the member: paths that leave the folder (absolute, drive letters, `..`, backslashes), links, devices,
encrypted members, the same name twice, and a file where a folder is needed. Limits hold for the number of members, for the bytes
of all files (counted as they come out, whatever the headers say) and for the ratio of these bytes to the archive's. Nothing of the
archive's owners, permissions or times is taken over. The caller unpacks into a draft and throws it away after a refusal.
"""

from __future__ import annotations

import errno
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO, NamedTuple

from inpbench.harness.errors import DataError

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that an archive may hold."""

    files: int = 2_000_000
    size: int = 1 << 40  # bytes of all files together
    ratio: float = 100.0  # bytes of all files to bytes of the archive; image files hardly shrink
    free: float = 200 * (1 << 20)  # bytes below which the ratio says nothing


class Member(NamedTuple):
    """One file or folder of an archive."""

    name: str
    folder: bool
    size: int  # bytes, as the header says
    open: Callable[[], IO[bytes]]


def is_archive(name: str) -> bool:
    """Whether a file of this name is unpacked; others are kept as they are."""
    return name.lower().endswith((*ZIP, *TAR))


def unpack(archive: Path, folder: Path, limits: Limits | None = None, progress: Callable[[int, int], None] | None = None) -> int:
    """Unpack into `folder` (exists, is empty); the number of files.

    Raises `DataError` that names the member, and `OSError` where the disk is full or refuses.

    progress: called with (bytes written, bytes expected).
    """
    limits = limits or Limits()
    try:
        if archive.name.lower().endswith(ZIP):
            with zipfile.ZipFile(archive) as opened:
                return _write_all(archive, list(_zip_members(archive, opened)), folder, limits, progress)
        with tarfile.open(archive) as tar:
            files = _write_all(archive, _tar_members(archive, tar), folder, limits, progress)
            _drain(archive, tar, limits)
            return files
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive.name} is broken or no archive: {error}.", "Delete it and download it again.") from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk; the decompressors' own complaints have no number
        raise DataError(f"{archive.name} is broken: {error}.", "Delete it and download it again.") from error
    except (UnicodeError, ValueError, OverflowError) as error:  # headers that no archiver writes
        raise _refused(archive, "?", f"a header that cannot be read ({error})") from error


def _refused(archive: Path, member: str, why: str) -> DataError:
    shown = member.encode("utf-8", "backslashreplace").decode()[:120]
    return DataError(
        f"{archive.name} is refused: its member '{shown}' is {why}.", "Do not use this file; look for the original one."
    )


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[Member]:
    for entry in opened.infolist():
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(archive, entry.filename, "a link or a device")
        if entry.flag_bits & 1:
            raise _refused(archive, entry.filename, "encrypted")
        # The name as stored: ZipFile itself cuts it at a NUL character.
        yield Member(entry.orig_filename, entry.is_dir(), entry.file_size, lambda entry=entry: opened.open(entry))  # type: ignore[misc]


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    def opener(entry: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
        def open_() -> IO[bytes]:
            file = tar.extractfile(entry)
            assert file is not None, "a regular file"
            return file

        return open_

    for entry in tar:
        if not (entry.isreg() or entry.isdir()) or entry.issparse():
            raise _refused(archive, entry.name, "a link, a device or a sparse file")
        yield Member(entry.name, entry.isdir(), entry.size, opener(entry))


def _drain(archive: Path, tar: tarfile.TarFile, limits: Limits) -> None:
    """Read to the end of the compressed stream: only there stands its checksum."""
    assert tar.fileobj is not None, "open"
    rest = 0
    while block := tar.fileobj.read(_BLOCK):
        rest += len(block)
        if rest > limits.free:
            raise _bomb(archive, rest, archive.stat().st_size)


def _parts(archive: Path, name: str) -> tuple[str, ...]:
    """The path of a member in its parts. Raises `DataError` for one that leaves the folder or that no disk can hold."""
    if "\0" in name or "\\" in name or name.startswith("/") or name[1:2] == ":":
        raise _refused(archive, name, "an absolute path, or one with a backslash or a NUL character")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        raise _refused(archive, name, "a path that leaves the folder")
    if len(parts) > 40 or any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts):
        raise _refused(archive, name, "too deep or too long")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise _refused(archive, name, "no valid Unicode")
    return parts


def _write_all(
    archive: Path,
    members: list[Member] | Iterator[Member],
    folder: Path,
    limits: Limits,
    progress: Callable[[int, int], None] | None,
) -> int:
    packed = archive.stat().st_size
    most = min(limits.size, max(limits.free, limits.ratio * packed))
    if isinstance(members, list):
        promised = sum(member.size for member in members)
        if promised > most:
            raise _bomb(archive, promised, packed)
        if promised > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, "No space left", str(folder))
    seen: dict[tuple[str, ...], bool] = {}  # path -> whether it is a folder
    written = files = 0
    for count, member in enumerate(members, start=1):
        parts = _parts(archive, member.name)
        if not parts:
            continue  # the folder itself: `./`
        if count > limits.files:
            raise _refused(archive, member.name, f"one of more than {limits.files}")
        _enter(archive, member, parts, seen)
        target = folder.joinpath(*parts)
        if member.folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        files += 1
        room = min(member.size, most - written)
        written += _write(archive, member, target, room, packed)
        if progress is not None:
            progress(written, max(written + 1, packed))
    return files


def _enter(archive: Path, member: Member, parts: tuple[str, ...], seen: dict[tuple[str, ...], bool]) -> None:
    """Note a member; refuse a second one of its name, and a file that another member needs as a folder."""
    for length in range(1, len(parts)):
        if not seen.setdefault(parts[:length], True):
            raise _refused(archive, member.name, "below a file of this archive")
    known = seen.get(parts)
    if known is not None and not (known and member.folder):
        raise _refused(archive, member.name, "there twice")
    seen[parts] = member.folder


def _write(archive: Path, member: Member, target: Path, room: float, packed: int) -> int:
    """Copy a member out, at most `room` bytes; the number of bytes."""
    count = 0
    try:
        with member.open() as source, target.open("xb") as file:
            while block := source.read(_BLOCK):
                count += len(block)
                if count > room:
                    raise _bomb(archive, count, packed)
                file.write(block)
    except FileExistsError:  # two names that are one on this disk (upper and lower case)
        raise _refused(archive, member.name, "there twice for this disk") from None
    if count < member.size:
        raise DataError(f"{archive.name} ends inside '{member.name}'.", "Delete it and download it again.")
    return count


def _bomb(archive: Path, size: int, packed: int) -> DataError:
    return DataError(
        f"{archive.name} is refused: its {packed} bytes unpack to {size} or more.",
        "Do not use this file; look for the original one.",
    )
