"""`bench data download`: the archives that authors publish at an open address, fetched, checked, unpacked.

Nothing is fetched before the licence was shown and accepted by name. A transfer that breaks off goes on where it stopped (HTTP
range, only while the server's file is the same one) and is tried again a few times. The SHA-256 must be the published one; where
none is known, that of the first download is remembered in the cache folder, and a later one that differs is refused. Only http
and https are followed, never from https to http. All this happens in a draft (`new_folder`): the target appears whole or not.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

from inpbench.harness.api import Archive, DatasetInfo
from inpbench.harness.archives import Limits, is_archive, unpack
from inpbench.harness.atomic import write_text
from inpbench.harness.errors import DataError, PrerequisiteError, UsageError
from inpbench.harness.new_folder import PausedError, finished, new_folder, read_provenance, real_path, real_target
from inpbench.harness.roots import cache_folder
from inpbench.harness.small_files import read_json

log = logging.getLogger("inpbench")

Progress = Callable[[int, int, str], None]
TRIES = 5  # in a row without a single new byte
PAUSE_S = 1.0  # before the second try; doubled each time
TIMEOUT_S = 60.0  # without any answer
_BLOCK = 1 << 20


class Downloaded(NamedTuple):
    """What came of it."""

    target: Path
    files: int
    sha256: dict[str, str]  # of each archive
    first_use: tuple[str, ...]  # archives whose checksum was not known before
    new: bool  # False: everything was there


def download(
    info: DatasetInfo,
    to: Path,
    accepted: str | None,
    *,
    force: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Downloaded:
    """Fetch and unpack a data set into the new folder `to`.

    Raises `PrerequisiteError` for a set without an open address (saying how to get it), `UsageError` where the licence was not
    accepted or the target holds something else, `DataError` for a transfer that fails or a file that is not the published one.
    """
    if not info.archives:
        how = info.obtain or (f"see {info.homepage}" if info.homepage else "it is not published")
        raise PrerequisiteError(
            f"{info.name} has no address that a program may fetch from. How to get it: {how}.",
            f"Then type: bench data verify {info.name} --data-root DIR (bench data show {info.name} has the layout).",
        )
    if accepted != info.name:
        raise UsageError(
            f"{info.title} is published under its own licence: {info.licence or 'not stated'} ({info.homepage}). "
            "Nothing is fetched before you accept it.",
            f"Type: bench data download {info.name} --to {to} --accept-licence {info.name}",
        )
    key = hashlib.sha256(json.dumps([info.name, [tuple(vars(a).values()) for a in info.archives]]).encode()).hexdigest()
    if not force and finished(there := real_path(to), key):
        about = read_provenance(there)
        return Downloaded(there, int(about.get("files", 0)), dict(about.get("archives", {})), (), False)
    target = real_target(to, force)
    with new_folder(target, key) as draft:
        parcels = draft.folder / ".archives"
        parcels.mkdir(exist_ok=True)
        hashes: dict[str, str] = {}
        first: list[str] = []
        for archive in info.archives:
            file = parcels / archive.file
            fetch(archive.url, file, progress)
            hashes[archive.file] = _file_hash(file)
            if _check(archive, file, hashes[archive.file]):
                first.append(archive.file)
        unpacked = draft.folder / ".unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        files = sum(_open_parcel(parcels / archive.file, unpacked, limits, progress) for archive in info.archives)
        for entry in sorted(unpacked.iterdir()):
            entry.rename(draft.folder / entry.name)
        shutil.rmtree(parcels)
        unpacked.rmdir()
        draft.provenance = {
            "task": "downloaded",
            "dataset": info.name,
            "licence": info.licence,
            "published_at": info.homepage,
            "archives": hashes,
            "addresses": [archive.url for archive in info.archives],
            "checksum_first_seen_here": first,
            "files": files,
            "inpbench": version("inpbench"),
        }
    for archive in info.archives:
        if archive.file in first:
            _remember(archive.url, hashes[archive.file])
    return Downloaded(target, files, hashes, tuple(first), True)


def _open_parcel(file: Path, folder: Path, limits: Limits | None, progress: Progress | None) -> int:
    """Unpack an archive, or move a file that is none; the number of files."""
    if not is_archive(file.name):
        file.rename(folder / file.name)
        return 1
    told = None if progress is None else lambda done, total: progress(done, total, f"unpack {file.name}")
    return unpack(file, folder, limits, told)


# --- checksums ------------------------------------------------------------------------------------------------------


def _check(archive: Archive, file: Path, found: str) -> bool:
    """Whether this is the first use of a file without a published checksum. Raises `DataError` where a known one differs."""
    known = archive.sha256 or _remembered().get(archive.url, "")
    if known and found != known:
        file.unlink()
        whose = "published" if archive.sha256 else "that of your first download"
        raise DataError(
            f"{archive.file} from {archive.url} is not the {'published' if archive.sha256 else 'same'} file: "
            f"SHA-256 {found}, {whose} {known}.",
            "Run the same command again; if it stays so, the file was replaced: look at its page before you use it.",
        )
    return not known


def _memory() -> Path:
    return cache_folder() / "first-downloads.json"


def _remembered() -> dict[str, str]:
    try:
        found = read_json(_memory())
        if not isinstance(found, dict):
            raise ValueError("expected an object of addresses and checksums")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{_memory()} cannot be read: {error}.", "It holds checksums of earlier downloads: repair or delete it."
        ) from error
    return {str(url): str(sha256) for url, sha256 in found.items()}


def _remember(url: str, sha256: str) -> None:
    write_text(_memory(), json.dumps(_remembered() | {url: sha256}, indent=1) + "\n")


def _file_hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


# --- the transfer ---------------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows http and https only, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://") and not (newurl.startswith("http://") and req.full_url.startswith("http://")):
            raise DataError(f"{req.full_url} leads to {newurl}, which is not followed.", "Look at the data set's page.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _BrokenOffError(Exception):
    """The transfer ended early, or the server is busy: worth another try."""


def fetch(url: str, file: Path, progress: Progress | None = None) -> None:
    """Fetch `url` into `file`; a part that an earlier try left (`file.part`) is continued. Raises `DataError` after some tries."""
    if file.is_file():
        return
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url} is no address of the web.", "Look at the data set's page.")
    part, tag = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.tag")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, tag, progress)
            break
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, _BrokenOffError) as error:
            after = part.stat().st_size if part.exists() else 0
            failures = 1 if after > before else failures + 1
            if failures >= TRIES:
                reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                raise PausedError(
                    f"{url} could not be fetched: {reason}.", "Check the connection and run the same command again."
                ) from error
            log.warning("%s: %s; trying again", url, error)
            time.sleep(PAUSE_S * 2 ** (failures - 1))
    part.replace(file)
    tag.unlink(missing_ok=True)


def _transfer(url: str, part: Path, tag: Path, progress: Progress | None) -> None:
    """One request. Appends to the part where the server still has the same file, else begins anew."""
    same = tag.read_text(encoding="utf-8") if tag.exists() else ""
    start = part.stat().st_size if part.exists() and same else 0
    request = urllib.request.Request(url, headers={"User-Agent": f"inpbench/{version('inpbench')}", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", same)
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            _on_status(error, url, part, tag)
        raise _BrokenOffError(f"the server answers {error.code}") from error
    with response:
        if response.status != 206:
            start = 0
        elif not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
            part.unlink()
            raise _BrokenOffError("the server sends another range than was asked for")
        # A weak tag ("W/...") does not promise the same bytes.
        marker = str(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
        write_text(tag, "" if marker.startswith("W/") else marker)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdecimal() else 0
        if total - start > shutil.disk_usage(part.parent).free:
            raise PausedError(
                f"{url} has {total >> 20} MB; the disk of {part.parent} has no room for it.", "Free some space and try again."
            )
        with part.open("ab" if start else "wb") as out:
            received = _receive(response, out, start, total, part.name.removesuffix(".part"), progress)
    if total and received != total:
        raise _BrokenOffError(f"{received} of {total} bytes came")


def _on_status(error: urllib.error.HTTPError, url: str, part: Path, tag: Path) -> None:
    """Raise `DataError` for an answer that another try does not change; return for one that it may."""
    if error.code == 416:  # the part is longer than the file, or the file is another one
        part.unlink(missing_ok=True)
        tag.unlink(missing_ok=True)
    elif error.code != 429 and error.code < 500:
        raise DataError(f"{url}: the server answers {error.code} {error.reason}.", "Look at the data set's page.") from error


def _receive(source: Any, out: IO[bytes], start: int, total: int, name: str, progress: Progress | None) -> int:
    """Copy the body; the size of the file so far."""
    received = start
    while block := source.read(_BLOCK):
        out.write(block)
        received += len(block)
        if total and received > total:
            raise _BrokenOffError("more bytes than promised")
        if progress is not None:
            progress(received, total or received + 1, name)
    return received
