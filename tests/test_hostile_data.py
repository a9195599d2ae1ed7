"""Data folders that changed under our feet: loops of links, locked folders, files where folders were. Clear errors, no loss."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trees
from commands import bench

from inpbench.datasets import folder, listing, mvtec
from inpbench.harness.api import DatasetInfo, Finding, Sample
from inpbench.harness.errors import DataError
from inpbench.harness.manifest import open_manifest

RUN = ("run", "--methods", "raw_pixel", "--preset", "smoke", "--no-pixel-cache")


def scan(info: DatasetInfo, root: Path) -> tuple[list[Sample], list[Finding]]:
    found: list[Finding] = []
    module = {"folder": folder, "mvtec_ad": mvtec}[info.name]
    return module.scan(root, info.params(), found.append), found


def refused(root: Path, tmp_path: Path, dataset: str = "folder") -> str:
    """The message of a run on this root, which must be a clear one."""
    outcome = bench(*RUN, "--dataset", dataset, "--data-root", root, "--results", tmp_path / "records")
    assert outcome.code == 3, outcome.err + outcome.out
    assert "Error: " in outcome.err and "Traceback" not in outcome.err
    return " ".join(outcome.err.split())


def records(tmp_path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (tmp_path / "records").rglob("*.json")}


@pytest.mark.parametrize("place", ["carpet", "carpet/train", "carpet/train/good", "carpet/test", "carpet/test/good"])
@pytest.mark.parametrize("kind", ["file", "loop", "dangling"])
def test_something_else_where_a_folder_belongs(tmp_path: Path, place: str, kind: str) -> None:
    trees.mvtec(tmp_path)
    where = tmp_path / place
    where.rename(tmp_path / "kept")
    if kind == "file":
        where.write_text("x")
    else:
        where.symlink_to(where if kind == "loop" else "nowhere")
    _, found = scan(mvtec.MVTEC_AD, tmp_path)
    (finding,) = [f for f in found if f.severity == "error"]
    assert (finding.file, finding.status) == (place, "unreadable") and "where a folder belongs" in finding.message
    with pytest.raises(DataError, match="where a folder belongs"):
        open_manifest(mvtec.MVTEC_AD, mvtec.MVTEC_AD.params(), tmp_path)


@pytest.mark.parametrize("place", ["a/test/hole", "a/ground_truth", "a/ground_truth/hole"])
def test_masks_do_not_vanish_in_silence(tmp_path: Path, place: str) -> None:
    """Without its ground truth a category would be measured at image level only, or without one kind of defect."""
    trees.mvtec(tmp_path, ("a",))
    trees.save(trees.picture(70), tmp_path / "a/test/dent/000.png")
    trees.save(trees.spot(), tmp_path / "a/ground_truth/dent/000_mask.png")
    (tmp_path / place).rename(tmp_path / "kept")
    (tmp_path / place).write_text("x")
    _, found = scan(folder.FOLDER, tmp_path)
    assert place in {f.file for f in found if f.severity == "error"} or {f.status for f in found} >= {"missing_mask"}
    assert [f for f in found if f.severity == "error"]


@pytest.mark.parametrize("dataset", ["folder", "visa", "sdd", "mnist", "mvtec_ad_2"])
def test_roots_that_are_none(tmp_path: Path, dataset: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("loop", "file", "empty", "dangling", "absent"):
        assert str(tmp_path / name) in refused(tmp_path / name, tmp_path, dataset)
    assert not records(tmp_path)


def test_a_loop_of_links_inside_is_no_hang(tmp_path: Path) -> None:
    trees.mvtec(tmp_path, ("a",))
    for place in ("a/train/good/loop", "a/train/loop", "a/test/hole/loop", "a/loop", "loop", "a/test/good/loop.png"):
        (tmp_path / place).symlink_to(tmp_path)
    (tmp_path / "a/test/good/self.png").symlink_to(tmp_path / "a/test/good/self.png")
    samples, found = scan(folder.FOLDER, tmp_path)
    assert len(samples) == 8
    assert ("a/test/good/self.png", "unreadable") in {(f.file, f.status) for f in found}
    assert "self.png" in refused(tmp_path, tmp_path / "x")


def deny(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """What a locked folder is to everybody but root: it can neither be listed nor entered."""
    scandir, stat = os.scandir, os.stat

    def scandir_(place: object = ".") -> object:
        if Path(os.fspath(place)) == path:  # type: ignore[call-overload]
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(place)  # type: ignore[call-overload]

    def stat_(place: object, *args: object, **kwargs: object) -> object:
        if isinstance(place, (str, os.PathLike)) and path in Path(os.fspath(place)).parents:  # type: ignore[arg-type]
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return stat(place, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir_)
    monkeypatch.setattr(os, "stat", stat_)


@pytest.mark.parametrize("place", ["a/train/good", "a/test", "a", "."])
def test_a_locked_folder_is_named(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.mvtec(tmp_path / "data", ("a", "b"))
    deny(monkeypatch, root / place if place != "." else root)
    with pytest.raises(DataError, match="Permission denied") as caught:
        open_manifest(folder.FOLDER, folder.FOLDER.params(), root)
    assert str(root / place).rstrip("/.") in caught.value.message


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is locked to root")
def test_a_really_locked_folder(tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "data", ("a", "b"))
    (root / "a" / "train" / "good").chmod(0)
    try:
        assert "Permission denied" in refused(root, tmp_path)
    finally:
        (root / "a" / "train" / "good").chmod(0o755)


def test_an_unreadable_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = trees.mvtec(tmp_path / "data", ("a",))
    from inpbench.harness import images

    real = images.Image.open

    def locked(file: object, **more: object) -> object:
        if str(file).endswith("test/good/001.png"):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(images.Image, "open", locked)
    outcome = bench(*RUN, "--dataset", "folder", "--data-root", root, "--results", tmp_path / "records")
    assert outcome.code == 1, "the cell failed, and its record says why"
    assert "a/test/good/001.png: unreadable: Permission denied" in outcome.err and "Traceback" not in outcome.err


def test_records_survive_data_that_vanished(tmp_path: Path) -> None:
    root = trees.mvtec(tmp_path / "data", ("a",))
    assert bench(*RUN, "--dataset", "folder", "--data-root", root, "--results", tmp_path / "records").code == 0
    before = records(tmp_path)
    (root / "a" / "test").rename(tmp_path / "kept")
    (root / "a" / "test").write_text("a file now")
    assert "a/test" in refused(root, tmp_path)
    assert records(tmp_path) == before and (tmp_path / "kept" / "good" / "000.png").is_file()
    assert bench("leaderboard", "--results", tmp_path / "records").code == 0


def test_check_folder_is_content_with_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found: list[Finding] = []
    for name in ("real", "link", "absent"):
        listing.check_folder(tmp_path, name, found.append)
    assert found == []
