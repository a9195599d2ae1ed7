"""Decoded rows on disk: each image is decoded and resized once, then read from a memory-mapped file by every run and method.

The originals' resize and crop are deterministic, so the uint8 pixels at crop size are all a run needs. One file a category and
split, named by a hash of the set, its parameters, root, file names and what is in them (of a drawn set their sizes and times), and
of the geometry: a changed file gives another name. A file is written beside its place, flushed and renamed, under a lock; a killed
writer leaves nothing that is read. Rows are written, never mapped for writing, so that a full disk is an error and not a crash.
Each read compares every byte of the row with a checksum: a damaged row is decoded from its image, and the file is given up.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inpbench.harness.api import Finding, Preprocess, Sample
from inpbench.harness.atomic import write_text
from inpbench.harness.claims import claim
from inpbench.harness.errors import PrerequisiteError, RecordError
from inpbench.harness.images import UnreadableError, image_at_crop, read_for
from inpbench.harness.params import plain
from inpbench.harness.roots import cache_folder
from inpbench.harness.small_files import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.api import Progress
    from inpbench.harness.manifest import Manifest

log = logging.getLogger("inpbench")

FORMAT = 1  # raised when the same inputs give other bytes
_CHUNK = 64  # images in flight: bounds the memory when decoding is faster than the disk

Row = tuple["NDArray[np.uint8] | None", list[Finding]]
Decode = Callable[[Sample], Row]


def workers() -> int:
    """Decoding threads: PIL releases the interpreter lock, so threads are enough."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(8, available))


@dataclass(frozen=True)
class Rows:
    """Decoded rows of some samples; a sample that could not be decoded has none."""

    shape: tuple[int, ...]  # of one row
    position: dict[str, int]  # image path to row
    data: NDArray[np.uint8] | None  # (N, *shape), memory-mapped; None: decoded at each access
    decode: Decode
    path: Path | None = None  # of the data
    checks: list[int] = field(default_factory=list)  # of `_check_of`, one a row of the data

    def read(self, samples: Sequence[Sample]) -> NDArray[np.uint8]:
        """(B, *shape) of samples that have rows."""
        out = np.empty((len(samples), *self.shape), dtype=np.uint8)
        for i, sample in enumerate(samples):
            if self.data is not None:
                number = self.position[sample.image]
                out[i] = self.data[number]
                if _check_of(out[i], sample.image) == self.checks[number]:
                    continue
                self._give_up()
            row, findings = self.decode(sample)
            if row is None:
                raise UnreadableError(sample.image, f"{findings[0].message}; it was readable when the run began")
            out[i] = row
        return out

    def _give_up(self) -> None:
        """The next run decodes this file again; this one does so with each damaged row."""
        assert self.path is not None
        listing = self.path.with_suffix(".json")
        if listing.exists():
            log.warning("the cached pixels %s are damaged: what is wrong with them is decoded again.", self.path)
            with contextlib.suppress(OSError):  # a cache that may only be read is checked at each read anyway
                listing.unlink()


def _check_of(row: NDArray[np.uint8], image: str) -> int:
    """A checksum of a row, and of what it shows: the sum of its 64-bit words, which any changed bit changes, and a CRC of 1,000
    bytes at an odd distance, which tells their order. At the speed of memory: a CRC of all bytes would take thirty times as long.
    """
    flat, step = np.ascontiguousarray(row).reshape(-1), max(1, row.size // 1024) | 1
    whole = flat.size // 8 * 8
    total = int(flat[:whole].view(np.uint64).sum()) + int.from_bytes(flat[whole:].tobytes(), "little")
    order = zlib.crc32(np.ascontiguousarray(flat[::step]).data, zlib.crc32(image.encode("utf-8", "surrogatepass")))
    return total << 32 | order


def decode_image(manifest: Manifest, preprocess: Preprocess) -> Decode:
    """How a sample becomes a row (3, H, W) at crop size; unreadable images give None and a finding."""

    def decode(sample: Sample) -> Row:
        try:
            return image_at_crop(read_for(manifest.root / sample.image, sample.image, preprocess), preprocess), []
        except UnreadableError as error:
            return None, [Finding(sample.image, "unreadable", error.reason)]

    return decode


def open_rows(
    manifest: Manifest,
    samples: Sequence[Sample],
    decode: Decode,
    shape: tuple[int, ...],
    what: dict[str, Any],
    *,
    cache: bool,
    progress: Progress | None = None,
) -> Rows:
    """Decoded rows of one group of samples, from the cache or decoded now; findings go to `manifest.note`.

    what: plain data that says how rows are made; a part of the file's name.
    cache: False decodes once now, to find what is broken, and then at each access.
    """
    key = _key(manifest, samples, what)
    memo = f"{key}-{cache}"
    if memo not in manifest.opened:
        manifest.opened[memo] = _open(manifest, samples, decode, shape, key if cache else None, progress)
    rows: Rows = manifest.opened[memo]
    return rows


def _open(
    manifest: Manifest,
    samples: Sequence[Sample],
    decode: Decode,
    shape: tuple[int, ...],
    key: str | None,
    progress: Progress | None,
) -> Rows:
    if key is None:
        kept = []
        for sample, (row, noticed) in _decoded(samples, decode, progress):
            _check_sample(manifest, sample)
            for finding in noticed:
                manifest.note(finding)
            kept += [sample.image] if row is not None else []
        return Rows(shape, {image: i for i, image in enumerate(kept)}, None, decode)
    path = cache_folder() / "pixels" / f"{key}.u8"
    data = _load(path, shape)
    if data is None:
        try:
            with claim(path.with_suffix(".lock"), wait=True):
                data = _load(path, shape)  # another process may have written it while we waited
                if data is None:
                    _write(path, manifest, samples, decode, shape, progress)
                    data = _load(path, shape)
        except (OSError, RecordError) as error:  # a claim that the file system refuses is a RecordError
            raise _cache_error(path.parent, error) from error
        assert data is not None, f"{path} was written and cannot be read"
    pixels, listing = data
    for finding in listing.findings:
        manifest.note(finding)
    return Rows(shape, {image: i for i, image in enumerate(listing.images)}, pixels, decode, path, listing.checks)


def open_pixels(
    manifest: Manifest, samples: Sequence[Sample], preprocess: Preprocess, *, cache: bool, progress: Progress | None = None
) -> Rows:
    """`open_rows` of images at crop size."""
    geometry = asdict(preprocess)
    what = {"rows": "image", **{key: geometry[key] for key in ("resize", "crop", "shorter_side", "interpolation")}}
    if preprocess.own_mode:  # named only where it is so: the rows of the other methods keep their names
        what["own_mode"] = True
    decode, shape = decode_image(manifest, preprocess), (3, *preprocess.crop)
    return open_rows(manifest, samples, decode, shape, what, cache=cache, progress=progress)


def _key(manifest: Manifest, samples: Sequence[Sample], what: dict[str, Any]) -> str:
    import PIL

    head = [FORMAT, PIL.__version__, manifest.info.name, manifest.info.version, plain(manifest.params)]
    digest = hashlib.sha256(json.dumps([*head, str(manifest.root.resolve()), what], sort_keys=True).encode())
    masks = what["rows"] == "mask"  # the same images under other labels (one class against all others) share their rows
    contents, files = manifest.contents, manifest.files
    for sample in samples:
        used = [path for path in (sample.image, sample.mask if masks else None) if path is not None]
        facts = [(path, contents.get(path) or files[path][:2]) for path in used]
        digest.update(json.dumps([facts, sample.label if masks else None]).encode())
    return digest.hexdigest()[:32]


def _decoded(samples: Sequence[Sample], decode: Decode, progress: Progress | None) -> Iterator[tuple[Sample, Row]]:
    """Samples with their rows and findings, in order."""
    with ThreadPoolExecutor(workers(), thread_name_prefix="decode") as pool:
        for start in range(0, len(samples), _CHUNK):
            chunk = samples[start : start + _CHUNK]
            yield from zip(chunk, pool.map(decode, chunk), strict=True)
            if progress is not None:
                progress(min(start + _CHUNK, len(samples)), len(samples), f"decoding {samples[0].category}")


def _check_sample(manifest: Manifest, sample: Sample) -> None:
    """Raise `DataError` where an image or mask is no longer the one that the rows are named after."""
    for path in (sample.image, sample.mask):
        if path is not None:
            manifest.check_unchanged(path)


class _Listing(NamedTuple):
    """What stands beside the rows of a file."""

    images: list[str]
    findings: list[Finding]
    checks: list[int]


def _load(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], _Listing] | None:
    """A complete file, or None: absent, of another size, without its list, or of before there were checksums of whole rows."""
    try:
        listed = read_json(path.with_suffix(".json"))
        images, findings = listed["images"], [Finding(*map(_text, entry)) for entry in listed["findings"]]
        if not isinstance(images, list) or not all(map(_text, images)):
            raise TypeError("no list of decoded images")
        if "sums" not in listed or path.stat().st_size != len(images) * int(np.prod(shape)):
            return None
        checks = listed["sums"]
        if not isinstance(checks, list) or len(checks) != len(images) or any(type(check) is not int for check in checks):
            raise TypeError("no checksum of each image")
        if not images:
            return np.empty((0, *shape), np.uint8), _Listing([], findings, [])
        return np.memmap(path, np.uint8, "r", shape=(len(images), *shape)), _Listing(images, findings, checks)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.warning("the cached pixels %s cannot be read (%s) and are decoded again.", path, error)
        return None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text, not {value!r:.40}")
    return value


def _write(
    path: Path, manifest: Manifest, samples: Sequence[Sample], decode: Decode, shape: tuple[int, ...], progress: Progress | None
) -> None:
    for left_over in path.parent.glob(f".{path.stem}.*.tmp"):  # ours is the lock, so its writer was killed
        left_over.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp")
    try:
        _require_space(path.parent, len(samples) * int(np.prod(shape)))
        images: list[str] = []
        findings: list[list[str]] = []
        checks: list[int] = []
        with temporary.open("xb") as file:
            for sample, (row, noticed) in _decoded(samples, decode, progress):
                _check_sample(manifest, sample)
                for finding in noticed:
                    manifest.note(finding)  # stops a strict run, and then nothing is kept
                    findings.append([finding.file, finding.status, finding.message])
                if row is not None:
                    file.write(np.ascontiguousarray(row).data)
                    images.append(sample.image)
                    checks.append(_check_of(row, sample.image))
            file.flush()
            os.fsync(file.fileno())
        write_text(path.with_suffix(".json"), json.dumps({"images": images, "findings": findings, "sums": checks}))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 2**20:.0f} MiB are needed, {free / 2**20:.0f} MiB are free")


def _cache_error(folder: Path, error: OSError | RecordError) -> PrerequisiteError:
    reason = error.message.rstrip(".") if isinstance(error, RecordError) else error.strerror or str(error)
    return PrerequisiteError(
        f"Decoded pixels cannot be written to {folder}: {reason}.",
        "Free some space, or type: export INPBENCH_CACHE=/another/folder, or run with --no-pixel-cache (slower).",
    )
