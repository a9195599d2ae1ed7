"""What a node is told: the contract of the whole run, and one cell of it.

A job carries the request that its cell came from, narrowed to that cell, and no data: the node makes its own plan of it from its
own view of data, weights and code, and the two identities must agree (harness/scale/worker.py). Paths travel whole.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inpbench.harness.atomic import write_text
from inpbench.harness.errors import PrerequisiteError
from inpbench.harness.stamp import command_line

if TYPE_CHECKING:
    from inpbench.harness.plan import Cell, Request
    from inpbench.harness.scale.shares import Share

# Beside the bench's own variables: what may change a number, or where a hub's files lie.
_FORWARDED = ("HF_HUB_OFFLINE", "HF_HOME", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")
_FOLDERS = ("INPBENCH_DATA", "INPBENCH_WEIGHTS", "INPBENCH_CACHE")


class NodeError(PrerequisiteError):
    """A machine of the cluster does not see what the run needs, or sees something else; the message names it."""


class Message(NamedTuple):
    """What a worker says of its cell: how far it is, or (a total of 0) a warning."""

    cell: int
    done: int
    total: int
    text: str
    numbers: Mapping[str, float] = {}


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What every node must share with the machine that runs the command."""

    results: Path
    token: str  # the name of a file in the results folder, and what is in it
    code: str  # `sources_digest()`
    environment: dict[str, str]
    folder: Path  # where the command was typed: relative paths among parameters mean this
    command: str  # as typed, for the stamp


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell, ready to travel."""

    number: int  # of the cell in the plan, for its messages
    contract: Contract
    request: Request
    identity: dict[str, Any]
    id: str
    label: str
    options: dict[str, Any]  # of `runner.Options`, but for the device
    share: Share
    threads: int
    attempt: int = 1
    notes: tuple[str, ...] = ()
    stamp: dict[str, Any] = field(default_factory=dict)


@functools.cache
def sources_digest() -> str:
    """A hash of every source file of the bench: numbers of one run come from one code."""
    digest = hashlib.sha256()
    for name in ("harness", "methods", "datasets"):
        file = importlib.import_module(f"inpbench.{name}").__file__
        assert file is not None
        folder = Path(file).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{name}/{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def contract_of(results: Path) -> Iterator[Contract]:
    """The contract of a run of this process; its token lies in the results folder for the time of the block.

    Raises `RecordError` where the folder cannot be written.
    """
    folder, token = results.expanduser().absolute(), f".ray-{secrets.token_hex(8)}"
    write_text(folder / token, token)
    try:
        yield Contract(
            results=folder,
            token=token,
            code=sources_digest(),
            environment=_environment(),
            folder=Path.cwd(),
            command=command_line(sys.argv),
        )
    finally:
        (folder / token).unlink(missing_ok=True)


def _environment() -> dict[str, str]:
    """The variables that nodes take over from this process, folders among them as whole paths."""
    chosen = {key: value for key, value in os.environ.items() if key.startswith("INPBENCH_") or key in _FORWARDED}
    return {key: str(_whole(Path(value))) if key in _FOLDERS and value else value for key, value in chosen.items()}


def _whole(path: Path) -> Path:
    return path.expanduser().absolute()


def narrowed(cell: Cell) -> Request:
    """The request of a cell alone, with whole paths: what a node plans must not depend on where it stands."""
    request = cell.request
    assert request is not None
    datasets = request.datasets if cell.setting.several_datasets else (cell.dataset.name,)
    named = {*datasets, *([request.source] if request.source else [])}
    return replace(
        request,
        methods=(cell.method.name,),
        datasets=datasets,
        seeds=(cell.seed,),
        shots=(cell.shots,) if cell.shots else request.shots,
        changes={owner: value for owner, value in request.changes.items() if owner in {cell.method.name, *named}},
        data_root=_whole(request.data_root) if request.data_root else None,
        data_roots={name: _whole(path) for name, path in request.data_roots.items() if name in named},
        source_root=_whole(request.source_root) if request.source_root else None,
        checkpoint=_whole(request.checkpoint) if request.checkpoint else None,
        prompts=_whole(request.prompts) if request.prompts else None,
    )


def whole_weights(weights: Any) -> Any:
    """A weight store whose file or folder, where one was named, is a whole path."""
    from inpbench.harness.weights import RANDOM, WeightStore

    choice = weights.choice
    if choice and choice != RANDOM:
        choice = str(_whole(Path(choice)))
    return WeightStore(choice, download=weights.download)
