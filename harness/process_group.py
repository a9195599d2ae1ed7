"""The processes that torchrun started, as one team: collectives for methods, and messages between them for the bench.

Rank 0 plans, tests and writes; it calls the others when a model is to be trained (`training`), and they wait for that (`tasks`) as
long as it takes. Messages are keys in torchrun's store, so that no collective waits while rank 0 tests; tensors travel by gloo
(CPU) and nccl (CUDA), which are set up at the first training.

A failure is told through the store. Where every process fails with the same words (a loss that is not finite), the cell has failed
and the run goes on; else one process is lost to the others: after GRACE_S rank 0 records the first error, and all end.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from inpbench.harness.errors import EXIT_NEGATIVE, BenchError, PrerequisiteError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GRACE_S = 5.0  # between the first failure and the end of all
POLL_S = 0.1
PATIENCE = timedelta(hours=6)  # of a collective: one process may decode a data set while the others wait
PLAN = 1  # the number of the first task: to plan
_END = "end"


class LostTeamError(BenchError):
    """Another process failed, alone: the team is of no use any more."""


class Team:
    """`harness.ranks.Ranks` of processes started by torchrun, and how they work for the bench; see the module docstring."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.rank, self.size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        self.local_rank = int(environment.get("LOCAL_RANK", self.rank))
        self.neighbours = int(environment.get("LOCAL_WORLD_SIZE", self.size))
        self.backend = ""  # not connected yet
        self.devices: list[str] = []  # what the processes compute on, by rank
        self.lost = False  # a process failed alone
        self.on_loss: Callable[[dict[str, Any]], object] = lambda error: None  # rank 0: records the first error
        self._number = 0  # tasks so far
        self._training = 0  # the task that is being worked on, or 0
        self._settling = False
        import torch.distributed

        dist: Any = torch.distributed  # which names its stores without saying that it exports them
        store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
        run = f"inpbench/{environment.get('TORCHELASTIC_RUN_ID', '')}/{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self._collective_store = dist.PrefixStore(f"{run}/collectives", store)
        self._store = dist.PrefixStore(f"{run}/messages", store)
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        # A connection of its own: the other one's lock is held while a collective is set up.
        self._watched = dist.PrefixStore(f"{run}/messages", dist.TCPStore(address, port, is_master=False, timeout=PATIENCE))
        self._left = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="team", daemon=True)
        self._watcher.start()

    # --- tensors --------------------------------------------------------------------------------------------------------

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """See `harness.ranks.Ranks`. Sent as bytes, padded to the longest: no process waits for the host to learn sizes."""
        import torch
        import torch.distributed as dist

        assert len(rows) == counts[self.rank] and len(counts) == self.size, (len(rows), counts)
        width = torch.Size(rows.shape[1:]).numel() * rows.element_size()
        if width == 0 or max(counts) == 0:
            return rows.new_empty((sum(counts), *rows.shape[1:]))
        sent = torch.zeros((max(counts), width), dtype=torch.uint8, device=rows.device)
        if len(rows):
            sent[: len(rows)] = rows.detach().contiguous().reshape(-1).view(torch.uint8).view(len(rows), width)
        arrived = [torch.empty_like(sent) for _ in counts]
        with _arriving():
            dist.all_gather(arrived, sent)
        together = torch.cat([each[:count] for each, count in zip(arrived, counts, strict=True)])
        return together.reshape(-1).view(rows.dtype).view(sum(counts), *rows.shape[1:])

    def sum_(self, tensor: Tensor) -> Tensor:
        """See `harness.ranks.Ranks`."""
        import torch.distributed as dist

        with _arriving():
            dist.all_reduce(tensor)
        return tensor

    def check_same(self, state: Mapping[str, Tensor]) -> None:
        """Raise `BenchError` where the processes did not come to the same model: a method that says it can, and cannot.

        Compared by the norms of the tensors, to 1e-3: GPUs of two kinds round differently.
        """
        import torch

        if not state:
            return
        norms = torch.stack([value.detach().double().norm().cpu() for value in state.values()])
        together = self.gather(norms[None], [1] * self.size)
        apart = ~torch.isclose(together, together[:1], rtol=1e-3, atol=1e-6, equal_nan=True).all(dim=0)
        if apart.any():
            place = int(apart.nonzero()[0])
            name, found = list(state)[place], together[:, place].tolist()
            raise BenchError(
                f"The {self.size} processes have trained different models: the norm of {name} is {found}.",
                "Run it without torchrun; the method's authors should not call it `parallel`.",
            )

    def first(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """What rank 0 has (tensors, numbers, strings, lists and dicts, or None), for all."""
        import torch
        import torch.distributed as dist

        buffer = io.BytesIO()
        if self.rank == 0:
            torch.save({"state": state}, buffer)
        length = torch.tensor([len(buffer.getvalue())])
        with _arriving():
            dist.broadcast(length, 0)
        data = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            data = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        with _arriving():
            dist.broadcast(data, 0)
        found: dict[str, Any] | None = torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)[
            "state"
        ]
        return found

    # --- devices --------------------------------------------------------------------------------------------------------

    def device_name(self, asked: str) -> str:
        """`--device` for this process: `auto` and `cuda` are the GPU of its local rank.

        Raises `UsageError` for a numbered GPU, `PrerequisiteError` where a machine has fewer GPUs than processes.
        """
        import torch

        if asked.startswith("cuda:"):
            raise UsageError(f"--device {asked}: each of the {self.size} processes has a GPU of its own.", "Type: --device cuda")
        if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
            return "cpu"
        if asked in ("auto", "cuda") and self.neighbours > torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise PrerequisiteError(
                f"torchrun started {self.neighbours} processes on this machine, torch finds {found} CUDA devices.",
                f"Type: torchrun --nproc-per-node {found} ..." if found else "Type: --device cpu",
            )
        return f"cuda:{self.local_rank}" if asked in ("auto", "cuda") else asked

    def connect(self, device: torch.device) -> None:
        """Set up the collectives, once; every process does, at its first training."""
        if self.backend:
            return
        import torch
        import torch.distributed as dist

        from inpbench.harness.stamp import device_title

        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=self._collective_store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        self._store.set(f"device/{self.rank}", device_title(device))
        self.devices = [self._store.get(f"device/{rank}").decode() for rank in range(self.size)]
        self.backend = "nccl" if device.type == "cuda" else "gloo"

    def facts(self) -> dict[str, Any]:
        """What a record's stamp says of the team."""
        return {"processes": self.size, "backend": self.backend, "devices": self.devices}

    # --- work -----------------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Rank 0: the plan is made (and weights are fetched, listings cached); the others may make it too."""
        self._send({"plan": True})

    @contextlib.contextmanager
    def training(self, task: dict[str, Any], device: torch.device) -> Iterator[None]:
        """Rank 0: call the others to a training, for the time of the block."""
        self._send(task)
        with self._working(self._number, device):
            yield

    @contextlib.contextmanager
    def _working(self, number: int, device: torch.device) -> Iterator[None]:
        self._training = number
        self.connect(device)
        yield  # after an exception the task is still being worked on, until `settle`
        self._training = 0

    def tasks(self, device: Callable[[], torch.device]) -> Iterator[dict[str, Any]]:
        """The others: every task of rank 0, in order, until it ends. device: asked for at the first training."""
        number = 0
        while True:
            number += 1
            while not self._store.check([f"task/{number}"]):
                if self._store.check(["over"]):
                    raise LostTeamError("The run was ended.")
                time.sleep(POLL_S)
            text = self._store.get(f"task/{number}").decode()
            if text == _END:
                return
            task = json.loads(text)
            if "plan" in task:
                self._training = number  # who cannot plan fails in this task
                yield task
                self._training = 0
                continue
            self._training = number
            with self._working(number, device()):
                yield task

    def _send(self, task: dict[str, Any] | None) -> None:
        self._number += 1
        self._store.set(f"task/{self._number}", _END if task is None else json.dumps(task))

    def end(self) -> None:
        """Leave: rank 0 sends the others home, and they wait for it where one was lost."""
        import torch.distributed as dist

        with contextlib.suppress(Exception):  # the store may be gone with torchrun
            if self.rank == 0:
                self._store.set("over", "") if self.lost else self._send(None)
            elif self.lost:
                self._await_end()
            if self.backend and not self.lost and not self._training:
                dist.destroy_process_group()
        self._left.set()
        self._watcher.join(1.0)

    # --- failures -------------------------------------------------------------------------------------------------------

    def settle(self, error: Exception) -> dict[str, Any] | None:
        """Tell the others that this process failed in a training, and learn whether they did so with the same words.

        Returns the first error of another process where this is not so (`lost` is True then), else None. Of an error outside a
        training nobody else needs to know.
        """
        number = self._training
        if not number:
            return None
        self._settling = True
        own = _described(error, self.rank)
        with contextlib.suppress(Exception):  # the store may be gone with torchrun: then the team is lost, too
            self._store.set(f"failed/{number}/{self.rank}", f"{own['type']}: {own['message']}")
            if self._store.add(f"failures/{number}", 1) == 1:
                self._store.set(f"failed/{number}", json.dumps(own))
            if self._all_alike(number):
                self._training, self._settling = 0, False
                return None
            self.lost = True
            first: dict[str, Any] = json.loads(self._store.get(f"failed/{number}"))
            return first
        self.lost = True
        return own

    def _all_alike(self, number: int) -> bool:
        keys = [f"failed/{number}/{rank}" for rank in range(self.size)]
        until = time.monotonic() + GRACE_S
        while not self._store.check(keys):
            if time.monotonic() > until or self._store.check(["over"]):
                return False
            time.sleep(POLL_S)
        return len({self._store.get(key) for key in keys}) == 1

    def _await_end(self) -> None:
        """Not rank 0: torchrun ends all when this process ends, so that rank 0 is given the time to record what it was."""
        until = time.monotonic() + 2 * GRACE_S
        while time.monotonic() < until and not self._watched.check(["over"]):
            time.sleep(POLL_S)

    def _watch(self) -> None:
        """In a thread: end this process where another one failed and this one waits for it in a collective."""
        since: float | None = None
        with contextlib.suppress(Exception):  # the store is gone: torchrun ends this process, too
            while not self._left.wait(5 * POLL_S):
                number = self._training
                if not number or self._settling:
                    since = None
                    continue
                failed = next((n for n in (PLAN, number) if self._watched.check([f"failed/{n}"])), 0)
                since = (since or time.monotonic()) if failed else None
                if (since is not None and time.monotonic() - since > GRACE_S) or self._watched.check(["over"]):
                    self._abandon(failed)

    def _abandon(self, failed: int) -> None:
        """Record (rank 0), and end without the main thread, which may never come back from a collective."""
        if self.rank == 0 and failed:
            try:
                self.on_loss(json.loads(self._watched.get(f"failed/{failed}")))
            finally:
                self._watched.set("over", "")
        else:
            self._await_end()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_NEGATIVE)


@contextlib.contextmanager
def _arriving() -> Iterator[None]:
    """A collective whose partner is gone, in words; its own error, if it had the time to tell it, takes the place of this one."""
    try:
        yield
    except RuntimeError as error:
        raise LostTeamError(
            f"Another process of the run has ended in the middle of a training ({type(error).__name__} of torch.distributed).",
            "Its own message stands in the log (none: it was killed, as where memory ends); the same command goes on.",
        ) from error


def _described(error: Exception, rank: int) -> dict[str, Any]:
    trace = "" if isinstance(error, BenchError) else "".join(traceback.format_exception(error))
    return {"rank": rank, "type": type(error).__name__, "message": str(error), "traceback": trace}


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def join() -> Team | None:
    """The team that torchrun made this process a member of; None for a single process (or a team of one)."""
    if processes() < 2:
        return None
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        raise PrerequisiteError("This torch has no distributed training (gloo).", "Run it without torchrun.")
    return Team(os.environ)
