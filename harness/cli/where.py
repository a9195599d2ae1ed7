"""Where the cells of `bench run` run: in this process, in those of torchrun, or on a Ray cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from inpbench.harness import errors
from inpbench.harness.errors import UsageError
from inpbench.harness.precision import keep_float32

if TYPE_CHECKING:
    import torch

    from inpbench.harness.console import Live
    from inpbench.harness.plan import Cell, Request
    from inpbench.harness.process_group import Team
    from inpbench.harness.records import RecordStore
    from inpbench.harness.runner import Options, Tally
    from inpbench.harness.scale.shares import Wish


class Where(NamedTuple):
    """What cells run on: a device of this process, of a team of torchrun's processes, or of a Ray cluster."""

    device: str
    wish: Wish | None
    team: Team | None


@contextlib.contextmanager
def gather_team() -> Iterator[Team | None]:
    """The processes of torchrun, which know when this one has ended; None for one process."""
    from inpbench.harness.process_group import join

    team = join()
    try:
        yield team
    finally:
        if team is not None:
            team.end()


def follow_team(request: Request, options: dict[str, Any], folder: Path, where: Where, **_shown: Any) -> None:
    """Train what rank 0 calls this process to; what goes wrong here alone is said here, too."""
    import functools
    import logging

    from inpbench.harness.console import print_error
    from inpbench.harness.followers import follow
    from inpbench.harness.plan import make_plan
    from inpbench.harness.process_group import LostTeamError
    from inpbench.harness.records import RecordStore

    team = where.team
    assert team is not None
    logging.getLogger("inpbench").addHandler(logging.NullHandler())  # rank 0 says the same

    @functools.cache
    def made() -> Options:
        from inpbench.harness.runner import Options

        return Options(device=find_device(team.device_name(where.device)), team=team, **options)

    store, weights, scoring = RecordStore(folder), options["weights"], options["scoring"]
    try:
        follow(team, lambda: make_plan(request, store, weights, scoring, force=options["force"]), made)
    except Exception as error:
        if not isinstance(error, LostTeamError):
            print_error(f"process {team.rank}: {type(error).__name__}: {error}", "")
        raise typer.Exit(errors.EXIT_NEGATIVE) from None


def check_device(name: str) -> None:
    """Raise `UsageError` for what can be no device, before anything is read or drawn and without torch."""
    kind = name.partition(":")[0]
    if kind == "mps":
        raise UsageError(f"--device {name}: only cpu and cuda are supported.", "Type: --device auto")
    if kind not in ("auto", "cpu", "cuda"):
        raise UsageError(f"Unknown device '{name}'.", "Type: --device auto, cpu, cuda or cuda:N")


def find_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU; a device that is not there is an error, never a silent CPU run."""
    import torch

    check_device(name)
    keep_float32()
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"Unknown device '{name}'.", "Type: --device auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        message = f"--device {name}: torch finds {found} CUDA devices."
        raise errors.PrerequisiteError(message, "Type: --device cpu, or: bench doctor")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def execute(cells: Sequence[Cell], store: RecordStore, live: Live, options: dict[str, Any], where: Where) -> Tally | None:
    """Run what is to do, here or on a Ray cluster; torch is imported only then."""
    if not any(cell.status == "todo" for cell in cells):
        return None
    device, wish, team = where
    if wish is not None:
        from inpbench.harness.scale.driver import run_on_ray

        with live:
            return run_on_ray(cells, store, options, wish, device, live)
    from inpbench.harness.runner import Options, run_cells

    found = find_device(device if team is None else team.device_name(device))
    with live:
        return run_cells(cells, store, Options(device=found, team=team, **options), live.cell)
