"""The disk and the machine against us: full, read-only, gone, cut off, shared with another bench, with a clock that jumps.

A run ends with two lines, what was done stays readable, nothing half has a final name, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import recordkit
import tiny_disk
from commands import TINY, Outcome, bench
from interpreter import PYTHON

from inpbench.harness import atomic, claims, records, runner
from inpbench.harness.errors import RecordError
from inpbench.harness.records import RecordStore
from inpbench.harness.snapshots import FolderSnapshots

SUPPORT = Path(__file__).parent / "support"
RUN = ["run", "--methods", "raw_pixel", "--preset", "smoke", *TINY, "--display", "plain"]


def numbers(folder: Path) -> dict[str, Any]:
    """The metrics of every done record; a file that is no record fails."""
    listing = RecordStore(folder).all()
    assert not listing.warnings, listing.warnings
    return {record.id: record.metrics for record in listing if record.status == "done"}


def two_lines(outcome: Outcome) -> str:
    """What a refused command said: an error and what to type, no traceback."""
    assert outcome.code in (1, 3) and "Traceback" not in outcome.err + outcome.out, outcome
    assert "Error: " in outcome.err or "failed: " in outcome.err, outcome
    return " ".join(outcome.err.split())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("calm")
    assert bench(*RUN, "--results", folder).code == 0
    return numbers(folder)


# --- full -----------------------------------------------------------------------------------------------------------


def file_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


@contextlib.contextmanager
def disk_full_after(count: int, below: Path) -> Iterator[list[int]]:
    """From the `count`-th flush of a file below a folder on, the disk has no room left. Gives how often it was full."""
    flush, full = os.fsync, [0, 0]

    def fsync(descriptor: int) -> None:
        if below in file_of(descriptor).parents:
            full[0] += 1
            if full[0] > count:
                full[1] += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield full


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to know the file of a descriptor")
def test_a_disk_that_is_full_at_each_write_in_turn(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Every write of a cell meets the full disk once; afterwards the same command ends with the undisturbed numbers."""
    met = 0
    for count in range(200):
        results = tmp_path / str(count)
        with disk_full_after(count, results) as full:
            outcome = bench(*RUN, "--results", results)
        if not full[1]:
            assert outcome.code == 0 and numbers(results) == undisturbed
            break
        met += 1
        said = two_lines(outcome)
        assert "No space left on device" in said and "free some space" in said, said
        # At the last write the record has its name already, and only its folder could not be flushed.
        named = numbers(results)
        assert named in ({}, undisturbed), "nothing is done that could not be written"
        if count % 5 == 2:  # one in five: the others would only repeat it
            again = bench(*RUN, "--results", results)
            assert again.code == 0, again.err
            assert numbers(results) == undisturbed
            # A cell that is done is not run again: what the last write left of its work costs space alone.
            assert not list(results.rglob("*.tmp")) and (named or not list(results.rglob("*.work")))
        shutil.rmtree(results)
    assert met >= 8, f"only {met} writes were found"


def test_a_full_disk_loses_no_earlier_record(tmp_path: Path) -> None:
    results = tmp_path / "runs"
    assert bench(*RUN, "--results", results).code == 0
    before = numbers(results)
    with disk_full_after(3, results):
        said = two_lines(bench(*RUN, "--results", results, "--force"))
        assert "No space left" in said
    assert numbers(results) == before, "--force keeps the old numbers until there are new ones"
    with disk_full_after(0, results):
        assert bench("leaderboard", "--results", results).code == 0, "reading needs no room"
        for verb in (["report", "--out", results / "r.html"], ["leaderboard", "--out", results / "t.md"]):
            assert "No space left" in two_lines(bench(*verb, "--results", results))
    assert not (results / "r.html").exists() and not (results / "t.md").exists()


@pytest.mark.parametrize("write", ["save", "save_fitted"])
def test_a_snapshot_that_finds_no_room_leaves_the_last_one(write: str, tmp_path: Path) -> None:
    import torch

    snapshots = FolderSnapshots(tmp_path / "all")
    getattr(snapshots, write)({"step": torch.tensor(1)})
    with disk_full_after(0, tmp_path), pytest.raises(RecordError, match="No space left"):
        getattr(snapshots, write)({"step": torch.tensor(2)})
    fresh = FolderSnapshots(tmp_path / "all")
    state = fresh.load() if write == "save" else fresh.load_fitted()
    assert state == {"step": torch.tensor(1)} and len(list((tmp_path / "all").iterdir())) == 1


class FullFile:
    """A file of maps on a full disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def fileno(self) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_maps_that_find_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are written batch by batch, beside the atomic files."""
    from inpbench.harness.kept_maps import MapKeeper

    begin = MapKeeper.__init__

    def full(self: MapKeeper, *args: Any) -> None:
        begin(self, *args)
        self._file = FullFile(self._raw)  # type: ignore[assignment]

    monkeypatch.setattr(MapKeeper, "__init__", full)
    said = two_lines(bench(*RUN, "--results", tmp_path, "--save-maps"))
    assert "Cannot write maps" in said and "leave --save-maps out" in said
    monkeypatch.undo()
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".npy"]
    assert bench(*RUN, "--results", tmp_path, "--save-maps").code == 0 and len(list(tmp_path.rglob("*.maps/*.json"))) == 2


def test_a_real_file_system_full_and_then_read_only(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """No simulation: file systems of a few KiB, mounted where no other process sees them."""
    (tmp_path / "disk").mkdir()
    if not tiny_disk.is_possible(tmp_path / "disk"):
        pytest.skip("this machine lets nobody mount a file system (root and unshare are needed)")
    where = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [*tiny_disk.MOUNT, *PYTHON, str(SUPPORT / "tiny_disk.py"), str(tmp_path / "disk"), "--", *RUN]
    command += ["--results", str(tmp_path / "disk"), "--no-intervals"]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PYTHONPATH": where}
    )
    assert answer.returncode == 0, answer.stderr
    *runs, read_only, leaderboard = json.loads(answer.stdout.splitlines()[-1])
    assert [run["size"] for run in runs] == [size for each in tiny_disk.SIZES for size in (each, "room")]
    for full, room in zip(runs[::2], runs[1::2], strict=True):
        assert "No space left on device" in two_lines(Outcome(full["code"], full["out"], full["err"])), full
        assert not full["warnings"], "no half record under a final name"
        assert room["code"] == 0 and not room["warnings"], room["err"]
        assert len([name for name in room["names"] if name.endswith(".json")]) == 1
    assert "read-only" in two_lines(Outcome(read_only["code"], read_only["out"], read_only["err"])), read_only
    assert "choose another folder" in read_only["err"] and read_only["names"] == runs[-1]["names"]
    assert leaderboard["code"] == 0 and "raw_pixel" in leaderboard["out"]


# --- read-only, taken, gone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_results_that_may_not_be_written(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, because nothing is read-only to root: the lock file, the first thing written, is refused."""
    real = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).startswith(str(tmp_path / "runs")):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    said = two_lines(bench(*RUN, "--results", tmp_path / "runs"))
    assert os.strerror(code) in said


@pytest.mark.parametrize("place", ["", "runs", "runs/synthetic", "runs/synthetic/multi_class/raw_pixel"])
def test_a_file_where_the_results_belong(place: str, tmp_path: Path) -> None:
    where = tmp_path / "x" / place
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text("mine")
    said = two_lines(bench(*RUN, "--results", tmp_path / "x" / "runs"))
    assert "A file stands where a folder is needed" in said and where.read_text() == "mine"


def test_results_that_are_deleted_while_a_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict) -> None:
    evaluate, results = runner.evaluate_category, tmp_path / "runs"

    def meanwhile(cell: Any, category: str, *args: Any) -> Any:
        if category == "nut":
            shutil.rmtree(results)
        return evaluate(cell, category, *args)

    monkeypatch.setattr(runner, "evaluate_category", meanwhile)
    outcome = bench(*RUN, "--results", results, "--no-intervals")
    assert outcome.code == 0, outcome.err
    assert numbers(results) == undisturbed and bench("leaderboard", "--results", results).code == 0


# --- a power cut ----------------------------------------------------------------------------------------------------

CUT = """
import os, sys
from pathlib import Path
from inpbench.harness import atomic
Path.replace = lambda self, target: os._exit(9)
atomic.write_text(Path(sys.argv[1]), "new" * 1000)
"""


def test_a_power_cut_between_write_and_rename(tmp_path: Path) -> None:
    """The old record stands, the left-over is no record, and the next run of the cell removes it."""
    assert bench(*RUN, "--results", tmp_path).code == 0
    (path,) = (p for p in tmp_path.rglob("*.json"))
    old, before = path.read_bytes(), numbers(tmp_path)
    model = next(tmp_path.rglob("*.safetensors"))
    for file in (path, model):
        assert subprocess.run([*PYTHON, "-c", CUT, str(file)], check=False).returncode == 9
    left = list(tmp_path.rglob("*.tmp"))
    assert len(left) == 2 and path.read_bytes() == old and numbers(tmp_path) == before
    assert bench("leaderboard", "--results", tmp_path).code == 0
    assert bench(*RUN, "--results", tmp_path, "--force").code == 0
    assert not list(tmp_path.rglob("*.tmp")) and numbers(tmp_path) == before


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that a power cut needs: file, rename, its folder, and the folders that hold new folders."""
    order: list[str] = []
    flush, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        order.append("flush " + file_of(descriptor).name.partition(".json.")[0])
        flush(descriptor)

    def replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    atomic.write_text(tmp_path / "a" / "b" / "r.json", "x")
    assert order == ["flush .r", "rename", "flush b", "flush a", f"flush {tmp_path.name}"]


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (".abc.json.1.tmp", ".abc.x.npz.2.tmp", ".other.json.3.tmp", "abc.tmp", ".abc.json"):
        (tmp_path / name).write_text("x")
    atomic.sweep(tmp_path, "abc")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".abc.json", ".other.json.3.tmp", "abc.tmp"]
    atomic.sweep(tmp_path / "absent", "abc")


def test_a_drawing_that_was_killed_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inpbench.harness import roots
    from inpbench.harness.params import build
    from inpbench.harness.registry import DATASETS

    monkeypatch.setenv("INPBENCH_CACHE", str(tmp_path))
    info = DATASETS.get("synthetic")
    params = build("synthetic", info.params, {"size": "64", "train": "1", "normal": "1", "defective": "1"})
    folder = roots.drawn(info, params)
    count = len(list(folder.rglob("*.png")))
    shutil.rmtree(folder)
    half = folder.parent / f".draft-{folder.name}-0123"
    half.mkdir()
    (half / "half.png").write_bytes(b"")
    assert roots.drawn(info, params) == folder and len(list(folder.rglob("*.png"))) == count and not half.exists()


# --- two benches on one folder --------------------------------------------------------------------------------------


def start(results: Path, *more: str) -> subprocess.Popen[str]:
    command = [*PYTHON, "-c", "from inpbench.harness.cli import main; main()", *RUN, "--results", str(results), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_benches_on_one_folder_train_each_cell_once(tmp_path: Path) -> None:
    both = [start(tmp_path, "--seeds", "1,2,3") for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    tested = "".join(err for _, err in said)
    for seed in (1, 2, 3):
        assert tested.count(f"seed {seed}: testing weave") == 1, tested
    for process, (_, err) in zip(both, said, strict=True):
        assert process.returncode == 0 or (process.returncode == 1 and "Another bench is at work on" in err), err
        assert "Traceback" not in err
    assert len(numbers(tmp_path)) == 3
    again = bench(*RUN, "--results", tmp_path, "--seeds", "1,2,3")
    assert again.code == 0 and "3 done, 0 to do" in again.err


def test_a_cell_that_another_bench_works_on_is_left_to_it_and_the_others_are_run(tmp_path: Path) -> None:
    assert bench(*RUN, "--results", tmp_path / "probe").code == 0
    lock = next((tmp_path / "probe").rglob("*.lock")).relative_to(tmp_path / "probe")
    with claims.claim(tmp_path / "runs" / lock):
        outcome = bench(*RUN, "--results", tmp_path / "runs", "--seeds", "1,2")
    assert outcome.code == 1 and "raw_pixel" in outcome.out, "the finished cell is shown"
    assert "Another bench is at work on 1 of these cells: raw_pixel:smoke on synthetic, seed 1." in outcome.err
    assert "run the same command again" in outcome.err and len(numbers(tmp_path / "runs")) == 1


def test_a_cell_that_another_bench_finished_meanwhile_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, other = runner.claim, []

    def late(*args: Any, **kwargs: Any) -> Any:
        if not other:
            other.append(None)
            other[0] = bench(*RUN, "--results", tmp_path)  # type: ignore[call-overload]
        return claim(*args, **kwargs)

    monkeypatch.setattr(runner, "claim", late)
    outcome = bench(*RUN, "--results", tmp_path)
    assert outcome.code == 0 and other[0].code == 0
    assert "testing weave" in other[0].err and "testing weave" not in outcome.err and "raw_pixel" in outcome.out


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_a_clock_that_runs_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]) -> None:
    """Durations come from the monotonic clock; `started` and `finished` are only told."""
    now = [datetime(2026, 6, 1, tzinfo=timezone.utc), time.time()]

    def earlier() -> str:
        now[0] -= timedelta(days=400)
        return now[0].isoformat(timespec="seconds")

    def jumping() -> float:
        now[1] -= 86_400.0
        return now[1]

    monkeypatch.setattr(runner, "timestamp", earlier)
    monkeypatch.setattr(time, "time", jumping)
    assert bench(*RUN, "--results", tmp_path).code == 0
    monkeypatch.undo()
    (record,) = RecordStore(tmp_path).all()
    assert record.finished < record.started and numbers(tmp_path) == undisturbed
    timed = {key: value for key, value in record.cost.items() if key.endswith("_s") and isinstance(value, (int, float))}
    assert timed and all(0 <= value < 3600 for value in timed.values()), timed
    assert "1 done, 0 to do" in bench(*RUN, "--results", tmp_path).err
    for verb in (["leaderboard"], ["leaderboard", "--cost"], ["report", "--out", tmp_path / "r.html"]):
        assert bench(*verb, "--results", tmp_path).code == 0


def test_times_of_files_mean_nothing(tmp_path: Path) -> None:
    """Copied, unpacked or touched results give the same tables and are as done as before."""
    assert bench(*RUN, "--results", tmp_path, "--seeds", "1,2").code == 0
    before = bench("leaderboard", "--results", tmp_path, "--json").out
    for age, path in enumerate(sorted(tmp_path.rglob("*"))):
        os.utime(path, (age * 1e8, 4e9 - age * 1e8))
    assert bench("leaderboard", "--results", tmp_path, "--json").out == before
    assert "2 done, 0 to do" in bench(*RUN, "--results", tmp_path, "--seeds", "1,2").err


def test_training_time_does_not_follow_the_clock_on_the_wall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = FolderSnapshots(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert 0 <= snapshots.elapsed_s() < 60 and not snapshots.due()


def test_the_newest_record_is_that_of_its_own_words(tmp_path: Path) -> None:
    """Of two records of one cell and hardware the baseline takes the one that finished last, whatever the files' times are."""
    from inpbench.harness.baselines import read, update

    store = RecordStore(tmp_path / "runs")
    old = store.write(recordkit.record(0.7, method_version=1, finished="2026-01-01T00:00:00+00:00"))
    new = store.write(recordkit.record(0.8, method_version=2, finished="2026-02-01T00:00:00+00:00"))
    os.utime(new, (1, 1))
    os.utime(old, (4e9, 4e9))
    (path,) = update(store, tmp_path / "baselines", "first")
    assert read(path).entries[0].metrics["i_auroc"].value == 0.8


def test_a_record_says_when_in_utc() -> None:
    assert records.timestamp().endswith("+00:00") and sys.version_info >= (3, 10)
