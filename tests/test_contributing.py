"""CONTRIBUTING's "add a method in 4 steps", done to the letter: the package is built from that page's own code blocks."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from commands import TINY
from interpreter import PYTHON

PAGE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files on disk, with the entry point that its third step registers."""
    folder = tmp_path_factory.mktemp("plugin")
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [name for name, _ in blocks] == ["my_package/info.py", "my_package/model.py"]
    for name, text in blocks:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (folder / "my_package" / "__init__.py").touch()
    group, line = re.search(r"`\[project\.entry-points\.\"(.+?)\"\]` / `(.+?)`", PAGE.read_text()).groups()  # type: ignore[union-attr]
    info = folder / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n")
    return folder


def bench(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from inpbench.harness.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(package)}
    return subprocess.run([*PYTHON, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_it_keeps_the_contract(package: Path) -> None:
    done = bench(package, "doctor", "mean_image")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "batch_invariance" in done.stdout


def test_it_runs_beside_ours(package: Path, tmp_path: Path) -> None:
    done = bench(package, "run", "--methods", "mean_image,raw_pixel", *TINY, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "mean_image" in done.stdout and "raw_pixel" in done.stdout
