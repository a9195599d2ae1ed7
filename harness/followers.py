"""What the processes of a team other than rank 0 do: plan as it does, then train whatever it calls them to, and write nothing.

They test nothing either: while rank 0 does they wait, without a timeout, for the next training or for the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness.errors import PrerequisiteError, UsageError

if TYPE_CHECKING:
    from inpbench.harness.plan import Cell
    from inpbench.harness.process_group import Team
    from inpbench.harness.runner import Options


def refuse_single(cells: Sequence[Cell], team: Team) -> None:
    """Raise `UsageError` where a method that is to be trained cannot be on several processes."""
    for cell in cells:
        request = cell.request
        assert request is not None
        trains = request.checkpoint is None and request.phase != "test" and cell.setting.name not in cell.method.untrained
        if cell.status == "todo" and trains and not cell.method.parallel:
            raise UsageError(
                f"{cell.method.name} trains in one process; torchrun started {team.size}.",
                f"Type it without torchrun: bench run --methods {cell.method.name} ... (docs/scale.md: many cells at once)",
            )


def follow(team: Team, plan: Callable[[], Sequence[Cell]], options: Callable[[], Options]) -> None:
    """Work for rank 0 until it ends. Raises what went wrong here, when rank 0 knows of it."""
    from inpbench.harness.runner import free_memory

    cells: dict[str, Cell] = {}
    try:
        for task in team.tasks(lambda: options().device):
            try:
                if "plan" in task:
                    cells = {cell.id: cell for cell in plan()}
                else:
                    _train(cells, task, team, options())
            except Exception as error:
                team.settle(error)
                if team.lost:
                    raise
            if "plan" not in task:
                free_memory(options())
    except Exception as error:
        if not team.lost:  # where the team was set up, or its store is gone
            team.settle(error)
            team.lost = True
        raise


def _train(cells: dict[str, Cell], task: dict[str, Any], team: Team, options: Options) -> None:
    """Take part in one training."""
    from inpbench.harness.runner import build_method
    from inpbench.harness.snapshots import TeamSnapshots
    from inpbench.harness.training import training_set

    cell = cells.get(task["cell"])
    if cell is None:
        raise PrerequisiteError(
            f"Process 0 trains the cell {task['cell'][:12]}, which does not exist here: other data, weights or code.",
            "Give every machine the same --data-root, the same weights and the same version.",
        )
    snapshots = TeamSnapshots(Path(task["folder"]), options.snapshot_every_s, team)
    method = build_method(cell, options, _silent, task["setting"], snapshots)
    method.fit(training_set(cell, task["categories"], options, _silent))
    team.check_same(method.state())


def _silent(done: int, total: int, text: str = "", **numbers: float) -> None:
    """Rank 0 says how far it is."""
