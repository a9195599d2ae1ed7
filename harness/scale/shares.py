"""How much of a node one cell gets.

Where the cluster has GPUs a cell gets one, and with it its part of that node's processors. Where it has none a cell gets a whole
node, as one process would: as many threads, hence the same digits, and the memory of one cell. Both can be asked for otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from inpbench.harness.errors import PrerequisiteError, UsageError


class Node(NamedTuple):
    """What a machine of the cluster offers."""

    id: str
    name: str  # for people
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Wish:
    """What the user asked for; None is for us to choose."""

    address: str = "auto"  # of the cluster
    gpus: float | None = None  # of a cell, 0 to 1
    cpus: int | None = None  # of a cell
    retries: int = 2  # how often a cell is begun anew whose worker was lost

    def check(self, device: str) -> None:
        """Raise `UsageError` for what no cluster can give. device: what `--device` says."""
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            raise UsageError(
                f"--ray-gpus {self.gpus:g}: a cell uses at most one GPU.", "Type for example: --ray-gpus 0.5 (two cells on one GPU)"
            )
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device {device}: which GPU a cell gets is Ray's to choose.", "Type: --device auto, cuda or cpu")
        if device == "cpu" and self.gpus:
            raise UsageError(f"--device cpu has no use for --ray-gpus {self.gpus:g}.", "Leave one of them out.")
        if device == "cuda" and self.gpus == 0:
            raise UsageError("--device cuda needs a share of a GPU.", "Leave --ray-gpus out.")
        if "://" in self.address:
            raise UsageError(
                f"--ray {self.address}: Ray's remote client does not see the cluster's folders.",
                "Type it on a machine of the cluster, with --ray auto, or send it: ray job submit -- bench run ... --ray auto",
            )


class Share(NamedTuple):
    """What every cell of this run gets."""

    cpus: int
    gpus: float

    def fits(self, node: Node) -> int:
        """How many cells a node holds at once."""
        by_cpu = node.cpus / self.cpus
        return math.floor(min(by_cpu, node.gpus / self.gpus) if self.gpus else by_cpu)

    def in_words(self) -> str:
        """`1 GPU and 8 CPUs`, `2 CPUs`."""
        gpus = f"{self.gpus:g} GPU and " if self.gpus else ""
        return f"{gpus}{self.cpus} CPU{'s' if self.cpus > 1 else ''}"


def choose_share(wish: Wish, nodes: Sequence[Node], device: str, *, grows: bool) -> Share:
    """The share of a cell. grows: whether more nodes may join.

    Raises `PrerequisiteError` where no node can ever hold a cell; where nodes may join, what is asked for stands.
    """
    with_gpu = [node for node in nodes if node.gpus > 0]
    if wish.gpus is not None:
        gpus = wish.gpus
    elif device == "cuda":
        gpus = 1.0
    else:
        gpus = 1.0 if with_gpu and device != "cpu" else 0.0
    if wish.cpus is not None:
        cpus = wish.cpus
    elif gpus:
        cpus = math.floor(min((node.cpus * gpus / max(node.gpus, gpus) for node in with_gpu), default=1))
    else:
        cpus = math.floor(max((node.cpus for node in nodes), default=1))
    share = Share(max(1, cpus), gpus)
    if not grows and not any(share.fits(node) for node in nodes):
        most = max(nodes, key=lambda node: (node.gpus, node.cpus), default=Node("", "", 0, 0))
        raise PrerequisiteError(
            f"No machine here has {share.in_words()} for a cell; the largest has {most.gpus:g} GPU and {most.cpus:g} CPUs.",
            "Ask for less with --ray-gpus and --ray-cpus, or name a cluster: --ray ADDRESS",
        )
    return share


def describe(share: Share, nodes: Sequence[Node]) -> str:
    """What a person should know before the run: how many cells at a time, and which nodes take no part."""
    total = sum(share.fits(node) for node in nodes)
    idle = [node.name for node in nodes if not share.fits(node)]
    text = (
        f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}; a cell gets {share.in_words()}; "
        f"{total} cell{'s' if total != 1 else ''} at a time (--ray-gpus, --ray-cpus)"
    )
    if idle:
        text += f"; too small for a cell: {', '.join(idle[:5])}{' ...' if len(idle) > 5 else ''}"
    return text if total else f"{text}; no node is large enough yet: waiting for one to join (Ctrl-C stops)"
