"""All pixels of a category in constant memory: a histogram of ordered keys in pages, for categories too large to keep.

The upper 16 bits of a score's key name its page, the lower 16 its place in it. Pages get their memory when first hit, so an outlier
costs one page and not the resolution of the rest. When the pages no longer fit, every page keeps one bit less. Bins that hold one
distinct score are exact; the others bound the error. The state depends on the scores alone, not on their order: summed region
shares, kept in float64, are the exception (relative 1e-12).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpbench.harness.metrics import loops
from inpbench.harness.metrics.curve import Groups
from inpbench.harness.metrics.keys import ordered_keys
from inpbench.harness.metrics.memory import room

BINS = 1 << 23  # all pages together
PAGE_BITS = 16
PAGE_OFFSET = 1 << 15  # makes the page of the lowest key 0
PIECE = 1 << 18  # pixels or bins handled at a time: what is computed from them stays in a processor's cache
_LOSSLESS = {torch.float16: 13, torch.bfloat16: 16}  # trailing zero bits of such a value's float32


class PixelHistogram:
    """Counts of all pixels and of the anomalous ones, and the anomalous ones' region shares, per bin of float32 keys."""

    def __init__(self, device: torch.device, bins: int = BINS) -> None:
        """bins: a power of two, at least 2^16."""
        self.device = device
        self.shift = 0  # lowest bits of a key that are not told apart
        self.lossless = PAGE_BITS  # lowest bits that are equal in every score seen
        self._bins = bins
        self._pages = 0
        self._slot = torch.full((1 << PAGE_BITS,), -1, dtype=torch.int32, device=device)
        self._total = 0
        self._all = torch.zeros(bins, dtype=torch.int32, device=device)  # int64 before a bin could overflow
        self._anomalous = torch.zeros(bins, dtype=torch.int32, device=device)
        self._share = torch.zeros(bins, dtype=torch.float64, device=device)
        self._grouped = torch.empty(0, dtype=torch.int32)  # kept from one piece to the next: fresh memory costs more than its use

    def add(self, scores: Tensor, dtype: torch.dtype) -> None:
        """Count pixels. scores: (n,) float, finite; dtype: of the maps that they came from, if narrower."""
        self.lossless = min(self.lossless, _LOSSLESS.get(dtype, 0))
        self._total += scores.numel()
        if self._total > torch.iinfo(torch.int32).max and self._all.dtype == torch.int32:
            self._all, self._anomalous = self._all.long(), self._anomalous.long()
        if self.device.type == "cpu" and loops.COMPILED:
            self._count(scores.float())
            return
        keys = self._keys(scores)
        if self.device.type == "cpu":
            keys.numpy().sort()  # the tables are larger than a processor's cache: ascending access is several times faster
        for piece in torch.split(keys, PIECE if self.device.type == "cpu" else keys.numel()):
            slots = self._slot.index_select(0, self._page(piece))
            if int(slots.amin()) < 0:  # a new page: rare, and the only reason to look at pages one by one
                self._make_room(piece)
                slots = self._slot.index_select(0, self._page(piece))
            self._all.index_add_(0, self._place(slots, piece), torch.ones_like(piece, dtype=self._all.dtype))

    def _count(self, scores: Tensor) -> None:
        """Count scores (n,) float32 by a compiled loop, which stops where a page is new.

        Half a page at a time: the tables are larger than a processor's cache.
        """
        if self._grouped.numel() < scores.numel():
            self._grouped = room(scores.numel(), torch.int32, self.device)
        grouped, start = self._grouped[: scores.numel()], 0
        loops.group(scores.view(torch.int32).numpy(), PAGE_BITS - 1, grouped.numpy())
        while True:
            rest, slots, table = grouped[start:].numpy(), self._slot.numpy(), self._all.numpy()
            start += loops.count_in_pages(rest, slots, self.shift, PAGE_BITS, table)
            if start == grouped.numel():
                return
            self._make_room(grouped[start : start + PIECE])

    def add_anomalous(self, scores: Tensor, areas: NDArray[np.int32]) -> None:
        """Count the anomalous ones of the pixels added before, again. scores: (p,) float; areas: (p,) of their regions."""
        at = self._index(self._keys(scores))
        self._anomalous.index_add_(0, at, torch.ones_like(at, dtype=self._anomalous.dtype))
        self._share.index_add_(0, at, torch.from_numpy(1.0 / areas).to(self.device))

    @staticmethod
    def _keys(scores: Tensor) -> Tensor:
        """(n,) int32 keys."""
        return ordered_keys(scores.float() + 0.0)

    def _index(self, keys: Tensor) -> Tensor:
        """Bin (n,) of each key (n,)."""
        return self._place(self._slot.index_select(0, self._page(keys)), keys)

    def _place(self, slots: Tensor, keys: Tensor) -> Tensor:
        """Bin (n,) of each key (n,) whose page has its memory at `slots` (n,)."""
        return (slots << (PAGE_BITS - self.shift)) + ((keys & ((1 << PAGE_BITS) - 1)) >> self.shift)

    @staticmethod
    def _page(keys: Tensor) -> Tensor:
        """Page (n,) of each key, 0 to 2^16 - 1 in the order of the scores."""
        return (keys >> PAGE_BITS) + PAGE_OFFSET

    def _make_room(self, keys: Tensor) -> None:
        """Give every page of `keys` its memory, coarsening all pages as often as it takes. Waits for the device."""
        hit = torch.zeros(1 << PAGE_BITS, dtype=torch.bool, device=self.device)
        hit[torch.unique_consecutive(self._page(keys)).long()] = True
        new = torch.nonzero(hit & (self._slot < 0))[:, 0]
        while (self._pages + new.numel()) << (PAGE_BITS - self.shift) > self._bins:
            used = self._pages << (PAGE_BITS - self.shift)
            for table in (self._all, self._anomalous, self._share):
                table[: used // 2] = table[:used].view(-1, 2).sum(1, dtype=table.dtype)
                table[used // 2 : used] = 0
            self.shift += 1
        self._slot[new] = torch.arange(self._pages, self._pages + new.numel(), dtype=torch.int32, device=self.device)
        self._pages += new.numel()

    @property
    def width(self) -> int:
        """How many different scores a bin can hold."""
        return 1 << max(0, self.shift - self.lossless)

    def walk(self, every: bool) -> Iterator[Groups]:
        """Pieces of groups from the highest score down: bins with an anomalous pixel, or all that are not empty."""
        per_page = PAGE_BITS - self.shift
        pages = torch.nonzero(self._slot >= 0)[:, 0].flip(0)  # descending
        step = max(1, PIECE >> per_page)
        offsets = torch.arange((1 << per_page) - 1, -1, -1, device=self.device)
        above = 0
        for some in torch.split(pages, step):
            bins = ((self._slot[some] << per_page)[:, None] + offsets).reshape(-1)
            keys = ((((some - PAGE_OFFSET) << per_page)[:, None] + offsets) << self.shift).reshape(-1)
            count, anomalous = self._all[bins].long(), self._anomalous[bins].long()
            normal = count - anomalous
            upto = above + normal.cumsum(0)
            keep = count > 0 if every else anomalous > 0
            parts = (keys, upto - normal, normal, anomalous, self._share[bins])
            key, before, zeros, ones, share = (part[keep].cpu().numpy() for part in parts)
            yield Groups(key, before, zeros, ones, share, self.width)
            above = int(upto[-1])
