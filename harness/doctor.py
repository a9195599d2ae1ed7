"""Is this machine ready, and for what: environment, folders, data, weights, and what would shadow whom.

Every row is (ok, what, detail, what to type). `ok` is None for a fact that is neither good nor bad.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from inpbench.harness.errors import BenchError
from inpbench.harness.registry import DATASETS, METHODS
from inpbench.harness.roots import cache_folder, places


class Finding(NamedTuple):
    """One line of the doctor's report."""

    ok: bool | None
    what: str
    detail: str
    advice: str = ""


PACKAGES = ("torch", "timm", "open_clip_torch", "numpy", "scipy", "scikit-learn", "pandas", "pillow", "rich", "typer")


def examine(results: Path) -> Iterator[Finding]:
    """All findings, cheap ones first."""
    yield Finding(sys.version_info >= (3, 10), "python", sys.version.split()[0], "inpbench needs Python 3.10 or newer")
    yield from _packages()
    yield from _device()
    yield _loops()
    yield from _folders(results)
    yield from _shadowing()
    yield from _weights()
    yield from _data()


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(True, name, version(name))
        except PackageNotFoundError:
            yield Finding(False, name, "not installed", f"Type: pip install {name}")


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 1e9
            yield Finding(True, f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GB")
    else:
        yield Finding(None, "cuda", "no CUDA device: everything runs on the CPU")
    yield Finding(None, "threads", str(torch.get_num_threads()))


def _loops() -> Finding:
    from inpbench.harness.metrics import loops

    if loops.COMPILED:
        return Finding(None, "pixel metrics", "counted by loops that numba compiles")
    return Finding(None, "pixel metrics", "counted by NumPy and torch; twice as fast with numba: pip install 'inpbench[fast]'")


def _folders(results: Path) -> Iterator[Finding]:
    for what, folder in (("results", results), ("cache", cache_folder())):
        parent = folder
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        writable = os.access(parent, os.W_OK)
        yield Finding(writable, what, str(folder), f"{parent} is not writable; choose another folder")


def _shadowing() -> Iterator[Finding]:
    """`datasets` is also Hugging Face's: with a repository root on sys.path it would resolve to our folder."""
    ours = Path(__file__).resolve().parents[1]
    for name in ("datasets", "methods", "results"):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue
        if any(Path(place).resolve().parent == ours for place in spec.submodule_search_locations):
            advice = "Type: python -P -m ..., or leave the repository root"
            yield Finding(False, f"import {name}", "resolves into this repository", advice)
            return
    yield Finding(True, "imports", "no foreign package is shadowed")


def _weights() -> Iterator[Finding]:
    from inpbench.harness.weights import WeightStore

    store = WeightStore(None, download=False)
    yield Finding(None, "INPBENCH_WEIGHTS", os.environ.get("INPBENCH_WEIGHTS") or "not set")
    for name in METHODS.names():
        try:
            info = METHODS.get(name)
            for spec in info.weights(info.params()):
                yield Finding(True, f"{name}: weights {spec.name}", store.identity(spec))
        except BenchError as error:
            yield Finding(False, f"{name}: weights", error.message.splitlines()[0], error.hint)


def _data() -> Iterator[Finding]:
    yield Finding(None, "INPBENCH_DATA", os.environ.get("INPBENCH_DATA") or "not set")
    for name in DATASETS.names():
        info = DATASETS.get(name)
        if info.generate is not None:
            yield Finding(True, f"{name}: data", "drawn by the bench")
            continue
        found = [place for place in places(info, None) if place.is_dir()]
        detail = str(found[0]) if found else "not found"
        yield Finding(True if found else None, f"{name}: data", detail, f"Type: bench data show {name}")
