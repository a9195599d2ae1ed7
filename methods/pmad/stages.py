"""Two trainings in one fit share one snapshot: it says which training it is of, and holds what came before.

    fit: prototypes -> flow -> constants -> tokens -> reconstruction model
A killed fit goes on in the training that it was in; what was finished earlier is loaded, not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from inpbench.harness.api import Snapshots

KIND = "pmad"


class Stage:
    """`harness.api.Snapshots` of one training. earlier: gives the tensors of what was finished before it."""

    def __init__(self, snapshots: Snapshots, name: str, earlier: Callable[[], Mapping[str, Tensor]]) -> None:
        self._snapshots, self._name, self._earlier = snapshots, name, earlier

    def due(self) -> bool:
        """Whether enough time has passed."""
        return self._snapshots.due()

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the training's state with its name and the earlier tensors."""
        content = {"kind": KIND, "stage": self._name, "training": dict(state), "earlier": dict(self._earlier())}
        self._snapshots.save(content)

    def load(self) -> dict[str, Any] | None:
        """The training's state, if the last snapshot is of this one."""
        content = self._snapshots.load()
        if content is None or content.get("kind") != KIND or content["stage"] != self._name:
            return None
        training: dict[str, Any] = content["training"]
        return training


def interrupted(snapshots: Snapshots) -> tuple[str, dict[str, Tensor]] | None:
    """The stage that a killed fit was in, and the tensors of what it had finished before; None for a new fit."""
    content = snapshots.load()
    if content is None or content.get("kind") != KIND:
        return None
    return content["stage"], content["earlier"]
