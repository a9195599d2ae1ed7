"""The driver of `make gpu-check`: what fails, hangs or is missing costs nothing else, and is said."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_check.py"


def load() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "gpu_check", None)  # put back afterwards
    module = load()
    monkeypatch.setattr(module, "device_trouble", lambda _: None)
    monkeypatch.setattr(module, "machine", lambda _: ["a machine"])
    return module


def play(check: ModuleType, monkeypatch: pytest.MonkeyPatch, out: Path, codes: dict[str, str], *options: str) -> int:
    """The exit code of a check whose sections run these programs."""
    sections = [check.Section(name, ("-c", code), 60.0) for name, code in codes.items()]
    monkeypatch.setattr(check, "sections", lambda *_: sections)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(out), *options])
    return int(check.main())


def test_a_section_that_fails_costs_no_other(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"first": "print('table one')", "broken": "import sys; print('why'); sys.exit(3)", "last": "print('table two')"}
    assert play(check, monkeypatch, tmp_path, codes) == 1
    said = capsys.readouterr().out
    assert "table one" in said and "table two" in said and "why" in said
    assert "| broken | failed with exit code 3 |" in said
    assert (tmp_path / "gpu_check.log").read_text(encoding="utf-8") == said
    assert play(check, monkeypatch, tmp_path, codes, "--only", "first,last") == 0


def test_a_section_that_hangs_is_stopped_with_what_it_started(check: ModuleType, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import pathlib, time; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(600)"
    assert check.run(check.Section("hangs", ("-c", code), 60.0), 2.0, tmp_path / "log") == "stopped after 2 s"
    time.sleep(5)
    assert not mark.exists()
    assert 'File "<string>", line 1 in <module>' in (tmp_path / "log").read_text(encoding="utf-8")  # where it was


def test_the_log_has_all_that_a_failed_section_said(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print(*range(1000, 1100), sep='\\n'); sys.exit(1)"
    assert play(check, monkeypatch, tmp_path, {"long": code}) == 1
    said, log = capsys.readouterr().out, (tmp_path / "gpu_check.log").read_text(encoding="utf-8")
    assert log.startswith("a machine\n") and all(str(number) in log for number in range(1000, 1100))
    assert "1099" in said and "1040" in said and "1039" not in said and "40 lines more in" in said


def test_the_machine_is_described() -> None:
    lines = load().machine("cpu")
    assert any("torch 2" in line and "timm" in line for line in lines) and any(
        "nvidia-smi" in line or "driver" in line for line in lines
    )


def test_what_the_budget_does_not_cover_is_not_begun(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(check, monkeypatch, tmp_path, {"first": "print('never')"}, "--budget", "1") == 1
    assert "| first | not begun: the budget is spent |" in capsys.readouterr().out


def test_missing_packages_are_named(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "WANTED", {"no_such_package": ("tests",)})
    codes = {"training": "print('table')", "tests": "print('never')"}
    assert play(check, monkeypatch, tmp_path, codes) == 1
    said = capsys.readouterr().out
    assert "table" in said and "not begun: no_such_package: ModuleNotFoundError" in said
    monkeypatch.setattr(check, "NEEDED", {"no_such_package": "everything"})
    assert play(check, monkeypatch, tmp_path, codes) == 2
    assert "no_such_package: ModuleNotFoundError" in capsys.readouterr().err


def test_every_section_is_a_script_that_is_there(check: ModuleType, tmp_path: Path) -> None:
    sections = check.sections("cuda", tmp_path, ["--steps", "1"])
    assert len({section.name for section in sections}) == len(sections)
    for section in sections:
        if section.name == "tests":
            continue
        assert Path(section.command[1]).is_file() and section.command[-2:] == ("--steps", "1")
