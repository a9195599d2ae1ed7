"""A disk of our own: a file system in memory of a chosen size, seen by one process alone. For the tests of a full disk.

`python tiny_disk.py FOLDER -- ARGUMENTS...` is run inside `unshare --mount` (root only): it mounts, runs `bench ARGUMENTS` at each
size, and prints one JSON line with what it saw. Nothing outside the process ever sees the mount.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SIZES = ("8k", "40k")  # too small: for the trained model, and for what comes after it
MOUNT = ["unshare", "--mount", "--propagation", "private"]


def is_possible(folder: Path) -> bool:
    """Whether this machine lets us mount in a namespace of our own."""
    if shutil.which("unshare") is None or not sys.platform.startswith("linux"):
        return False
    command = [*MOUNT, "mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def mounted(options: str, folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)


def files_of(folder: Path) -> dict[str, list[str]]:
    """Which files lie there under a final name, and which of them cannot be read."""
    from inpbench.harness.records import RecordStore

    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {"names": [n for n in names if not n.endswith((".lock", ".tmp"))], "warnings": RecordStore(folder).all().warnings}


def main() -> None:
    """Run at each size, then with room for everything, then read-only."""
    from commands import bench

    folder, arguments = Path(sys.argv[1]), sys.argv[3:]
    seen: list[dict[str, Any]] = []

    def run(size: str, *command: str) -> None:
        outcome = bench(*command)
        seen.append({"size": size, "code": outcome.code, "out": outcome.out, "err": outcome.err, **files_of(folder)})

    for size in SIZES:
        mounted(f"size={size}", folder)
        run(size, *arguments)
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        run("room", *arguments)
        if size != SIZES[-1]:
            subprocess.run(["umount", str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    run("read-only", *arguments, "--seeds", "2")
    run("leaderboard", "leaderboard", "--results", str(folder))
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
