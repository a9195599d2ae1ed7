"""One training loop for all gradient methods: shuffled batches, clipping, schedule, progress, snapshots.

The order of images is a pure function of (seed, epoch) and everything else that is random (dropout) comes from torch's generators,
whose state is part of a snapshot: a killed run goes on from its last snapshot and ends, on the CPU, with the same bits.
The loss is looked at every 20 steps and at each snapshot only, so that the device never waits for the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inpbench.harness.api import Context
from inpbench.harness.errors import BenchError, DataError
from inpbench.methods.shards import Shard

REPORT_EVERY = 20  # steps
_EPOCH_STRIDE = 1_000_003  # seeds of epochs of neighbouring seeds do not collide

LossFunction = Callable[[list[int], int], Tensor]
"""(indices of the batch, step) -> the loss, a scalar with a graph."""


class Order(Protocol):
    """Which images step i sees."""

    per_epoch: int  # steps of an epoch

    def batch(self, step: int) -> list[int]:
        """The images of one step (0-based)."""
        ...


class BatchOrder:
    """Which images step i sees: epochs of shuffled whole batches, the rest of an epoch dropped.

    A set smaller than a batch (where the originals would train on nothing) is one batch an epoch. `DataError` without images.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1:
            raise DataError("There is no image to train on.", "Type: bench data verify NAME --data-root DIR")
        self.count, self.seed = count, seed
        self.size = min(batch_size, count)  # images of a batch
        self.per_epoch = count // self.size  # steps of an epoch
        self._epoch, self._order = -1, [0]

    def permutation(self, epoch: int) -> list[int]:
        """The order of the images in an epoch (0-based): a pure function of seed and epoch."""
        generator = torch.Generator().manual_seed(self.seed * _EPOCH_STRIDE + epoch)
        order: list[int] = torch.randperm(self.count, generator=generator).tolist()
        return order

    def batch(self, step: int) -> list[int]:
        """The images of one step (0-based)."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.permutation(epoch)
        return self._order[position * self.size : (position + 1) * self.size]


# --- random state ---------------------------------------------------------------------------------------------------


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators that a step on `device` may use."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


# --- the loop -------------------------------------------------------------------------------------------------------


class StepResult(NamedTuple):
    """What one update saw; tensors stay on the device."""

    loss: Tensor  # scalar
    norm: Tensor  # scalar, L2 norm of all gradients before clipping
    rate: float  # learning rate


@dataclass
class Trainer:
    """Trains `module` for `steps` steps.

    schedule: step -> learning rate, set on every parameter group before the step. clip_norm: largest L2 norm of all gradients.
    advice: what to type when the loss is not finite. stage, kept: of a method that trains several modules in turn, the name of this
    training in snapshots and progress, and the tensors of earlier stages that its snapshots hold besides. shard: the part of each
    batch that `loss` speaks of, where several processes train together; they look at the loss and the clock at the same steps.
    """

    module: nn.Module
    optimiser: Optimizer
    schedule: Callable[[int], float]
    loss: LossFunction
    order: Order
    steps: int
    clip_norm: float
    ctx: Context
    advice: str = "Lower the learning rate, or use --set METHOD.warmup=500."
    stage: str = "training"
    kept: Mapping[str, Tensor] | None = None
    shard: Shard = field(default_factory=Shard)

    def run(self) -> None:
        """Train from the snapshot of this cell, if there is one, to the last step; torch's generators are left untouched."""
        devices = [self.ctx.device] if self.ctx.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.ctx.seed)
            first = self._resume()
            self.shard.check_same(self.module)
            self.module.train()
            self._loop(first)
            self.module.eval()

    def step(self, step: int) -> StepResult:
        """One update: loss, gradients, clipping, optimiser, at the rate of this step (0-based)."""
        rate = self.schedule(step)
        params: list[Tensor] = []
        for group in self.optimiser.param_groups:
            group["lr"] = rate
            params += group["params"]
        loss = self.loss(self.order.batch(step), step)
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.shard.backward(loss, params)
        norm = nn.utils.clip_grad_norm_(params, self.clip_norm)
        self.optimiser.step()
        return StepResult(loss, norm, rate)

    def _loop(self, first: int) -> None:
        running: list[Tensor] = []
        for step in range(first, self.steps):
            result = self.step(step)
            if self.ctx.engine == "reference":
                result.loss.item()  # the originals wait for the device at each step
            running.append(result.loss)
            done = step + 1
            look = done % REPORT_EVERY == 0 or done == self.steps
            due = done < self.steps and (look or self.shard.alone) and self.ctx.snapshots.due()
            if look or due:
                self._report(done, running, result.rate)
                running = []
            if due:
                self.ctx.snapshots.save(self._state(done))

    def _report(self, done: int, losses: list[Tensor], rate: float) -> None:
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise BenchError(f"The loss is {mean} between steps {done - len(losses)} and {done} of {self.steps}.", self.advice)
        epochs = -(-self.steps // self.order.per_epoch)
        text = f"epoch {-(-done // self.order.per_epoch)}/{epochs}"
        self.ctx.progress(done, self.steps, text if self.stage == "training" else f"{self.stage} {text}", loss=mean, lr=rate)

    def _state(self, done: int) -> dict[str, Any]:
        return {
            "kind": self.stage,
            "step": done,
            "steps": self.steps,
            "module": dict(self.module.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "random": random_state(self.ctx.device),
            **({} if self.kept is None else {"kept": dict(self.kept)}),
        }

    def _resume(self) -> int:
        state = self.ctx.snapshots.load()
        if state is None or state.get("kind") != self.stage:
            return 0
        if state["steps"] != self.steps:
            raise BenchError(
                f"The snapshot is of a run of {state['steps']} steps, this one has {self.steps}.",
                "Delete the snapshot of this cell, or run with the parameters it was started with.",
            )
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        set_random_state(state["random"], self.ctx.device)
        step: int = state["step"]
        return step
