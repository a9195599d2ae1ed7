"""The stamp of a record: under which code, packages, machine and flags its numbers came about.

Nothing in a stamp is part of a record's identity: the same cell may be run elsewhere, and `bench check` then compares the hardware
class. Not stored unless asked for: the host name, which names a person's or a company's machine in files that are meant to be
published and says nothing about the numbers that the hardware class does not say. Secrets in the command line and in the
repository's address are replaced. torch is asked only when it is already imported: a stamp costs no start-up.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PACKAGES = (
    "inpbench",
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pillow",
    "safetensors",
    "anomalib",
    "numba",
)
_SECRET_NAME = re.compile(r"token|secret|passw|api[-_]?key|credential|authori[sz]ation", re.IGNORECASE)
_URL_LOGIN = re.compile(r"([a-z][a-z0-9+.-]*://)[^/@\s]+@", re.IGNORECASE)
_REMOVED = "***"


def make_stamp(
    device: Any = "cpu", *, eval_batch: int | None = None, host: bool = False, team: dict[str, Any] | None = None, **extra: Any
) -> dict[str, Any]:
    """The stamp of this process, as JSON-able data.

    device: where the cell ran (`torch.device` or its name). team: what is to be said of the processes that trained it together;
    such hardware is a class of its own (`cuda-h100-x4`). extra: further facts that the caller wants beside them.
    """
    together = f"-x{team['processes']}" if team is not None else ""
    stamp: dict[str, Any] = {
        "git": git_state(),
        "packages": packages(),
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}",
        "hardware": hardware_class(device) + together,
        "device": device_title(device),
        "threads": _threads(),
        "flags": _flags(),
        "command": command_line(sys.argv),
    }
    if eval_batch is not None:
        stamp["eval_batch"] = eval_batch
    if host:
        stamp["host"] = platform.node()
    if team is not None:
        stamp["team"] = team
    return stamp | extra


@functools.cache
def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """`{"commit", "dirty", "origin"}` of the bench's own sources, or None: no git, or not run from a checkout.

    Dirty: a tracked file differs from the commit. None too where the sources only lie inside some other repository (a virtual
    environment in a project folder), because that repository's commit says nothing about them.
    """
    folder = folder or Path(__file__).resolve().parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    origin = _git(folder, "config", "--get", "remote.origin.url")
    return {
        "commit": commit,
        "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no", ":/")),
        "origin": without_login(origin) if origin else None,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is absent. Takes no lock: a run never gets in the way of a commit."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def without_login(address: str) -> str:
    """A repository address without user name, password or token.

    >>> without_login("https://me:token@example.org/repository.git")
    'https://example.org/repository.git'
    """
    return _URL_LOGIN.sub(r"\1", address)


def packages() -> dict[str, str]:
    """Versions of the packages that may change a number; those not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line(arguments: Sequence[str]) -> str:
    """The command as typed, the program's folder and everything that looks secret removed.

    >>> command_line(["/home/me/bin/bench", "run", "--hub-token", "abc", "--data-root=/data"])
    'bench run --hub-token *** --data-root=/data'
    """
    words = [Path(arguments[0]).name] if arguments else []
    hide_next = False
    for word in arguments[1:]:
        name, equals, _ = word.partition("=")
        if hide_next and not word.startswith("-"):
            words.append(_REMOVED)
            hide_next = False
            continue
        secret = bool(_SECRET_NAME.search(name)) and (word.startswith("-") or bool(equals))
        hide_next = secret and not equals
        words.append(f"{name}={_REMOVED}" if secret and equals else _URL_LOGIN.sub(rf"\1{_REMOVED}@", word))
    return " ".join(f"'{word}'" if re.search(r"\s", word) else word for word in words)


def hardware_class(device: Any = "cpu") -> str:
    """A short name of the kind of hardware: `cpu-x86_64-2` (cores this process may use) or `cuda-h100`."""
    kind, _, index = str(device).partition(":")
    torch = sys.modules.get("torch")
    if kind == "cpu" or torch is None:
        return f"{kind}-{platform.machine().lower() or 'unknown'}-{_cores()}" if kind == "cpu" else kind
    if kind == "cuda" and torch.cuda.is_available():
        return f"cuda-{gpu_slug(torch.cuda.get_device_name(int(index) if index else None))}"
    return kind


def hardware_so_far(work: Path, device: Any) -> set[str]:
    """The classes of hardware that have worked on an unfinished cell, this one included. Raises as `_so_far`."""
    return _so_far(work / "hardware", hardware_class(device))


def code_so_far(work: Path) -> set[str]:
    """The versions of the bench and of torch that have worked on an unfinished cell, this one included. Raises as `_so_far`."""
    return _so_far(work / "code", code_in_words())


def code_in_words() -> str:
    """The commit (+: with changes), or the release, and torch: `0123456+, torch 2.6.0`."""
    state, versions = git_state(), packages()
    mine = f"{state['commit'][:7]}{'+' * state['dirty']}" if state else f"inpbench {versions.get('inpbench', 'unknown')}"
    return f"{mine}, torch {versions.get('torch', 'unknown')}"


def _so_far(file: Path, mine: str) -> set[str]:
    """What the processes that worked on a cell said of themselves, kept for the next. `RecordError` where it cannot be written."""
    from inpbench.harness.atomic import write_text
    from inpbench.harness.small_files import read_json

    try:
        known = {str(name) for name in read_json(file)}
    except (OSError, ValueError, TypeError):  # none yet, or damaged: it tells where numbers come from, not what they are
        known = set()
    if mine not in known:
        write_text(file, json.dumps(sorted(known | {mine})))
    return known | {mine}


def gpu_slug(name: str) -> str:
    """The model in a GPU's name, without its maker, memory and form factor.

    >>> [gpu_slug(name) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "NVIDIA GeForce RTX 4090", "Tesla T4")]
    ['h100', 'a100', 'rtx-4090', 't4']
    """
    words = [word for word in re.split(r"[\s_-]+", name.lower()) if word not in {"nvidia", "geforce", "tesla", "quadro"}]
    for count, word in enumerate(words, start=1):
        if any(letter.isdigit() for letter in word):
            tail = [word for word in words[count : count + 1] if word in {"ti", "super", "laptop", "ada"}]
            return "-".join(words[:count] + tail)
    return "-".join(words) or "unknown"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_title(device: Any) -> str:
    """The name of a GPU, or of the processor."""
    kind, _, index = str(device).partition(":")
    torch = sys.modules.get("torch")
    if kind == "cuda" and torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(int(index) if index else None))
    return kind if kind != "cpu" else platform.processor() or platform.machine()


def _threads() -> int | None:
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() else None


def _flags() -> dict[str, Any]:
    """The switches that trade exactness for speed; {} where torch was not used."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": torch.get_float32_matmul_precision() != "highest"
        or (torch.cuda.is_available() and torch.backends.cudnn.allow_tf32),
        "deterministic": bool(torch.are_deterministic_algorithms_enabled()),
        "cudnn_benchmark": bool(torch.backends.cudnn.benchmark),
        "cudnn_deterministic": bool(torch.backends.cudnn.deterministic),
        "cuda": torch.version.cuda,
    }
