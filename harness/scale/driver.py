"""`bench run --ray`: hand out the cells of a plan, show how far they are, take their records, begin lost ones anew.

The driver alone gives cells out, so none is worked on twice by one run even where a file system knows no locks. A record lies in
the results folder when its worker says so; the driver looks, and writes it itself where its view of a network folder lags behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from inpbench.harness.claims import ClaimedError
from inpbench.harness.console import Live, describe_seconds
from inpbench.harness.errors import BenchError
from inpbench.harness.scale.cluster import Cluster, LostError
from inpbench.harness.scale.handout import Handout
from inpbench.harness.scale.job import Contract, Job, Message, contract_of, narrowed, whole_weights
from inpbench.harness.scale.shares import Share, Wish, choose_share, describe

if TYPE_CHECKING:
    from inpbench.harness.api import Progress
    from inpbench.harness.plan import Cell
    from inpbench.harness.records import Record, RecordStore
    from inpbench.harness.runner import Tally

log = logging.getLogger("inpbench")

LOOK_EVERY_S = 0.5


class WorkerLostError(BenchError):
    """A cell was begun as often as is allowed, and each time its worker was lost."""


class Workers(Protocol):
    """What the driver needs of `cluster.Cluster`."""

    def submit(self, job: Job, share: Share) -> Any:
        """Send one cell; gives its handle."""
        ...

    def wait(self, handles: Sequence[Any], timeout_s: float) -> list[Any]:
        """The handles that have ended."""
        ...

    def result(self, handle: Any) -> Record:
        """The record of an ended cell, or `LostError`."""
        ...

    def messages(self) -> list[Message]:
        """What workers have said."""
        ...

    def cancel(self, handles: Sequence[Any]) -> None:
        """Stop cells."""
        ...


def run_on_ray(cells: Sequence[Cell], store: RecordStore, options: dict[str, Any], wish: Wish, device: str, live: Live) -> Tally:
    """Run every `todo` cell on a Ray cluster, as `runner.run_cells` does in one process. options: of `runner.Options`.

    Raises `PrerequisiteError` (ray, a cluster, or a share is missing; a node is not fit) before any work, and what stops one
    process too: another bench at work on a cell, a results folder that cannot be written. `KeyboardInterrupt` passes through; the
    cells that were running are stopped and go on from their snapshots next time.
    """
    wish.check(device)
    cluster = Cluster(wish.address)
    try:
        nodes = cluster.nodes()
        share = choose_share(wish, nodes, device, grows=not cluster.started_here)
        found = ", no running cluster was found" if wish.address == "auto" else ""
        where = f"started on this machine{found}" if cluster.started_here else "connected"
        live.end(None, f"Ray {cluster.version()} {where}: {describe(share, nodes)}")
        with _term_is_ctrl_c(), contract_of(store.folder) as contract:
            cluster.examine(contract, [node for node in nodes if share.fits(node)])
            stamp = {"ray": {"version": cluster.version(), "cpus": share.cpus, "gpus": share.gpus}}
            return Driver(cells, store, options, share, contract, cluster, live, wish.retries, stamp).run()
    finally:
        cluster.close()


@contextlib.contextmanager
def _term_is_ctrl_c() -> Iterator[None]:
    """Stop in order when a batch system says TERM: Ray's own handler, which it sets when it connects, aborts the process."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Driver:
    """See the module docstring. Talks to a cluster through `Workers` alone."""

    def __init__(
        self,
        cells: Sequence[Cell],
        store: RecordStore,
        options: dict[str, Any],
        share: Share,
        contract: Contract,
        workers: Workers,
        live: Live,
        retries: int,
        stamp: dict[str, Any],
    ) -> None:
        self._cells = [cell for cell in cells if cell.status == "todo"]
        self._store, self._share, self._contract, self._workers, self._live = store, share, contract, workers, live
        self._options = options | {"weights": whole_weights(options["weights"])}
        self._stamp = stamp
        self._handout = Handout([_training_of(cell) for cell in self._cells], retries, self._is_kept)
        self._handout.trained |= self._kept_before()
        self._out: dict[Any, int] = {}
        self._lines: dict[int, Progress] = {}
        self._begun: dict[int, float] = {}
        self._claimed: list[Cell] = []

    def run(self) -> Tally:
        """Hand out cells until none is left; whatever ends the run stops those that are out."""
        from inpbench.harness.runner import Tally

        tally = Tally(claimed=self._claimed)
        overall = self._live.task("cells")
        try:
            while self._handout.open:
                for cell in self._handout.take():
                    self._out[self._workers.submit(self._job(cell), self._share)] = cell
                ended = self._workers.wait(list(self._out), LOOK_EVERY_S)
                self._show()
                for handle in ended:
                    record = self._settle(handle)
                    if record is not None:
                        (tally.failed if record.status == "failed" else tally.done).append(record)
                out, waiting = self._handout.left
                overall(len(self._cells) - out - waiting, len(self._cells), f"given out {out}, waiting {waiting}, done")
        finally:
            if self._out:
                self._workers.cancel(list(self._out))
        return tally

    def _job(self, number: int) -> Job:
        cell, losses = self._cells[number], self._handout.losses(number)
        attempt = len(losses) + 1
        notes = [f"worker lost {_times(len(losses))} under Ray ({losses[-1]}); taken up again"] if losses else []
        if 0 < self._share.gpus < 1:
            notes.append(f"had {self._share.gpus:g} of a GPU: its times are not those of a whole one")
        renewed = set(self._handout.trained) if self._options["force"] else set()
        return Job(
            number=number,
            contract=self._contract,
            request=narrowed(cell),
            identity=cell.identity,
            id=cell.id,
            label=cell.label,
            options=self._options | {"renewed": renewed},
            share=self._share,
            threads=threads_of(self._share),
            attempt=attempt,
            notes=tuple(notes),
            stamp=self._stamp | {"command": self._contract.command},
        )

    def _show(self) -> None:
        """Messages of the workers, each on the line of its cell."""
        for message in self._workers.messages():
            cell = self._cells[message.cell]
            if message.total == 0:
                log.warning("%s: %s", _title(cell), message.text)
                continue
            if message.cell not in self._out.values():
                continue  # said before it ended
            if message.cell not in self._lines:
                self._lines[message.cell], self._begun[message.cell] = self._live.cell(cell), time.monotonic()
            self._lines[message.cell](message.done, message.total, message.text, **message.numbers)

    def _settle(self, handle: Any) -> Record | None:
        """The record of a cell that came to an end; None where it will be begun anew, or another bench is at work on it."""
        number = self._out.pop(handle)
        cell = self._cells[number]
        try:
            record = self._workers.result(handle)
            self._see(record)
            self._handout.finished(number, well=record.status != "failed")
        except ClaimedError:
            self._handout.finished(number, well=False)
            self._claimed.append(cell)
            self._live.end(self._lines.pop(number, None), f"another bench is at work on it: {_title(cell)}")
            return None
        except LostError as error:
            again = self._handout.lost(number, str(error))
            losses = self._handout.losses(number)
            log.warning("%s: worker lost: %s; %s", _title(cell), error, "begun anew" if again else "given up")
            if again:
                return None
            record = self._given_up(cell, losses)
        line, begun = self._lines.pop(number, None), self._begun.pop(number, None)
        took = f" ({describe_seconds(time.monotonic() - begun)})" if begun is not None else ""
        self._live.end(line, f"{record.status}: {_title(cell)}{took}")
        return record

    def _see(self, record: Record) -> None:
        """A network folder may show this machine an older record for a while: writing it here shows the new one."""
        found = self._store.find(record.id)
        if found is not None and found.as_document() == record.as_document():
            return
        if record.status != "failed" or found is None or found.status != "done":
            self._store.write(record)

    def _given_up(self, cell: Cell, losses: Sequence[str]) -> Record:
        from inpbench.harness.runner import record_failure

        error = WorkerLostError(
            f"The worker of this cell was lost {_times(len(losses))} under Ray; the last time {losses[-1]}.",
            "To see why, run the same command without --ray; to try more often: --ray-retries N",
        )
        return record_failure(cell, self._store, error)

    def _is_kept(self, number: int) -> bool:
        from inpbench.harness.models import shared_folder

        if self._options["force"]:  # trained again by the first cell of the training
            return False
        return (shared_folder(self._store, self._cells[number].identity) / "all.safetensors").is_file()

    def _kept_before(self) -> set[str]:
        """Trainings whose model an earlier run has kept, under whatever name."""
        from inpbench.harness.models import trained_file

        if self._options["force"]:
            return set()
        cells = {training: cell for cell in self._cells if (training := _training_of(cell)) is not None}
        return {training for training, cell in cells.items() if trained_file(self._store, cell.identity) is not None}


def _training_of(cell: Cell) -> str | None:
    """The training that a cell shares with others and may have to do."""
    from inpbench.harness.sources import is_shared, training_id

    testing = cell.request is not None and cell.request.phase == "test"
    return training_id(cell.identity) if is_shared(cell.identity) and not testing else None


def threads_of(share: Share) -> int:
    """Threads of a cell: `$OMP_NUM_THREADS` of the command, else its processors."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else share.cpus


def _title(cell: Cell) -> str:
    shots = f" k={cell.shots}" if cell.shots else ""
    return f"{cell.label} {cell.dataset.name}{shots} seed {cell.seed}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
