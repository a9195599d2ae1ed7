"""Where data is looked for, and drawing a set once, completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from inpbench.harness import roots
from inpbench.harness.api import DatasetInfo, NoParams
from inpbench.harness.errors import DataError, PrerequisiteError

FOUND = DatasetInfo(
    name="found", version=1, title="t", scan="a:b", expected_tree="<root>/train/good", homepage="https://example.org"
)
DRAWN = DatasetInfo(name="drawn", version=1, title="t", scan="a:b", generate="whatever:draw")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INPBENCH_DATA", raising=False)
    return tmp_path / "cache"


def test_option_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "found").mkdir(parents=True)
    monkeypatch.setenv("INPBENCH_DATA", str(tmp_path / "data"))
    assert roots.locate(FOUND, NoParams(), None) == tmp_path / "data" / "found"
    assert roots.locate(FOUND, NoParams(), tmp_path) == tmp_path


def test_missing_data_names_the_place_the_tree_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        roots.locate(FOUND, NoParams(), tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in caught.value.message and "<root>/train/good" in caught.value.message
    assert "--data-root" in caught.value.hint and "https://example.org" in caught.value.hint
    assert caught.value.exit_code == 3


def test_drawn_set_has_no_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="drawn by the bench"):
        roots.locate(DRAWN, NoParams(), tmp_path)


def test_drawn_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def draw(folder: Path, params: object) -> None:
        calls.append(folder)
        (folder / "image.png").write_bytes(b"x")

    monkeypatch.setattr(roots, "resolve", lambda target: draw)
    first, second = roots.locate(DRAWN, NoParams(), None), roots.locate(DRAWN, NoParams(), None)
    assert first == second and len(calls) == 1
    assert [path.name for path in first.iterdir()] == ["image.png"]


def test_interrupted_drawing_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, params: object) -> None:
        (folder / "half.png").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(roots, "resolve", lambda target: fail)
    with pytest.raises(DataError, match="No space left"):
        roots.locate(DRAWN, NoParams(), None)
    assert not [path for path in (cache / "drawn").iterdir() if path.is_dir()]


def test_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INPBENCH_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(PrerequisiteError, match="cannot be made"):
        roots.cache_folder()
