"""Frozen features of the training images, computed once and kept where they fit: device, host, file; else never kept.

The encoder is frozen and the input pipeline has no random part, so that an image's features never change. They are computed in
index order in fixed batches (a resumed run gets the same bits). Only the grouped maps are stored, and the fused tokens where they
are not the maps' mean: at ViT-B and 392 pixels INP-Former needs 2.4 MB an image in bfloat16 (CUDA), 4.8 MB in float32 (CPU, where
no tier changes a bit). On CUDA the next batch of a host or file tier is copied while the device works on this one. Of several
processes each encodes and keeps every size-th batch; those of a training batch are sent to all, and each takes its part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from inpbench.harness.api import Context, TrainingSet
from inpbench.methods.fusion import Features, from_grid, mean_of, to_grid
from inpbench.methods.shards import Shard

Encode = Callable[[Tensor], Features]
DEVICE_RESERVE = 12 << 30  # bytes of GPU memory left to training


class _Read(NamedTuple):
    """Stored rows of a batch on the device, and what to wait for before they are used."""

    parts: list[Tensor]
    ready: torch.cuda.Event | None


class FeatureSource:
    """Features of training images by index, from a cache or straight from the encoder.

    partition: whether the fused patch tokens are the mean of the groups (`fusion.is_partition`): they are not stored then.
    """

    def __init__(
        self,
        train: TrainingSet,
        encode: Encode,
        batch_size: int,
        ctx: Context,
        partition: bool = False,
        exact: bool = False,
        shard: Shard | None = None,
    ) -> None:
        """exact: keep the encoder's dtype on CUDA too. shard: this process's part of a batch; by default all of it."""
        self._train, self._encode, self._ctx, self._partition, self._exact = train, encode, ctx, partition, exact
        self._shard, self._batch_size = shard or Shard(), batch_size
        self._stored: tuple[Tensor, ...] = ()  # fused (or its prefix), then the groups as tokens; each (own images, T, D)
        self._grid = (0, 0)
        self.tier = "none"  # device, host, file or none
        self._coming: tuple[list[int], Future[_Read]] | None = None
        self._pool: ThreadPoolExecutor | None = None
        if ctx.engine == "fast" and ctx.cache != "none":
            self._fill(batch_size)
        if self.tier in ("host", "file") and ctx.device.type == "cuda":
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="features")
            self._stream = torch.cuda.Stream(ctx.device)  # type: ignore[no-untyped-call]

    @property
    def cached(self) -> bool:
        """Whether features are kept."""
        return bool(self._stored)

    def batch(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> Features:
        """Features of this process's part of the images `indices`, on the context's device; `upcoming` is fetched meanwhile."""
        if not self._stored:
            return self._encoded(self._shard.mine(indices))
        if self._coming is not None and self._coming[0] == list(indices):
            read = self._coming[1].result()
        else:
            read = self._read(list(indices))
        self._coming = None
        if self._pool is not None and upcoming:
            self._coming = (list(upcoming), self._pool.submit(self._read, list(upcoming)))
        if read.ready is not None:
            now = torch.cuda.current_stream(self._ctx.device)
            now.wait_event(read.ready)
            for part in read.parts:
                part.record_stream(now)
        first, *groups = (part.to(self._ctx.dtype) for part in self._exchanged(read.parts, indices))
        fused = torch.cat((first, mean_of(groups)), dim=1) if self._partition else first
        return Features(fused, tuple(to_grid(group, self._grid) for group in groups))

    def _owner(self, index: int) -> int:
        """The process that keeps an image: whole batches in turn."""
        return index // self._batch_size % self._shard.ranks.size

    def _exchanged(self, parts: list[Tensor], indices: Sequence[int]) -> list[Tensor]:
        """What each process keeps of the images `indices` -> this process's part of them, each (own, T, D)."""
        if self._shard.alone:
            return parts
        owners = [self._owner(index) for index in indices]
        counts = [owners.count(rank) for rank in range(self._shard.ranks.size)]
        arrived = sorted(range(len(indices)), key=owners.__getitem__)  # places in the batch, in the order of arrival
        mine = torch.tensor([arrived.index(place) for place in range(len(indices))[self._shard.part]], dtype=torch.int64)
        mine = mine.to(parts[0].device)
        return [self._shard.ranks.gather(part, counts).index_select(0, mine) for part in parts]

    def _encoded(self, indices: Sequence[int]) -> Features:
        """Features of images, perhaps of none."""
        if indices:
            return self._encode(self._train.batch(indices))
        one = self._encode(self._train.batch([0]))
        return Features(one.fused[:0], tuple(group[:0] for group in one.groups))

    def _read(self, indices: list[int]) -> _Read:
        """The rows of those of the images that this process keeps."""
        device, size, ranks = self._ctx.device, self._batch_size, self._shard.ranks
        kept = [index for index in indices if self._owner(index) == ranks.rank]
        rows = torch.tensor([index // size // ranks.size * size + index % size for index in kept], dtype=torch.int64)
        if self._pool is None:
            rows = rows.to(self._stored[-1].device, non_blocking=True)
            return _Read([part.index_select(0, rows).to(device) for part in self._stored], None)
        with torch.cuda.stream(self._stream):
            parts = []
            for part in self._stored:
                staged = torch.empty((len(kept), *part.shape[1:]), dtype=part.dtype, pin_memory=True)
                parts.append(torch.index_select(part, 0, rows, out=staged).to(device, non_blocking=True))
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(self._stream)
        return _Read(parts, ready)

    def _parts(self, features: Features) -> Iterator[Tensor]:
        """What is stored of a batch, each (B, T, D)."""
        height, width = features.groups[0].shape[-2:]
        yield features.fused[:, : features.fused.shape[1] - height * width] if self._partition else features.fused
        yield from map(from_grid, features.groups)

    def _fill(self, batch_size: int) -> None:
        """Encode the images that this process keeps; gives up after the first batch if no tier (of any process) has room."""
        count, ctx, ranks = len(self._train), self._ctx, self._shard.ranks
        own = [index for index in range(count) if self._owner(index) == ranks.rank]
        # On CUDA the encoder has computed in bfloat16.
        halved = ctx.device.type == "cuda" and ctx.dtype == torch.float32 and not self._exact
        stored: tuple[Tensor, ...] = ()
        for start in range(0, max(len(own), 1), batch_size):
            indices = own[start : start + batch_size]
            features = self._encoded(indices)
            parts = list(self._parts(features))
            if not stored:
                shapes = [(len(own), *part.shape[1:]) for part in parts]
                found = self._allocate(shapes, torch.bfloat16 if halved else parts[0].dtype)
                refused = found is None
                if not self._shard.alone:
                    refused = bool(ranks.sum_(torch.tensor([float(refused)], device=ctx.device)))
                if found is None or refused:
                    return
                self.tier, stored = found
                self._grid = (features.groups[0].shape[-2], features.groups[0].shape[-1])
            for store, part in zip(stored, parts, strict=True):
                store[start : start + len(indices)] = part.to(store.device, store.dtype)
            ctx.progress(start + len(indices), len(own), "features")
        self._stored = stored

    def _allocate(self, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> tuple[str, tuple[Tensor, ...]] | None:
        """The first tier with room, and its empty tensors."""
        ctx = self._ctx
        needed = sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
        asked = ctx.cache
        if ctx.device.type == "cuda" and asked in ("auto", "device"):
            free = torch.cuda.mem_get_info(ctx.device)[0]
            if asked == "device" or needed + DEVICE_RESERVE <= free:
                return "device", tuple(torch.empty(shape, dtype=dtype, device=ctx.device) for shape in shapes)
        room = ctx.cache_bytes if ctx.cache_bytes is not None else available_memory() // 2 // self._shard.ranks.neighbours
        if asked == "host" or (asked in ("auto", "device") and needed <= room):
            return "host", tuple(torch.empty(shape, dtype=dtype) for shape in shapes)
        if ctx.array is not None:
            files = [ctx.array(f"features-{i}", shape, dtype) for i, shape in enumerate(shapes)]
            if all(file is not None for file in files):
                return "file", tuple(file for file in files if file is not None)
        return None


def available_memory() -> int:
    """Bytes of memory that nothing uses now, caches of the system included where it says so; 4 GiB where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - no file of the project
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in os.sysconf_names else 0
        return pages * os.sysconf("SC_PAGE_SIZE") // 2 or 4 << 30
