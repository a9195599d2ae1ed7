"""Who may import whom, by walking every import of every file; and the start-up budget of the command line."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest
from interpreter import PYTHON

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("harness", "methods", "datasets")
HEAVY = {"torch", "timm", "open_clip", "sklearn", "pandas", "scipy", "PIL", "torchvision", "gradio", "onnx", "onnxruntime"}
HEAVY |= {"anomalib", "lightning"}
# Files that work on tensors or pixels: the only ones of the bench that import torch or PIL at the top.
TENSOR_FILES = {
    *("cost", "draws", "evaluation", "export_files", "export_graph", "images", "loading", "map_sheet", "pixels"),
    *("predictor", "ranks_in_turn", "references", "rescore", "runner", "scoring", "scratch", "training"),
}


def files(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Names of all modules a file imports; with top_only those imported when the file is (type checking left out)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = []
    if top_only:
        pending: list[ast.AST] = list(tree.body)
        while pending:
            node = pending.pop()
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            nodes.append(node)
            pending.extend(ast.iter_child_nodes(node))
    else:
        nodes = list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def below(names: set[str], prefix: str) -> set[str]:
    return {name for name in names if name == prefix or name.startswith(prefix + ".")}


ALL = [pytest.param(path, id=str(path.relative_to(REPOSITORY))) for package in PACKAGES for path in files(package)]


@pytest.mark.parametrize("path", ALL)
def test_direction(path: Path) -> None:
    package, names = path.relative_to(REPOSITORY).parts[0], imports(path)
    for generic in PACKAGES:
        assert not below(names, generic), f"imports {generic} without inpbench."
    if package == "harness":
        assert not below(names, "inpbench.methods") | below(names, "inpbench.datasets"), "the bench knows plugins by name only"
        if "cli" not in path.parts:
            assert not below(names, "inpbench.harness.cli"), "only the command line imports the command line"
            assert "typer" not in names
    allowed = {"inpbench.harness.api", "inpbench.harness.errors"}
    if package == "datasets":
        foreign = below(names, "inpbench.harness") - allowed - {"inpbench.harness"}
        assert not {n for n in foreign if not any(n.startswith(a + ".") for a in allowed)}
        assert not below(names, "inpbench.methods")
    if package == "methods":
        foreign = below(names, "inpbench.harness") - allowed - {"inpbench.harness"}
        assert not {n for n in foreign if not any(n.startswith(a + ".") for a in allowed)}
        assert not below(names, "inpbench.datasets")
        folder = path.relative_to(REPOSITORY).parts[1] if len(path.relative_to(REPOSITORY).parts) > 2 else None
        for other in (p.name for p in (REPOSITORY / "methods").iterdir() if (p / "__init__.py").is_file()):
            if other != folder:
                assert not below(names, f"inpbench.methods.{other}"), f"imports the method {other}"


def is_light(path: Path) -> bool:
    """Whether a file works on no tensor: the command line may import it."""
    parts = path.relative_to(REPOSITORY).parts
    light = parts[0] in ("datasets", "harness") or parts[-1] in {"__init__.py", "encoder_table.py"}
    return light and "metrics" not in parts and path.stem not in TENSOR_FILES


@pytest.mark.parametrize("path", [each for each in ALL if is_light(each.values[0])])
def test_nothing_heavy_at_import(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imports(path, top_only=True)} & HEAVY
    assert not heavy, f"imports {sorted(heavy)} at the top"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "methods"], ["list", "datasets"], ["list", "settings"], ["run", "--help"]], ids=" ".join
)
def test_command_line_is_instant(arguments: list[str], tmp_path: Path) -> None:
    """No torch, and less than 0.4 s of processor time, or than twelve times an empty Python where the machine is slow or busy.

    The best of four. With compiled bytecode, as pip leaves it: the first of the four writes it, whatever
    PYTHONDONTWRITEBYTECODE says here.
    """
    code = (
        "import sys, resource\n"
        f"sys.argv = ['bench', *{arguments!r}]\n"
        "from inpbench.harness.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = sorted(set(sys.modules) & {'torch', 'timm', 'open_clip', 'sklearn', 'pandas', 'scipy', 'PIL'})\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('\\nHEAVY', heavy, 'SECONDS', usage.ru_utime + usage.ru_stime)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    empty = "import resource\nusage = resource.getrusage(resource.RUSAGE_SELF)\nprint('HEAVY []', usage.ru_utime + usage.ru_stime)"
    seconds: dict[str, list[float]] = {code: [], empty: []}
    for _ in range(4):
        for text, found in seconds.items():
            done = subprocess.run(
                [*PYTHON, "-c", text], capture_output=True, text=True, cwd=os.sep, check=False, timeout=60, env=environment
            )
            assert done.returncode == 0, done.stderr
            last = done.stdout.strip().splitlines()[-1]
            assert "HEAVY []" in last, last
            found.append(float(last.rsplit(" ", 1)[1]))
    assert min(seconds[code]) < max(0.4, 12 * min(seconds[empty])), seconds


def test_house_rules_of_size() -> None:
    long_files, long_functions = [], []
    for package in PACKAGES:
        for path in files(package):
            text = path.read_text(encoding="utf-8")
            if text.count("\n") > 450:
                long_files.append(path.name)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno > 80:
                    long_functions.append(f"{path.name}:{node.name}")
    assert not long_files and not long_functions
