"""CONTRIBUTING's "add a method in 4 steps", done to the letter: the package is built from that page's own code blocks."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from commands import TINY
from interpreter import PYTHON
from PIL import Image

PAGE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files on disk, with the entry point that its third step registers."""
    folder = tmp_path_factory.mktemp("plugin")
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [name for name, _ in blocks] == [f"my_package/{name}.py" for name in ("info", "model", "told", "told_model")]
    for name, text in blocks:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (folder / "my_package" / "__init__.py").touch()
    group, line = re.search(r"`\[project\.entry-points\.\"(.+?)\"\]` / `(.+?)`", PAGE.read_text()).groups()  # type: ignore[union-attr]
    info = folder / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    told = "mean_of_category = my_package.told:INFO"
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n{told}\n")
    return folder


def bench(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from inpbench.harness.cli import main; main()"
    places = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.run([*PYTHON, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["mean_image", "mean_of_category"])
def test_it_keeps_the_contract(package: Path, name: str) -> None:
    done = bench(package, "doctor", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "batch_invariance" in done.stdout


def test_it_runs_beside_ours(package: Path, tmp_path: Path) -> None:
    done = bench(package, "run", "--methods", "mean_image,raw_pixel", *TINY, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "mean_image" in done.stdout and "raw_pixel" in done.stdout


def test_a_method_that_is_told_the_category_runs_and_is_used(package: Path, tmp_path: Path) -> None:
    results, images = tmp_path / "runs", tmp_path / "nuts"
    run = ["run", "--methods", "mean_of_category", *TINY, "--setting", "few_shot", "--shots", "2", "--results", str(results)]
    done = bench(package, *run)
    assert done.returncode == 0, done.stderr
    assert "told the category of each test image" in done.stdout
    record = next(results.glob("*/*/*/*.json"))
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "a.png")
    use = ["predict", record.stem, "--images", str(images), "--out", str(tmp_path / "out"), "--results", str(results)]
    done = bench(package, *use, "--category", "nut")
    assert done.returncode == 0 and "a.png" in done.stdout, done.stderr
