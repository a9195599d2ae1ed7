"""The image files that a person points at: one file, a folder with everything below it, or the frames of a video.

Sorted as a person counts (frame 2 before frame 10). In a folder only files with an image's extension count; a file named itself
is taken whatever its name is.
"""

from __future__ import annotations

import re
from pathlib import Path

from inpbench.harness.errors import DataError
from inpbench.harness.user_paths import expanded
from inpbench.harness.walking import files_below

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".jp2"})
VIDEO_EXTENSIONS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})


def find_images(path: Path) -> tuple[Path, list[str]]:
    """The folder, and the POSIX paths of the images relative to it. Raises `DataError` where there is none."""
    path = expanded(path)
    if path.is_file() and path.suffix.lower() in VIDEO_EXTENSIONS:
        frames = path.with_suffix("").name
        raise DataError(
            f"{path} is a video; images are read, one file a frame.",
            f"Type: mkdir {frames}, then: ffmpeg -i {path.name} {frames}/%06d.png, then: --images {frames}",
        )
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise DataError(f"There is no file or folder {path}.", "Type: --images FILE or --images FOLDER")
    try:
        found = [file.relative_to(path).as_posix() for file in files_below(path, hidden=False) if _is_image(file.name)]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror or error}.", "Check its permissions.") from error
    if not found:
        known = " ".join(sorted(IMAGE_EXTENSIONS))
        raise DataError(f"{path} holds no image file.", f"Known extensions, in any case: {known}.")
    return path, sorted(found, key=natural)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_EXTENSIONS


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key under which numbers count as numbers."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def output_names(files: list[str]) -> dict[str, str]:
    """A relative name without extension for each image; the extension stays where two would get the same name."""
    stems: dict[str, list[str]] = {}
    for file in files:
        stems.setdefault(str(Path(file).with_suffix("").as_posix()).casefold(), []).append(file)
    return {file: file if len(group) > 1 else Path(file).with_suffix("").as_posix() for group in stems.values() for file in group}
