"""The package as others install it: nothing forgotten, nothing shadowed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from interpreter import PYTHON

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML by itself")

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {
        "inpbench." + str(path.parent.relative_to(REPOSITORY)).replace("/", ".")
        for top in ("harness", "methods", "datasets", "results")
        for path in (REPOSITORY / top).rglob("__init__.py")
    }
    assert listed == found


def test_no_init_in_tests() -> None:
    assert not (REPOSITORY / "tests" / "__init__.py").exists(), "it would put the repository root on sys.path"


def test_foreign_datasets_is_not_shadowed(tmp_path: Path) -> None:
    """Hugging Face's `datasets` (here a stand-in) is what `import datasets` finds, with inpbench installed beside it."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("WHO = 'somebody else'\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import inpbench.datasets, datasets; print(datasets.WHO)"
    done = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "somebody else", done.stderr


def test_pytest_does_not_shadow() -> None:
    assert str(REPOSITORY) not in sys.path


@pytest.mark.slow
def test_wheel_holds_everything(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(REPOSITORY)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "setuptools" in done.stderr and done.returncode:
        pytest.skip("setuptools is not in this environment")
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    for top in ("harness", "methods", "datasets"):
        for path in (REPOSITORY / top).rglob("*"):
            if path.suffix in {".py", ".typed", ".npz", ".safetensors", ".json"} and "__pycache__" not in path.parts:
                assert f"inpbench/{path.relative_to(REPOSITORY)}" in names, f"{path.name} is missing from the wheel"
    for path in (REPOSITORY / "results" / "reported").glob("*.json"):
        assert f"inpbench/results/reported/{path.name}" in names
    assert not {name for name in names if name.startswith(("datasets/", "methods/", "results/", "tests/"))}
