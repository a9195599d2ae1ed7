"""Everything that is said to Ray: find or start a cluster, examine its nodes, send cells, take what comes back.

`auto` is what `ray.init()` without an address does: the cluster of `$RAY_ADDRESS`, else that of `ray start` on this machine, else
one of this machine alone, for the time of the run. (Ray's `address="auto"` never starts one; a person with one machine expects it.)
Tasks are functions that travel by value and import the bench inside: a node without it is named instead of failing in the dark.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness.errors import BenchError, PrerequisiteError
from inpbench.harness.scale.job import Contract, Job, Message, NodeError
from inpbench.harness.scale.shares import Node, Share

if TYPE_CHECKING:
    from inpbench.harness.records import Record

log = logging.getLogger("inpbench")

ANSWERS_WITHIN_S = 5.0
EXAMINED_WITHIN_S = 120.0
GRACE_S = 10.0  # between the request to stop and the end by force
_STORE_BYTES = 100 * 2**20  # of a cluster started here: what travels are records and messages


class LostError(Exception):
    """The worker of a cell is gone, with no word from it; the text says how."""


class Mailbox:
    """Where workers leave messages: an actor on the driver's own machine. Of each cell only the newest progress is kept."""

    def __init__(self) -> None:
        self._progress: dict[int, Message] = {}
        self._warnings: list[Message] = []

    def post(self, message: Message) -> None:
        """Leave one message."""
        if message.total:
            self._progress[message.cell] = message
        else:
            self._warnings.append(message)

    def take(self) -> list[Message]:
        """All messages since the last time."""
        taken = [*self._warnings, *self._progress.values()]
        self._progress, self._warnings = {}, []
        return taken


def _probe() -> Callable[[bytes], str]:
    """A function without a name of its own: it travels as code."""

    def probe(contract: bytes) -> str:
        import pickle

        try:
            from inpbench.harness.scale.cluster import node_name
            from inpbench.harness.scale.worker import examine
        except ImportError as error:
            return f"has no inpbench ({error})"
        examine(pickle.loads(contract), node_name())
        return ""

    return probe


def _task() -> Callable[[bytes, Any], bytes]:
    """See `_probe`; gives the pickled record."""

    def cell_of_bench(job: bytes, mailbox: Any) -> bytes:
        import pickle
        import socket

        try:
            from inpbench.harness.scale.cluster import node_name
            from inpbench.harness.scale.worker import work
        except ImportError as error:
            raise ImportError(f"Node {socket.gethostname()} has no inpbench ({error}).") from error
        return pickle.dumps(work(pickle.loads(job), mailbox.post.remote, node_name()))

    return cell_of_bench


def node_name() -> str:
    """The name of the machine that asks, as the driver says it."""
    import ray

    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"


def _ray() -> Any:
    """The package, or an error that names the command that installs it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for statistics to be sent
    try:
        import ray
    except ImportError as error:
        raise PrerequisiteError(
            f"--ray needs the package 'ray', which is not installed ({error}).", "Type: pip install 'inpbench[ray]'"
        ) from error
    return ray


def target_of(address: str) -> str | None:
    """The HOST:PORT that `--ray ADDRESS` means, or None: a cluster of this machine alone is to be started.

    Whether anything listens there is asked first: Ray itself tries for five minutes. A cluster that ended without tidying up is
    none. Ray's `auto` would also take the private cluster of any other program on this machine; this does not.
    Raises `PrerequisiteError` where nothing listens at an address that was named.
    """
    named = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if "://" in named:
        raise PrerequisiteError(
            f"RAY_ADDRESS is {named}: Ray's remote client does not see the cluster's folders.",
            "Run the command on a machine of the cluster: unset RAY_ADDRESS, and --ray auto",
        )
    if named == "local":
        return None
    if named:
        reason = _silence(named)
        if reason:
            raise _no_cluster(named, reason)
        return named
    place = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    try:
        last = place.read_text(encoding="ascii").strip()  # `ray start` leaves it
    except (OSError, UnicodeDecodeError):
        return None
    return last if last and not _silence(last) else None


def _silence(address: str) -> str:
    """Why nothing answers at HOST:PORT, or an empty text."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return "an address is HOST:PORT"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_WITHIN_S):
            return ""
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)


def _no_cluster(address: str, reason: str) -> PrerequisiteError:
    return PrerequisiteError(
        f"No Ray cluster answers at {address}: {reason}.",
        "Type on this machine: ray start --address HOST:PORT, and then --ray auto; or on this machine alone: --ray local",
    )


class Cluster:
    """A connection to Ray, for one run."""

    def __init__(self, address: str = "auto") -> None:
        """Raises `PrerequisiteError` where ray is not installed or does not answer at the address."""
        self._ray = _ray()
        self.started_here = self._own = False
        if not self._ray.is_initialized():
            self._own = True
            self._connect(address)
        self._mailbox = self._new_mailbox()

    def _connect(self, address: str) -> None:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        target = target_of(address)
        if target is None:
            try:
                self._ray.init(address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
            except Exception as error:  # a machine so busy that Ray gives up on itself, a full /tmp, a taken port
                raise PrerequisiteError(
                    f"Ray could not be started on this machine: {_first_line(error)}", "Type it again, or leave --ray out."
                ) from error
            self.started_here = True
            return
        try:
            self._ray.init(address=target, **quiet)
        except Exception as error:  # ConnectionError, ValueError, RuntimeError, AssertionError: Ray has many ways to say no
            text = "".join(traceback.format_exception(error))
            if "AuthToken" in text or "Unauthenticated" in text:
                raise PrerequisiteError(
                    f"The Ray cluster at {target} asks for a token.",
                    "Type: export RAY_AUTH_MODE=token, with the token of its head (ray get-auth-token) in ~/.ray/auth_token",
                ) from error
            raise _no_cluster(target, _first_line(error)) from error

    def _new_mailbox(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
        return self._ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()

    def nodes(self) -> list[Node]:
        """The machines that are there now."""
        return [
            Node(
                node["NodeID"],
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
                float(node["Resources"].get("CPU", 0.0)),
                float(node["Resources"].get("GPU", 0.0)),
            )
            for node in self._ray.nodes()
            if node["Alive"]
        ]

    def version(self) -> str:
        """Of Ray."""
        return str(self._ray.__version__)

    def examine(self, contract: Contract, nodes: Sequence[Node]) -> None:
        """Let every node look whether it is fit for the run; raises `NodeError` for the first that is not."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        packed = pickle.dumps(contract)
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            task = self._ray.remote(_probe()).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            asked[task.remote(packed)] = node
        answered, silent = self._ray.wait(list(asked), num_returns=len(asked), timeout=EXAMINED_WITHIN_S)
        for reference in answered:
            name = asked[reference].name
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise _cause(error) from error
            except self._ray.exceptions.RayError as error:  # gone since we looked: its cells go elsewhere
                log.warning("node %s could not be examined: %s", name, _first_line(error))
                continue
            if answer:
                raise NodeError(f"Node {name} {answer}.", "Install inpbench on every machine, in the Python that Ray uses there.")
        for reference in silent:
            log.warning("node %s did not answer within %.0f s.", asked[reference].name, EXAMINED_WITHIN_S)

    def submit(self, job: Job, share: Share) -> Any:
        """Send one cell; gives its handle. Ray runs it where its share is free, and never begins it anew by itself."""
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_retries": 0, "name": f"bench {job.label} {job.id[:12]}"}
        return self._ray.remote(_task()).options(**options).remote(pickle.dumps(job), self._mailbox)

    def wait(self, handles: Sequence[Any], timeout_s: float) -> list[Any]:
        """Those of the handles that have come to an end, at once when one has."""
        ended: list[Any] = self._ray.wait(list(handles), num_returns=1, timeout=timeout_s)[0]
        return ended

    def result(self, handle: Any) -> Record:
        """The record of an ended cell. Raises `LostError` where its worker is gone, and what the worker raised."""
        errors = self._ray.exceptions
        try:
            record: Record = pickle.loads(self._ray.get(handle))
            return record
        except errors.RayTaskError as error:
            raise _cause(error) from error
        except errors.OutOfMemoryError as error:
            raise LostError("Ray stopped it because the memory of its node was full") from error
        except errors.NodeDiedError as error:
            raise LostError("its node was lost") from error
        except errors.ObjectLostError as error:
            raise LostError("its node was lost before it could hand over its record") from error
        except errors.WorkerCrashedError as error:
            raise LostError("its process died (killed, out of memory, or a crash in compiled code)") from error
        except errors.RayError as error:
            raise BenchError(f"Ray gave a cell up: {_first_line(error)}", "What was finished is recorded; run it again.") from error

    def messages(self) -> list[Message]:
        """What workers have said since the last time; nothing where they cannot be asked."""
        try:
            found: list[Message] = self._ray.get(self._mailbox.take.remote(), timeout=5.0)
        except self._ray.exceptions.RayError:  # progress is for the eye: the cells go on without it
            return []
        return found

    def cancel(self, handles: Sequence[Any]) -> None:
        """Stop cells: by Ctrl-C in their processes, so that they leave everything in order, then by force."""
        left = list(handles)
        try:
            for force, patience_s in ((False, GRACE_S), (True, GRACE_S)):
                for handle in left:
                    with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
                        self._ray.cancel(handle, force=force)
                if left:
                    left = self._ray.wait(left, num_returns=len(left), timeout=patience_s)[1]
        except KeyboardInterrupt:  # pressed again: at once
            for handle in left:
                with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
                    self._ray.cancel(handle, force=True)
            raise

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._own:
            self._ray.shutdown()
        else:
            self._ray.kill(self._mailbox)


def _cause(error: Any) -> Exception:
    """What a task raised, as it raised it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ImportError):
        return NodeError(str(cause), "Install inpbench on every machine, in the Python that Ray uses there.")
    return cause if isinstance(cause, Exception) else BenchError(f"A worker failed: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
