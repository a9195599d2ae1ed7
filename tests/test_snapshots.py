"""Snapshots come back as they were, add up their time, and a broken one costs time, never a crash."""

from __future__ import annotations

from pathlib import Path

import torch

from inpbench.harness.snapshots import FolderSnapshots


def test_round_trip(tmp_path: Path) -> None:
    FolderSnapshots(tmp_path).save({"step": 3, "model": {"w": torch.arange(4.0)}, "order": [1, 2]})
    state = FolderSnapshots(tmp_path).load()
    assert state is not None and state["step"] == 3 and state["order"] == [1, 2]
    assert torch.equal(state["model"]["w"], torch.arange(4.0))


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    snapshots = FolderSnapshots(tmp_path)
    assert snapshots.load() is None and snapshots.load_fitted() is None and not snapshots.resumed


def test_due_after_the_interval(tmp_path: Path) -> None:
    assert FolderSnapshots(tmp_path, every_s=0.0).due()
    assert not FolderSnapshots(tmp_path, every_s=100.0).due()


def test_time_of_earlier_processes_counts(tmp_path: Path) -> None:
    first = FolderSnapshots(tmp_path)
    first.earlier_s = 100.0
    first.save({"step": 1})
    second = FolderSnapshots(tmp_path)
    second.load()
    assert 100.0 <= second.earlier_s <= second.elapsed_s() < 110.0


def test_broken_file_is_set_aside(tmp_path: Path) -> None:
    snapshots = FolderSnapshots(tmp_path)
    snapshots.save({"step": 1})
    (tmp_path / "snapshot.pt").write_bytes(b"half a file")
    assert FolderSnapshots(tmp_path).load() is None
    assert (tmp_path / "snapshot.broken").is_file()


def test_clear_removes_both(tmp_path: Path) -> None:
    snapshots = FolderSnapshots(tmp_path)
    snapshots.save({"a": 1})
    snapshots.save_fitted({"w": torch.zeros(2)})
    snapshots.clear()
    assert snapshots.load() is None and snapshots.load_fitted() is None
