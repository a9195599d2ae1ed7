"""`make setup` on a disk that is too small says so before it downloads anything."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def room() -> ModuleType:
    spec = importlib.util.spec_from_file_location("room", REPOSITORY / "scripts" / "room.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def disks(room: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, tuple[int, float] | None]:
    """Pretended disks (number, free GB) by the last name of a folder; none can be asked at first."""
    table: dict[str, tuple[int, float] | None] = {}
    monkeypatch.setattr(room, "free", lambda folder: table.get(folder.name))
    monkeypatch.setattr(room.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    return table


def answer(room: ModuleType, monkeypatch: pytest.MonkeyPatch, venv: Path, need: float = 10) -> int:
    monkeypatch.setattr(sys, "argv", ["room.py", "--venv", str(venv), "--need", str(need)])
    code = room.main()
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize(
    ("venv", "tmp", "cache", "code", "flags"),
    [
        ((1, 9.9), (1, 9.9), (1, 9.9), 3, ""),  # 6.7 and 3.3 on one disk
        ((1, 10.1), (1, 10.1), (1, 10.1), 0, "--no-cache-dir"),
        ((1, 13.5), (1, 13.5), (1, 13.5), 0, ""),
        ((1, 7.0), (2, 3.5), (3, 3.5), 0, ""),
        ((1, 7.0), (2, 3.0), (3, 9.0), 3, ""),
        ((1, 6.0), (2, 9.0), (2, 9.0), 3, ""),
        ((1, 7.0), (2, 3.5), (2, 3.5), 0, "--no-cache-dir"),
        (None, None, None, 0, ""),  # nobody can tell
        ((1, 7.0), None, None, 0, ""),
    ],
)
def test_every_disk_is_asked_for_its_share(
    room: ModuleType,
    disks: dict[str, tuple[int, float] | None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    venv: tuple[int, float] | None,
    tmp: tuple[int, float] | None,
    cache: tuple[int, float] | None,
    code: int,
    flags: str,
) -> None:
    disks.update(venv=venv, tmp=tmp, cache=cache)
    assert answer(room, monkeypatch, tmp_path / "venv") == code
    out, err = capsys.readouterr()
    assert out.strip() == flags
    assert ("TMPDIR=DIR" in err and "GB free" in err) == (code == 3)


def test_what_is_installed_is_not_needed_again_and_room_0_does_not_look(
    room: ModuleType, disks: dict[str, tuple[int, float] | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disks.update(venv=(1, 1.0), tmp=(1, 1.0), cache=(1, 1.0))
    venv = tmp_path / "venv"
    venv.mkdir()
    assert answer(room, monkeypatch, venv) == 3
    assert answer(room, monkeypatch, venv, need=0) == 0
    with (venv / "torch.so").open("wb") as file:
        file.truncate(6_700_000_000)  # no blocks are written
    assert room.held(venv) == 6.7 and answer(room, monkeypatch, venv) == 0


def test_a_real_disk_is_asked_also_for_a_folder_that_is_not_there_yet(room: ModuleType, tmp_path: Path) -> None:
    disk, space = room.free(tmp_path / "not" / "yet")
    assert disk == tmp_path.stat().st_dev and abs(space - shutil.disk_usage(tmp_path).free / 1e9) < 2


def test_make_setup_stops_before_it_downloads(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    command = ["make", "setup", f"VENV={venv}", "ROOM=1e9"]  # an exabyte
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=clean)
    assert done.returncode != 0 and "TMPDIR=DIR" in done.stderr, done.stderr
    assert "pip" not in done.stderr.lower() and not (venv / ".ready").exists()
