"""One cell on a node of a cluster: see that the node is fit for it, plan it anew, run it as one process would.

The plan of the node must give the very identity that the driver's gave: then it sees the same images (their manifest), the same
weights (their hashes), the same parameters and versions. The rest is `runner.run_cell`: same seed, same snapshots, same folder.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inpbench.harness.claims import ClaimedError
from inpbench.harness.errors import BenchError
from inpbench.harness.precision import keep_float32
from inpbench.harness.scale.job import Contract, Job, Message, NodeError, sources_digest

if TYPE_CHECKING:
    import torch

    from inpbench.harness.plan import Cell
    from inpbench.harness.records import Record, RecordStore

Report = Callable[[Message], None]

EVERY_S = 0.5  # between two messages about the same stage
PATIENCE_S = 60.0  # that a cell taken over waits for its lost worker to let go of it
_SAME = "Every machine must see the same folders under the same paths (docs/scale.md)."


def examine(contract: Contract, node: str) -> None:
    """Raise `NodeError` where this machine does not share the results folder, or has other sources of the bench."""
    token = contract.results / contract.token
    try:
        found = token.read_text(encoding="utf-8")
    except OSError as error:
        raise NodeError(
            f"Node {node} does not see the results folder {contract.results} of this run ({error.strerror or error}).",
            f"Choose a folder that all machines share, with --results DIR. {_SAME}",
        ) from error
    if found != contract.token:
        raise NodeError(f"Node {node} sees another folder as {contract.results}.", _SAME)
    if sources_digest() != contract.code:
        raise NodeError(
            f"Node {node} has other sources of inpbench than this machine ({sources_digest()[:12]} and {contract.code[:12]}).",
            "Install the same version on every machine.",
        )


def work(job: Job, report: Report, node: str) -> Record:
    """Run a cell and give its record, which is written by then. node: this machine's name, for people.

    Raises `NodeError` where the machine is not fit, `ClaimedError` where another bench is at work on the cell, and what cannot be
    written into a record.
    """
    os.environ.update({key: value for key, value in job.contract.environment.items() if key != "INPBENCH_CACHE"})
    if "INPBENCH_CACHE" in job.contract.environment:  # a node may have a disk of its own for it
        os.environ.setdefault("INPBENCH_CACHE", job.contract.environment["INPBENCH_CACHE"])
    if job.contract.folder.is_dir():
        os.chdir(job.contract.folder)
    examine(job.contract, node)
    report(Message(job.number, 0, 1, f"starting on {node}"))
    from inpbench.harness.records import RecordStore

    store = RecordStore(job.contract.results)
    if not job.options["force"] and (ready := _ready(store, job)) is not None:
        return ready  # the lost worker, or another bench, had just finished it
    cell = _planned(job, store, node)
    handler = _Forward(job.number, report)
    logging.getLogger("inpbench").addHandler(handler)
    try:
        return _run(cell, job, store, report, node)
    finally:
        logging.getLogger("inpbench").removeHandler(handler)


def _ready(store: RecordStore, job: Job) -> Record | None:
    found = store.find(job.id)
    if found is None or not (found.status == "done" or (found.status == "trained" and job.request.phase == "train")):
        return None
    return found


def _planned(job: Job, store: RecordStore, node: str) -> Cell:
    """The cell as this node plans it. Raises `NodeError` where it cannot, or where it would be another one."""
    from inpbench.harness.plan import make_plan

    try:
        cells = make_plan(job.request, store, job.options["weights"], job.options["scoring"], force=True)
    except BenchError as error:
        raise NodeError(f"Node {node}: {error.message}", f"{error.hint}\n{_SAME}") from error
    same = next((cell for cell in cells if cell.id == job.id), None)
    if same is not None:
        return same
    other = next(cell for cell in cells if cell.dataset.name == job.identity["dataset"])
    if other.refusal is not None:
        raise NodeError(f"Node {node}: {other.refusal.message}", f"{other.refusal.hint}\n{_SAME}") from other.refusal
    different = sorted(key for key in {*job.identity, *other.identity} if job.identity.get(key) != other.identity.get(key))
    meaning = {"manifest": "the files of the data set", "source": "the files of the source", "weights": "the weight files"}
    what = ", ".join(meaning.get(key, key) for key in different)
    raise NodeError(f"Node {node} would run another cell than {job.id[:12]} ({job.label}): {what} differ there.", _SAME)


def _device(job: Job, node: str) -> torch.device:
    import torch

    torch.set_num_threads(job.threads)
    if not job.share.gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        raise NodeError(
            f"Node {node}: Ray gave this cell a GPU, but torch finds no CUDA device (CUDA_VISIBLE_DEVICES: {visible or 'none'}).",
            "Install torch for CUDA there, or type: --device cpu",
        )
    keep_float32()
    return torch.device("cuda:0")  # the only one that Ray lets this process see


def _run(cell: Cell, job: Job, store: RecordStore, report: Report, node: str) -> Record:
    from inpbench.harness.runner import Options, run_cell

    options = Options(device=_device(job, node), notes=job.notes, stamp=job.stamp, **job.options)
    progress = Reporter(job.number, report)
    until = time.monotonic() + (PATIENCE_S if job.attempt > 1 else 0.0)
    while True:
        try:
            return run_cell(cell, store, options, progress)
        except ClaimedError:
            if time.monotonic() >= until:
                raise
            progress(0, 1, "waiting for its lost worker to let go")
            time.sleep(1.0)


class Reporter:
    """`harness.api.Progress` that sends messages, not more often than anyone can read them."""

    def __init__(self, number: int, report: Report) -> None:
        self._number, self._report = number, report
        self._stage, self._last = "", 0.0

    def __call__(self, done: int, total: int, text: str = "", **numbers: float) -> None:
        """Send where the stage is new or at its end, or half a second has passed."""
        now, stage = time.monotonic(), text.split(" ")[0]
        if stage == self._stage and done < total and now - self._last < EVERY_S:
            return
        self._stage, self._last = stage, now
        plain: dict[str, Any] = {key: float(value) for key, value in numbers.items()}
        self._report(Message(self._number, int(done), max(1, int(total)), text, plain))


class _Forward(logging.Handler):
    """Warnings of the bench to the person who runs the command."""

    def __init__(self, number: int, report: Report) -> None:
        super().__init__(logging.WARNING)
        self._number, self._report = number, report

    def emit(self, record: logging.LogRecord) -> None:
        """Send one warning."""
        self._report(Message(self._number, 0, 0, record.getMessage()))
