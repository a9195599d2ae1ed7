"""`bench data prepare`: what is published, converted into the layout that an adapter reads.

The adapter's `prepare` yields pieces, the bench writes them: into a draft that becomes the target at the end (`new_folder`). Pixels
are decoded by the rules of `images` and stored as PNG, grey where the three channels agree; other files are copied byte for byte. A
second run with the same raw files does nothing, one after an interruption skips what is there. `content_sha256` in the provenance
covers paths, copied bytes and stored pixels, so that two people can compare what they made; it does not depend on zlib.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inpbench.harness.api import DatasetInfo, Finding, Piece, Size
from inpbench.harness.errors import DataError, UsageError
from inpbench.harness.new_folder import Draft, finished, new_folder, read_provenance, real_path, real_target
from inpbench.harness.params import plain
from inpbench.harness.registry import resolve
from inpbench.harness.user_paths import expanded
from inpbench.harness.walking import files_below

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


class Prepared(NamedTuple):
    """What came of it."""

    target: Path
    files: int
    new: int  # files written by this run; 0: everything was there
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Pictures:
    """The `api.Decoder` of a raw folder."""

    root: Path

    def image(self, path: str) -> NDArray[np.uint8]:
        """(H, W, 3) RGB of any mode."""
        import numpy as np

        from inpbench.harness.images import read_image

        return np.asarray(read_image(self.root / path, path))

    def size(self, path: str) -> Size:
        """(height, width) from the header."""
        from inpbench.harness.images import image_size

        return image_size(self.root / path, path)

    def mask(self, path: str, image: str | None = None) -> NDArray[np.bool_]:
        """(H, W) by the mask rule; at the image's size (nearest) where one is named."""
        import numpy as np

        from inpbench.harness.images import read_mask

        size = None if image is None else self.size(image)
        return np.asarray(read_mask(self.root / path, size, path).channels.any(axis=0), dtype=np.bool_)


def prepare(
    info: DatasetInfo, params: Any, raw: Path, to: Path, *, force: bool = False, progress: Callable[[int, int], None] | None = None
) -> Prepared:
    """Convert the files below `raw` into the new folder `to`.

    Raises `UsageError` for a set that needs no conversion and for a target that holds something else, `DataError` for raw files
    that are not what is published; then nothing stands under the target's name.
    """
    if info.prepare is None:
        raise UsageError(
            f"{info.name} is read as it is published: there is nothing to prepare.", f"Type: bench data show {info.name}"
        )
    raw = expanded(raw)
    if not raw.is_dir():
        what = "is a file: unpack it" if raw.is_file() else "is no folder"
        raise DataError(f"{info.name}: {raw} {what}.", f"Type: bench data show {info.name}, for what is expected.")
    raw = raw.resolve()
    key = _key(info, params, raw)
    wanted = real_path(to)
    if wanted == raw or raw in wanted.parents or wanted in raw.parents:
        raise UsageError(f"--to {to} and --from {raw} lie in one another.", "Choose a new folder beside it.")
    if not force and finished(wanted, key):
        return Prepared(wanted, int(read_provenance(wanted).get("files", 0)), 0, ())
    target = real_target(to, force)
    found: dict[Finding, None] = {}

    def report(finding: Finding) -> None:
        if finding.severity == "error":
            raise DataError(
                f"{info.name}: {finding.file or raw}: {finding.status.replace('_', ' ')}: {finding.message}.",
                "Fetch or unpack it again, then run the same command.",
            )
        found[finding] = None

    with new_folder(target, key) as draft:
        digest, new, paths = hashlib.sha256(), 0, set[str]()
        expected = sum(sum(counts) for counts in info.counts.values())
        for piece in resolve(info.prepare)(raw, params, Pictures(raw), report):
            if piece.path.casefold() in paths:
                raise DataError(f"{info.name}: two files of {raw} become {piece.path}.", "Rename one of them.")
            paths.add(piece.path.casefold())
            written, fingerprint = _write(piece, draft)
            new += written
            digest.update(f"{piece.path} {fingerprint}\n".encode())
            if progress is not None:
                progress(len(paths), max(expected, len(paths) + 1))
        if progress is not None:
            progress(len(paths), len(paths))
        if not paths:
            raise DataError(f"{info.name}: {raw} holds no image of this data set.", f"Type: bench data show {info.name}")
        draft.provenance = {
            "task": "prepared",
            "dataset": info.name,
            "dataset_version": info.version,
            "params": plain(params),
            "licence": info.licence,
            "published_at": info.homepage,
            "files": len(paths),
            "content_sha256": digest.hexdigest(),
            "left_out": [f"{finding.file}: {finding.message}" for finding in found],
            "inpbench": version("inpbench"),
            "pillow": version("pillow"),
        }
    return Prepared(target, len(paths), new, tuple(found))


def _key(info: DatasetInfo, params: Any, raw: Path) -> str:
    """Names the task: data set, parameters, and every raw file with its size and time of change."""
    digest = hashlib.sha256(json.dumps([info.name, info.version, plain(params)], sort_keys=True).encode())
    try:
        for path in files_below(raw):
            status = path.lstat()
            row = (os.fsencode(path.relative_to(raw)), status.st_size, status.st_mtime_ns)
            digest.update(repr(row).encode())
    except OSError as error:
        raise DataError(
            f"{info.name}: {error.filename} cannot be listed: {error.strerror or error}.", "Check its permissions."
        ) from error
    return digest.hexdigest()


def _write(piece: Piece, draft: Draft) -> tuple[bool, str]:
    """Store a piece unless an earlier run did; whether it was written, and the hash of its bytes or pixels."""
    target = draft.folder / piece.path
    assert draft.folder in target.parents and ".." not in target.parts, piece.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(piece.content, Path):
        fingerprint = _file_hash(piece.content)
        if draft.resumed and target.is_file() and _file_hash(target) == fingerprint:
            return False, fingerprint
        shutil.copyfile(piece.content, temporary := _temporary(target))
    else:
        fingerprint = hashlib.sha256(repr(piece.content.shape).encode() + piece.content.tobytes()).hexdigest()
        if draft.resumed and _is_whole_png(target):
            return False, fingerprint
        _store(piece.content, temporary := _temporary(target))
    temporary.replace(target)
    return True, fingerprint


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name[:80]}.tmp")


def _store(pixels: NDArray[np.uint8], file: Path) -> None:
    import numpy as np
    from PIL import Image

    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")


def _is_whole_png(file: Path) -> bool:
    try:
        return file.read_bytes().endswith(_PNG_END)
    except OSError:
        return False


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
