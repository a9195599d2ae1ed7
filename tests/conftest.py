"""What every test stands on: a cache of its own, no network, no settings of the person who runs it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# One thread: the models of the tests are tiny, and two threads that wait for each other on a busy machine are ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No code may reach for a hub in a test, and nothing may depend on what lies in a home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("INPBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("INPBENCH_WEIGHTS", "INPBENCH_DATA", "INPBENCH_RESULTS"):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", "160")
        yield
    gc.unfreeze()  # of every module's `_imports_are_no_garbage`


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage() -> None:
    """A cell ends with a full collection: without the half a million objects of imported packages it costs nothing."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tiny_in_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny encoder of `methodkit` by its name."""
    from methodkit import TINY

    from inpbench.methods import encoder_table

    monkeypatch.setitem(encoder_table.ENCODERS, TINY.name, TINY)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty folder for records."""
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def _cwd_is_kept() -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)
