"""All that needs a GPU, in one command and one time: both engines side by side, the promised memory, the tests marked `gpu`.

    python -P benchmarks/gpu_check.py [--budget 450] [--only training_inp_former,tests] [--out results/speed] [-- SCRIPTS' OPTIONS]

Each section is a process of its own, the most important first: one that fails, hangs or breaks its CUDA context costs no other its
table. A section gets what is left of the budget, at most its own limit. The exit code is 0 only if every section ran and passed.
The log beside the tables holds everything that was said, versions and driver first, and where a section was when it was stopped.
Rehearsal without a GPU: `--device cpu -- --preset demo --size 56 --batch 2 --steps 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NEEDED = {  # module -> what it is for
    "torch": "everything",
    "numpy": "everything",
    "PIL": "the synthetic photographs",
    "timm": "the ViT encoder's blocks",
    "safetensors": "the files of weights",
    "inpbench.methods.reconstruction": "the bench itself: PYTHONPATH=build/links after `make links`, or pip install --editable .",
}
WANTED = {
    "sklearn.metrics": ("inference", "tests"),
    "scipy.ndimage": ("tests",),
    "pytest": ("tests",),
}  # module -> sections without it
PACKAGES = ("torch", "triton", "timm", "torchvision", "numpy", "safetensors", "pillow", "scikit-learn", "scipy", "pytest")
GIT = ["git", "log", "-1", "--format=commit %H of %cI"]
TAIL = 60  # lines of a failed section that are shown; the log has all
SAFE = ("-P",) if sys.version_info >= (3, 11) else ()  # this folder's names hide no package
LEAST = 15.0  # seconds: with less left a section is not begun


@dataclass(frozen=True)
class Section:
    """One process."""

    name: str
    command: tuple[str, ...]  # after the interpreter
    limit: float  # seconds


def sections(device: str, out: Path, options: Sequence[str]) -> list[Section]:
    """All of them, the most important first."""

    def script(name: str, section: str, limit: float, *extra: str) -> Section:
        file = str(Path(__file__).with_name(f"{name}.py"))
        table = str(out / f"{section}.md")
        return Section(section, (*SAFE, file, "--device", device, "--out", table, *extra, *options), limit)

    tests = (
        "import sys; sys.path[:] = filter(None, sys.path); import pytest; "
        "sys.exit(pytest.main(['-v', '--tb=short', '-m', 'gpu', 'tests/test_gpu.py', 'tests/test_metrics.py']))"
    )
    return [
        script("training", "training_inp_former", 200, "--methods", "inp_former"),
        script("training", "training_dinomaly", 180, "--methods", "dinomaly"),
        script("inference", "inference_inp_former", 120, "--methods", "inp_former"),
        Section("tests", (*SAFE, "-c", tests), 240),
        script("training", "training_host_cache", 90, "--methods", "inp_former", "--cache", "host", "--engines", "fast"),
        script("inference", "inference_dinomaly", 120, "--methods", "dinomaly"),
        script("loading", "loading", 60),
    ]


def machine(device: str) -> list[str]:
    """What somebody elsewhere needs to know of this machine: one line each."""
    import torch

    lines = [f"python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"]
    found = []
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    lines.append(", ".join(found))
    lines.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, built for {torch.cuda.get_arch_list()}")
    if device.startswith("cuda"):
        about = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        lines.append(f"{about.name}, {about.major}.{about.minor}, {about.multi_processor_count} processors, ")
        lines[-1] += f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    for command in (["nvidia-smi", "--query-gpu=driver_version,memory.used,clocks.sm,power.draw,power.limit", "--format=csv"], GIT):
        try:
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=20, check=False)
            lines += (done.stdout or done.stderr).splitlines()
        except (OSError, subprocess.TimeoutExpired) as error:
            lines.append(f"{command[0]}: {error}")
    return lines


def trouble(name: str) -> str | None:
    """Why a module cannot be imported, None if it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken binary package raises whatever it likes
        return f"{name}: {type(error).__name__}: {error}"
    return None


def device_trouble(device: str) -> str | None:
    """Why the device cannot be used, by a product computed on it."""
    import torch

    try:
        side = torch.ones(64, 64, device=device)
        if float((side @ side).sum()) != 64.0**3:
            return f"a matrix product on {device} is wrong"
    except Exception as error:
        return f"{device} cannot be used: {type(error).__name__}: {error}"
    return None


def run(section: Section, seconds: float, log: Path) -> str:
    """Run it for at most so many seconds, its output in `log`; returns "ok" or what went wrong."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", "-X", "faulthandler", *section.command],
            cwd=REPOSITORY,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            stop(process)
            return f"stopped after {seconds:.0f} s"
        except BaseException:
            stop(process)
            raise
    return "ok" if code == 0 else f"failed with exit code {code}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a section and the compiler's workers that it started: they are one session. It says first where each thread is."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.send_signal(signal.SIGABRT)  # Python's fault handler answers
        process.wait(5.0)
    for kind, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, kind)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def main() -> int:
    """Run all sections; prints each table as it comes and a summary at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds for everything together")
    parser.add_argument("--only", help="names of sections, separated by commas")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "speed", help="folder of the tables and the log")
    parser.add_argument("options", nargs="*", help="after `--`: passed on to the speed scripts")
    args = parser.parse_args()
    start = time.monotonic()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # `stop` wants no core files
    absent = [f"{found} ({purpose})" for name, purpose in NEEDED.items() if (found := trouble(name))]
    absent = absent or [found for found in [device_trouble(args.device)] if found]
    if absent:
        print("gpu-check cannot run here:", *absent, sep="\n  ", file=sys.stderr)
        return 2
    lacking = {name: found for name in WANTED if (found := trouble(name))}
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    todo = sections(args.device, out, args.options)
    if args.only:
        unknown = set(args.only.split(",")) - {section.name for section in todo}
        if unknown:
            parser.error(f"no section {sorted(unknown)}; there are {[section.name for section in todo]}")
        todo = [section for section in todo if section.name in args.only.split(",")]
    results: list[tuple[str, str, float]] = []
    said = out / "gpu_check.log"  # all that is printed, and all of the sections that failed
    said.unlink(missing_ok=True)

    def say(*lines: str, show: int | None = None) -> None:
        """Print the lines (of many the first two and the last `show`), and write all of them to the log."""
        few = show is None or len(lines) <= show + 2
        print(
            *(lines if few else (*lines[:2], f"[{len(lines) - show - 2} lines more in {said}]", *lines[-show:])),
            sep="\n",
            flush=True,
        )
        with said.open("a", encoding="utf-8") as file:
            print(*lines, sep="\n", file=file)

    say(*machine(args.device))
    for section in todo:
        left = args.budget - (time.monotonic() - start)
        begin = time.monotonic()
        stopped = [found for name, found in lacking.items() if section.name.startswith(WANTED[name])]
        if left < LEAST:
            stopped.append("the budget is spent")
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            log.touch()
            result = f"not begun: {'; '.join(stopped)}" if stopped else run(section, min(left, section.limit), log)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        spent = time.monotonic() - begin
        results.append((section.name, result, spent))
        say("", f"===== {section.name}: {result} ({spent:.0f} s) =====", *lines, show=None if result == "ok" else TAIL)
    say("", "| section | result | seconds |", "| --- | --- | --- |", *(f"| {n} | {r} | {s:.0f} |" for n, r, s in results))
    say("", f"Tables: {out}. {time.monotonic() - start:.0f} s of {args.budget:.0f} s.")
    return 0 if all(result == "ok" for _, result, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
