"""Which pixels were measured: other content under the same names, sizes and times is another data set."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import trees
from commands import bench

from inpbench.datasets.mvtec import MVTEC_AD
from inpbench.harness import contents
from inpbench.harness.api import Preprocess
from inpbench.harness.errors import DataError
from inpbench.harness.manifest import Manifest, open_manifest
from inpbench.harness.pixels import open_pixels
from inpbench.harness.records import RecordStore, identity_id


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INPBENCH_CACHE", str(tmp_path / "cache"))
    return trees.mvtec(tmp_path / "data")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read for their digests, in any order."""
    names: list[str] = []
    real = contents.read_bytes

    def counted(path: Path, *most: int) -> bytes:
        if path.suffix == ".png":
            names.append(path.name)
        return real(path, *most)

    monkeypatch.setattr(contents, "read_bytes", counted)
    return names


def opened(root: Path, *categories: str) -> Manifest:
    return open_manifest(MVTEC_AD, MVTEC_AD.params(), root, True, categories or None)


def swap(path: Path) -> None:
    """Another picture of the same size under the same name and time, as a careful `cp -p` leaves it."""
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_one_changed_bit_under_the_same_size_and_time(root: Path) -> None:
    first = opened(root).identity
    swap(root / "carpet/test/good/000.png")
    changed = opened(root)
    assert changed.identity != first and changed.earlier_identity == opened(root).earlier_identity
    swap(root / "carpet/test/good/000.png")
    assert opened(root).identity == first


def test_files_are_read_once(root: Path, read: list[str]) -> None:
    part = opened(root, "bottle").identity
    assert len(read) == len(opened(root, "bottle").files)
    read.clear()
    whole = opened(root)
    assert whole.identity != part and len(read) == len(whole.files) - len(opened(root, "bottle").files)
    read.clear()
    assert opened(root).identity == whole.identity and opened(root, "bottle").identity == part and read == []
    os.utime(root / "bottle/train/good/000.png")
    assert opened(root).identity == whole.identity and read == ["000.png"]


def test_a_damaged_memory_is_not_believed(root: Path, read: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = opened(root).identity
    (memory,) = (tmp_path / "cache" / "contents").glob("*.json")
    good = memory.read_bytes()
    for bad in (good.replace(b"a", b"b", 1), good[:-80], b"", b"[]\n"):
        memory.write_bytes(bad)
        read.clear()
        assert opened(root).identity == first and len(read) == len(opened(root).files)
    assert "the files are read again" in caplog.text


def test_a_cache_that_cannot_be_written_costs_only_time(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "contents").write_text("a file where the folder belongs")
    first = opened(root).identity
    assert "is not remembered" in caplog.text
    (tmp_path / "cache" / "contents").unlink()
    assert opened(root).identity == first


def test_an_unreadable_file_is_no_content_and_never_opened_as_a_pipe(root: Path) -> None:
    first = opened(root)
    path = root / "carpet/test/good/000.png"
    path.unlink()
    os.mkfifo(path)
    assert first.contents["carpet/test/good/000.png"] == contents.UNREADABLE
    assert all(digest for name, digest in first.contents.items() if name != "carpet/test/good/000.png")


def test_numbers_of_other_pixels_stand_in_a_table_of_their_own(root: Path, tmp_path: Path) -> None:
    """Plan, resume, tables and the check follow the identity; cached pixels follow the content, too."""
    results = tmp_path / "results"
    run = ["run", "-m", "raw_pixel", "--preset", "smoke", "-d", "mvtec_ad", "--data-root", root, "--results", results]
    check = ["check", "--results", results, "--baselines", tmp_path / "baselines"]
    assert bench(*run, "--display", "none").code == 0 and bench(*check, "--update", "--reason", "first").code == 0
    plan = bench(*run, "--dry-run", "--json").json()["cells"]
    assert [cell["status"] for cell in plan] == ["done"] and bench(*check).code == 0
    source, target = root / "carpet/test/hole/000.png", root / "carpet/test/good/000.png"
    times = target.stat()
    target.write_bytes(source.read_bytes())
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    plan = bench(*run, "--dry-run", "--json").json()["cells"]
    assert [cell["status"] for cell in plan] == ["todo"] and plan[0]["id"] != ""
    assert bench(*run, "--display", "none").code == 0
    one, other = RecordStore(results).all(status="done")
    assert one.identity["manifest"] != other.identity["manifest"] and one.metrics != other.metrics
    text = bench("leaderboard", "--results", results, "-f", "markdown").out
    assert text.count("| raw_pixel") == 2 and text.count("## mvtec_ad, multi_class") == 2
    assert all(f"content {record.identity['manifest'][8:20]}" in text for record in (one, other))


def test_a_record_of_names_and_sizes_is_spoken_of(root: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    run = ["run", "-m", "raw_pixel", "--preset", "smoke", "-d", "mvtec_ad", "--data-root", root, "--results", results]
    assert bench(*run, "--display", "none").code == 0
    [record] = RecordStore(results).all()
    RecordStore(results).path_of(record.identity).unlink()
    record.identity["manifest"] = opened(root).earlier_identity
    record.id = identity_id(record.identity)
    RecordStore(results).write(record)
    [cell] = bench(*run, "--dry-run", "--json").json()["cells"]
    assert cell["status"] == "todo" and f"record {record.id12} knows the names and sizes of its images" in cell["reason"]


def test_verify_says_which_content_it_is(root: Path, read: list[str]) -> None:
    shown = bench("data", "verify", "mvtec_ad", "--data-root", root)
    assert f"content {opened(root).identity[8:20]}" in shown.out
    read.clear()
    assert bench("data", "verify", "mvtec_ad", "--data-root", root, "--json").json()["manifest"] == opened(root).identity
    assert len(read) == len(opened(root).files), "whatever is remembered, every file was read again"


def test_a_file_that_changes_between_plan_and_decoding_ends_the_cell(root: Path, tmp_path: Path) -> None:
    """Hours may lie between them; the cache would keep the new pixels under the old content."""
    manifest = opened(root)
    assert manifest.identity
    path = root / "carpet/train/good/000.png"
    os.utime(path)
    preprocess = Preprocess(resize=(32, 32), crop=(32, 32))
    for category in ("bottle", "carpet"):
        samples = [sample for sample in manifest.samples if sample.category == category]
        assert len(open_pixels(manifest, samples, preprocess, cache=True).position) == 8, "touched is not changed"
    swap(path)
    again = dataclasses.replace(manifest, opened={})
    assert again.files == manifest.files
    for cache in (True, False):
        again.__dict__["contents"] = manifest.contents
        with pytest.raises(DataError, match=r"carpet/train/good/000\.png was changed while this run was under way"):
            open_pixels(again, again.samples, preprocess, cache=cache)
    assert not list((tmp_path / "cache" / "pixels").glob("*.tmp"))
