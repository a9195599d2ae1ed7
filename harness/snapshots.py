"""What a killed cell goes on from: one file a model, replaced atomically, loaded with `weights_only=True`.

A snapshot holds whatever the training loop gave, and the seconds of training so far, so that the recorded cost of an
interrupted run is the sum of its parts.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inpbench.harness.atomic import write_bytes
from inpbench.harness.tensor_files import load

if TYPE_CHECKING:
    from inpbench.harness.process_group import Team

log = logging.getLogger("inpbench")


class Fitting(NamedTuple):
    """What the training of a model took, whenever and wherever that was."""

    seconds: float
    team: dict[str, Any] | None = None  # `Team.facts`, where several processes (at last) trained it


class FolderSnapshots:
    """`harness.api.Snapshots` in a folder: `snapshot.pt` while training, `fitted.pt` once trained."""

    def __init__(self, folder: Path, every_s: float = 30.0) -> None:
        self.folder = folder
        self._every_s = every_s
        self._last = time.monotonic()
        self._started = time.monotonic()
        self.earlier_s = 0.0  # seconds of training before this process
        self.facts: dict[str, Any] | None = None  # of the processes that trained, where there were several
        self.resumed = False

    def due(self) -> bool:
        """Whether `every_s` seconds have passed since the last save."""
        return time.monotonic() - self._last >= self._every_s

    def elapsed_s(self) -> float:
        """Seconds of training, those of earlier processes included."""
        return self.earlier_s + time.monotonic() - self._started

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a snapshot in mid-training."""
        self._write("snapshot.pt", state)
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The last snapshot, or None. A file that does not load (power cut on a file system without order) is set aside."""
        return self._read("snapshot.pt")

    def save_fitted(self, state: Mapping[str, Any]) -> None:
        """Write what was learned; from now on the cell only tests."""
        self._write("fitted.pt", state)

    def load_fitted(self) -> dict[str, Any] | None:
        """What was learned, or None when training has not ended."""
        return self._read("fitted.pt")

    def clear(self) -> None:
        """Forget everything: the results are in the record's store now."""
        for name in ("snapshot.pt", "fitted.pt"):
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, name: str, state: Mapping[str, Any]) -> None:
        import torch

        buffer = io.BytesIO()
        torch.save({"elapsed_s": self.elapsed_s(), "team": self.facts, "state": dict(state)}, buffer)
        write_bytes(self.folder / name, buffer.getvalue())

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            content = load(path)
            earlier_s, facts, state = float(content["elapsed_s"]), content.get("team"), content["state"]
            if not isinstance(state, dict) or not 0 <= earlier_s < float("inf"):
                raise ValueError("no snapshot")
        except Exception as error:  # whatever is wrong with the file, training can start anew: nothing is lost but time
            log.warning("%s does not load (%s); this model starts from the beginning.", path.name, type(error).__name__)
            with contextlib.suppress(OSError):
                path.replace(path.with_suffix(".broken"))
            return None
        self.earlier_s, self.facts, self.resumed = earlier_s, facts, True
        self._started = self._last = time.monotonic()
        return state


class TeamSnapshots(FolderSnapshots):
    """Those of several processes: rank 0 writes and reads, the others are given what it has read, however many they are."""

    def __init__(self, folder: Path, every_s: float, team: Team) -> None:
        super().__init__(folder, every_s)
        self._team = team

    def due(self) -> bool:
        """As of one process; never for the others."""
        return self._team.rank == 0 and super().due()

    def _write(self, name: str, state: Mapping[str, Any]) -> None:
        self.facts = self._team.facts()  # the file says that the team made it
        super()._write(name, state)

    def load(self) -> dict[str, Any] | None:
        """The last snapshot of rank 0, or None; every process calls it, in a training."""
        return self._team.first(super().load() if self._team.rank == 0 else None)
