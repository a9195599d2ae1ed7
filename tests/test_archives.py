"""Archives made by enemies: nothing leaves the folder, nothing fills the disk, and the member is named."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from inpbench.harness.archives import Limits, is_archive, unpack
from inpbench.harness.errors import DataError

FORMS = ("zip", "tar", "tar.gz", "tar.xz", "tar.bz2")


def make(folder: Path, form: str, members: Iterable[tuple[str, bytes]]) -> Path:
    path = folder / f"data.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members:
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    else:
        mode = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz", "tar.bz2": "w:bz2"}[form]
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            for name, data in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return path


def out(folder: Path) -> Path:
    target = folder / "out"
    target.mkdir(exist_ok=True)
    return target


def found(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_archive(tmp_path: Path, form: str) -> None:
    members = [("./a/b.png", b"1" * 1000), ("a/ü c.txt", b""), ("d.txt", b"3"), ("a//e.txt", b"4")]
    seen: list[tuple[int, int]] = []
    archive = make(tmp_path, form, members)
    assert unpack(archive, out(tmp_path), progress=lambda done, total: seen.append((done, total))) == 4
    assert found(out(tmp_path)) == {"a/b.png": b"1" * 1000, "a/ü c.txt": b"", "d.txt": b"3", "a/e.txt": b"4"}
    assert seen[-1][0] == 1002 and is_archive(archive.name.upper())


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/x", "/etc/x", "C:/x", "c:x", "a\\..\\x", "\\x", "a/..", "..", "a/" * 50 + "x", "y" * 300],
)
def test_paths_that_leave_the_folder(tmp_path: Path, form: str, name: str) -> None:
    archive = make(tmp_path, form, [("good.txt", b"1"), (name, b"2")])
    with pytest.raises(DataError, match="refused"):
        unpack(archive, out(tmp_path))
    assert set(found(tmp_path)) <= {archive.name, "out/good.txt"}


def test_a_nul_in_a_zip_name(tmp_path: Path) -> None:
    archive = make(tmp_path, "zip", [("abcd.png", b"1")])
    archive.write_bytes(archive.read_bytes().replace(b"abcd.png", b"ab\0d.png"))
    with pytest.raises(DataError, match="NUL"):
        unpack(archive, out(tmp_path))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = kind, "/etc"
        archive.addfile(entry)
        inside = tarfile.TarInfo("link/passwd")
        inside.size = 1
        archive.addfile(inside, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="'link' is a link, a device"):
        unpack(path, out(tmp_path))
    assert found(out(tmp_path)) == {} and not list(out(tmp_path).iterdir())


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip(tmp_path: Path, kind: int) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc")
    with pytest.raises(DataError, match="a link or a device"):
        unpack(tmp_path / "data.zip", out(tmp_path))


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize(
    "names", [("a", "a"), ("a", "./a"), ("a/b", "a//b"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")], ids=str
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(tmp_path: Path, form: str, names: tuple[str, str]) -> None:
    archive = make(tmp_path, form, [(name, bytes([i])) for i, name in enumerate(names)])
    with pytest.raises(DataError, match=r"twice|below a file"):
        unpack(archive, out(tmp_path))


@pytest.mark.parametrize("form", ["zip", "tar.gz", "tar.xz"])
def test_bombs(tmp_path: Path, form: str) -> None:
    archive = make(tmp_path, form, [(f"{i}.bin", bytes(1 << 22)) for i in range(4)])
    assert unpack(archive, out(tmp_path)) == 4, "small ones pass: the ratio says nothing below 200 MB"
    for limits in (Limits(free=1 << 20, ratio=50), Limits(size=1 << 23)):
        (tmp_path / "strict").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="unpack to"):
            unpack(archive, tmp_path / "strict", limits)
        for path in sorted((tmp_path / "strict").rglob("*"), reverse=True):
            path.unlink()
    many = make(tmp_path, form, [(f"{i}", b"") for i in range(20)])
    with pytest.raises(DataError, match="more than 10"):
        unpack(many, tmp_path / "strict", Limits(files=10))


def test_a_zip_whose_header_lies_about_the_size(tmp_path: Path) -> None:
    """zipfile itself stops at the promised size; the bytes counted are those that come out."""
    archive = make(tmp_path, "zip", [("a.bin", bytes(1 << 20))])
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 10)
    archive.write_bytes(data)
    with pytest.raises(DataError):
        unpack(archive, out(tmp_path))
    assert sum(map(len, found(out(tmp_path)).values())) <= 10


def test_overlapping_zip_members_are_counted(tmp_path: Path) -> None:
    archive = make(tmp_path, "zip", [("a.bin", os.urandom(1000))])
    assert unpack(archive, out(tmp_path), Limits(free=0, ratio=2)) == 1


def test_an_encrypted_zip(tmp_path: Path) -> None:
    archive = make(tmp_path, "zip", [("a.bin", b"x")])
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        unpack(archive, out(tmp_path))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["half", "empty", "noise", "flip"])
def test_broken_archives(tmp_path: Path, form: str, damage: str) -> None:
    archive = make(tmp_path, form, [("a.bin", os.urandom(40_000)), ("b.bin", os.urandom(40_000))])
    data = bytearray(archive.read_bytes())
    if damage == "half":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = bytearray()
    elif damage == "noise":
        data = bytearray(os.urandom(2000))
    else:
        if form == "tar":
            pytest.skip("a plain tar has no checksum of its contents: the SHA-256 of the download finds it")
        data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"broken|ends inside|refused"):
        unpack(archive, out(tmp_path))


def test_permissions_and_times_are_ours(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        entry = tarfile.TarInfo("run.sh")
        entry.size, entry.mode, entry.uid, entry.mtime = 1, 0o6777, 4242, 1
        archive.addfile(entry, io.BytesIO(b"x"))
    unpack(tmp_path / "data.tar", out(tmp_path))
    status = (out(tmp_path) / "run.sh").stat()
    assert not status.st_mode & 0o6111 and status.st_uid == os.getuid() and status.st_mtime > 1e9
