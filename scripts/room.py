"""Whether a disk has the room that `make setup` takes: pip's own answer, after minutes of downloads, is `[Errno 28]`.

Two thirds of `--need` are the packages in .venv (what it holds already is not needed twice), one third their downloads in the
folder for temporary files. Where pip's cache would not fit, too, the flag to do without it is printed. A disk that cannot be asked
stops nobody. Run by the Makefile; the standard library alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

GB = 1e9


def free(folder: Path) -> tuple[int, float] | None:
    """The disk (its device number) that a folder is or would be on, and its free GB; None where that cannot be asked."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        state = os.statvfs(there)
        return there.stat().st_dev, state.f_bavail * state.f_frsize / GB
    except (OSError, StopIteration):
        return None


def held(folder: Path) -> float:
    """GB of the files below a folder; 0 where there is none."""
    found = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(base, name)).st_size  # noqa: PTH118 - a Path for each of 40,000 files is slow
            except OSError:
                continue
    return found / GB


def short_of(*shares: tuple[Path, float]) -> list[str]:
    """One line for each disk that has less than all of `shares` (folder, GB) on it ask for."""
    disks: dict[int, tuple[float, float, list[str]]] = {}
    for folder, share in shares:
        answer = free(folder)
        if answer is not None:
            disk, room = answer
            _, asked, folders = disks.get(disk, (room, 0.0, []))
            disks[disk] = room, asked + share, [*folders, str(folder)]
    return [
        f"{' and '.join(folders)}: {room:.1f} GB free, {asked:.1f} GB needed"
        for room, asked, folders in disks.values()
        if asked > room
    ]


def main() -> int:
    """0 where there is room or nobody can tell (flags for pip on stdout), 3 where there is too little."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True, help="the environment")
    parser.add_argument("--need", type=float, required=True, metavar="GB", help="packages and downloads together; 0: do not look")
    given = parser.parse_args()
    packages = max(0.0, given.need * 2 / 3 - held(given.venv)) if given.need else 0.0
    downloads = packages / 2
    shares = (given.venv.absolute(), packages), (Path(tempfile.gettempdir()), downloads)
    lines = short_of(*shares)
    if lines:
        print(f"make setup has too little room. {'; '.join(lines)}.", file=sys.stderr)
        print(
            "Free some, or type: make setup TMPDIR=DIR VENV=DIR/venv   (DIR: on a larger disk; ROOM=0: try it anyhow)",
            file=sys.stderr,
        )
        return 3
    if short_of(*shares, (Path(os.environ.get("PIP_CACHE_DIR") or Path.home() / ".cache"), downloads)):
        print("--no-cache-dir")
    return 0


if __name__ == "__main__":
    sys.exit(main())
