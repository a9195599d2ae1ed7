"""What lies on disk: which files are images, in which order, and where a listed path really is.

An image is a regular file with a visible name and an extension of `IMAGE_EXTENSIONS` in any case; everything else is passed over.
Names are sorted as Python strings (code points), never in the order of the file system. Only named folders are listed, to a fixed
depth, so a loop of links cannot hang a scan. All paths are POSIX and relative to the data root.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from inpbench.harness.api import Finding, Report
from inpbench.harness.errors import DataError

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})

LARGEST = 1 << 27  # bytes of a list; the largest published one has 12 million


def join(*parts: str) -> str:
    """POSIX path of the non-empty parts; `join("", "train")` is "train"."""
    return "/".join(part for part in parts if part)


def is_image_name(name: str) -> bool:
    """Whether the name alone says image: visible, and a listed extension in any case."""
    return not name.startswith(".") and posixpath.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def stem_key(name: str) -> str:
    """The name without its extension, in one Unicode form (macOS writes é as two code points, others as one)."""
    stem = posixpath.splitext(name)[0]
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name; [] where there is no such folder."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ELOOP:  # a loop of links is no folder; `check_folder` says so
            return []
        raise DataError(
            f"The folder {folder} cannot be listed: {error.strerror or error}.", "Check its permissions and links."
        ) from error


def _is(entry: os.DirEntry[str], kind: str) -> bool:
    try:
        return entry.is_file() if kind == "file" else entry.is_dir()
    except OSError:  # a loop of links is neither
        return False


def _is_text(name: str) -> bool:
    """Whether the name is valid Unicode; other names cannot be written into a record."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def folders(path: Path) -> list[str]:
    """Names of the visible sub-folders, sorted. Raises `DataError` for a name that is no text."""
    names = [entry.name for entry in _entries(path) if not entry.name.startswith(".") and _is(entry, "folder")]
    for name in names:
        if not _is_text(name):
            raise DataError(f"The folder name {_shown(name)} in {path} is not valid Unicode.", "Rename the folder.")
    return names


def check_folder(root: Path, folder: str, report: Report) -> None:
    """Report what stands where a folder of the layout belongs and is none: a file, or a link that leads nowhere or in a circle."""
    if os.path.lexists(root / folder) and not (root / folder).is_dir():
        what = "a link that leads nowhere" if (root / folder).is_symlink() else "a file"
        report(Finding(folder, "unreadable", f"{what} stands where a folder belongs"))


def images(root: Path, folder: str, report: Report, unreadable: str = "unreadable") -> list[str]:
    """Names of the images in root/folder, sorted.

    unreadable: the status under which a link that leads nowhere is reported (`unreadable_mask` in a folder of masks).
    """
    names = []
    for entry in _entries(root / folder):
        if not is_image_name(entry.name):
            continue
        if not _is_text(entry.name):
            report(Finding(join(folder, _shown(entry.name)), unreadable, "the file name is not valid Unicode: rename the file"))
        elif _is(entry, "file"):
            names.append(entry.name)
        elif _is(entry, "folder"):
            report(Finding(join(folder, entry.name), "ignored", "a folder with the name of an image file"))
        elif entry.is_symlink():
            report(Finding(join(folder, entry.name), unreadable, "a link that leads nowhere"))
        else:
            report(Finding(join(folder, entry.name), "ignored", "not a regular file"))
    return names


def read_text(root: Path, file: str) -> str:
    """The text of a list that comes with a data set: UTF-8, a byte order mark is passed over.

    Raises `OSError`, also for what is no regular file (a fifo would wait for ever) or has more than LARGEST bytes, and `ValueError`
    for bytes that are no UTF-8, and for a NUL, which a file has that a crash left unwritten.
    """
    path = root / file
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("rb") as stream:
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST} bytes", str(path))
    text = data.decode("utf-8-sig")
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    return text


def read_json(root: Path, file: str) -> Any:
    """The value of a json list. Raises as `read_text`, and `ValueError` for NaN and for a key that is there twice."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not allowed")

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError(f"a key stands there twice: {', '.join(key[:40] for key, _ in pairs)[:120]}")
        return found

    try:
        return json.loads(read_text(root, file), parse_constant=refuse, object_pairs_hook=each_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def path_problem(text: str) -> str:
    """Why a path from a csv or json must not be followed, or an empty string."""
    if not text or "\0" in text:
        return "an empty path or one with a NUL character"
    if text.startswith(("/", "\\")) or (len(text) > 1 and text[1] == ":"):
        return "an absolute path"
    if ".." in text.replace("\\", "/").split("/"):
        return "a path that leaves the data root"
    return ""


class Listing:
    """Looks up listed paths; each folder is read from disk once, so 150,000 look-ups cost some 30,000 listings."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, tuple[set[str], dict[tuple[str, str], str]]] = {}

    def _folder(self, folder: str) -> tuple[set[str], dict[tuple[str, str], str]]:
        if folder not in self._folders:
            names = {entry.name for entry in _entries(self._root / folder) if _is(entry, "file") and _is_text(entry.name)}
            by_extension = {(stem_key(n), posixpath.splitext(n)[1].lower()): n for n in sorted(names, reverse=True)}
            self._folders[folder] = (names, by_extension)
        return self._folders[folder]

    def find(self, path: str) -> str | None:
        """The path as it is on disk, or None. An extension in another case (`.JPG` listed, `.jpg` on disk) is the same file,
        and so is another Unicode form of the name.
        """
        folder, _, wanted = posixpath.normpath(path).rpartition("/")
        names, by_extension = self._folder(folder)
        name = wanted if wanted in names else by_extension.get((stem_key(wanted), posixpath.splitext(wanted)[1].lower()))
        return join(folder, name) if name else None


def find_base(root: Path, names: Iterable[str], fits: Callable[[Path], bool]) -> str | None:
    """The first of "", `names`, and then the only sub-folder, for which `fits(root / it)`; None where none does.

    Archives unpack into a folder of their own, and users give its parent as often as the folder itself.
    """
    for name in ("", *names):
        if fits(root / name):
            return name
    inside = [name for name in folders(root) if fits(root / name)]
    return inside[0] if len(inside) == 1 else None


def in_order(found: Iterable[str], official: Iterable[str]) -> list[str]:
    """Categories in the official order, then the unknown ones by name."""
    present = set(found)
    known = [name for name in official if name in present]
    return known + sorted(present - set(known))
