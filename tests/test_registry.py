"""Names: lazy, never replaced, and suggested when mistyped; a broken plugin takes nothing down."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from interpreter import PYTHON

from inpbench.harness.api import MethodInfo, NoParams
from inpbench.harness.errors import PrerequisiteError, UsageError
from inpbench.harness.registry import DATASETS, METHODS, resolve

PLUGIN = """
from inpbench.harness.api import MethodInfo, NoParams
INFO = MethodInfo(
    name="plugged", version=1, title="from outside", target="plug:Method", params=NoParams, settings=frozenset({"multi_class"})
)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A third party's distribution, installed by hand: one good method, one broken, one that wants the name of a built-in."""
    (tmp_path / "plug.py").write_text(PLUGIN)
    info = tmp_path / "plug_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[inpbench.methods]\nplugged = plug:INFO\nbroken = plug:MISSING\ndinomaly = plug:INFO\nwrong = plug:NoParams\n"
    )
    return tmp_path


def run(plugin: Path, code: str) -> str:
    code = f"import sys; sys.path.insert(0, {str(plugin)!r})\nfrom inpbench.harness.registry import METHODS\n{code}"
    done = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_third_party_is_found_by_entry_point(plugin: Path) -> None:
    assert run(plugin, "print(METHODS.get('plugged').title, METHODS.origin('plugged'))") == "from outside plug-dist"


def test_built_in_is_never_replaced(plugin: Path) -> None:
    out = run(plugin, "print(METHODS.origin('dinomaly'), 'plug-dist/dinomaly' in METHODS.names())")
    assert out == "inpbench True"


@pytest.mark.parametrize("name", ["broken", "wrong"])
def test_broken_plugin_is_named(plugin: Path, name: str) -> None:
    code = (
        "from inpbench.harness.errors import PrerequisiteError\n"
        f"try:\n    METHODS.get('{name}')\nexcept PrerequisiteError as error:\n    print(error.message)"
    )
    assert name in run(plugin, code)


@pytest.mark.parametrize(("registry", "typed", "meant"), [(METHODS, "inpformer", "inp_former"), (DATASETS, "mvtec", "mvtec_ad")])
def test_typo_is_suggested(registry: object, typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"Did you mean: {meant}"):
        registry.get(typed)  # type: ignore[attr-defined]


def test_a_folder_in_place_of_a_data_set_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dataset folder --data-root"):
        DATASETS.get(str(tmp_path))


def test_added_for_this_process_only() -> None:
    info = MethodInfo(name="mine", version=1, title="t", target="a:b", params=NoParams, settings=frozenset())
    METHODS.add(info)
    try:
        assert METHODS.get("mine") is info and "mine" in METHODS.names()
        with pytest.raises(UsageError, match="built in"):
            METHODS.add(MethodInfo(name="dinomaly", version=1, title="t", target="a:b", params=NoParams, settings=frozenset()))
    finally:
        METHODS._added.clear()


def test_missing_package_says_what_to_install() -> None:
    with pytest.raises(PrerequisiteError, match="not installed") as caught:
        resolve("no_such_package_xyz.module:attr")
    assert "pip install no_such_package_xyz" in caught.value.hint
