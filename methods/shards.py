"""A batch spread over processes: the loss, its gradient and the random numbers are those of one process for the whole batch.

    loss = sum over processes of (mean over own images) * own / total       gradients are added up, then clipped
    statistic (mining) = of the distances of all processes, gathered         noise = drawn for the whole batch, own rows used
Every process ends a step with the same gradients, and with its generators where one process would have them. A process without
an image of a batch (more processes than images) works on zero rows and adds nothing.
Known deviation: sums are taken in another order, so that weights agree to rounding (1e-12 in float64). On CUDA the noise of one
process is drawn again only where torch's own kernels draw it; compiled by torch.compile it may be other noise of the same kind.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness.api import Alone, Ranks, shares
from inpbench.methods import fast_dropout


@dataclass(frozen=True)
class Shard:
    """The part of every batch of a training that is this process's; by default all of it."""

    ranks: Ranks = field(default_factory=Alone)
    total: int = 0  # images of a whole batch; of no interest to a single process

    @property
    def alone(self) -> bool:
        """Whether this process has whole batches."""
        return self.ranks.size == 1

    @property
    def counts(self) -> list[int]:
        """How many images of a batch each process has."""
        return shares(self.total, self.ranks.size)

    @property
    def part(self) -> slice:
        """Where this process's images lie in a batch."""
        if self.alone:
            return slice(None)
        start = sum(self.counts[: self.ranks.rank])
        return slice(start, start + self.counts[self.ranks.rank])

    def mine(self, batch: Sequence[int]) -> list[int]:
        """The images of a batch that are this process's."""
        assert self.alone or len(batch) == self.total, (len(batch), self.total)
        return list(batch[self.part])

    def whole(self, rows: Tensor) -> Tensor:
        """Rows (own, ...) of this process's images -> those of the whole batch (total, ...), in its order, without a gradient."""
        return rows if self.alone else self.ranks.gather(rows.detach(), self.counts)

    def backward(self, loss: Tensor, params: Sequence[Tensor]) -> Tensor:
        """The gradients of the whole batch's loss in `params`, from the mean over this process's images; returns that loss.

        Alone this is `loss.backward()`. Gradients of several processes become views of one tensor, which is sent once.
        """
        if self.alone:
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        own = self.counts[self.ranks.rank]
        (loss * (own / self.total)).backward()  # type: ignore[no-untyped-call]
        # The mean over no image is NaN, its gradient is 0: there is no element to carry anything else.
        value = loss.detach() * (own / self.total) if own else torch.zeros_like(loss)
        trained = [param for param in params if param.grad is not None]
        gradients = [param.grad for param in trained if param.grad is not None]
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), value.to(gradients[0].dtype).reshape(1)])
        self.ranks.sum_(flat)
        *pieces, value = torch.split(flat, [*(gradient.numel() for gradient in gradients), 1])
        for param, piece in zip(trained, pieces, strict=True):
            param.grad = piece.view_as(param)
        return value[0].clone()  # not a view: it would keep all gradients alive until it is read

    def check_same(self, module: nn.Module) -> None:
        """Raise `RuntimeError` where the processes do not begin with the same weights: they would train different models."""
        if self.alone:
            return
        checksum = 0
        for value in module.state_dict().values():
            checksum = zlib.crc32(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), checksum)
        device = next(iter(module.state_dict().values())).device
        found = self.ranks.gather(torch.tensor([checksum], device=device), [1] * self.ranks.size).tolist()
        if len(set(found)) > 1:
            raise RuntimeError(f"The processes begin with different weights (checksums {found}): the same packages everywhere?")


class BatchDropout(nn.Dropout):
    """`nn.Dropout` that draws for the whole batch, where this process has only a part of it."""

    narrow = False  # whether training may use `methods.fast_dropout`; the fast engine switches it on
    total = 0  # images of the whole batch; 0: the input is it
    first = 0  # of which is the input's first

    def forward(self, input: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.p == 0.0:
            return super().forward(input)
        if not self.total:
            fast = self.narrow and fast_dropout.pays(input)
            return input * fast_dropout.noise(input, self.p) if fast else super().forward(input)
        noise = F.dropout(input.new_ones(self.total, *input.shape[1:]), self.p, training=True)
        return input * noise[self.first : self.first + len(input)]


def spread(module: nn.Module, shard: Shard) -> None:
    """Tell every `BatchDropout` below a module which part of the batch is its own."""
    for child in module.modules():
        if isinstance(child, BatchDropout):  # plain numbers: torch.compile reads them
            child.total, child.first = (0, 0) if shard.alone else (shard.total, shard.part.start)
