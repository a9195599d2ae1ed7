"""Frozen features of the training images, computed once where they fit into memory.

The encoder is frozen and the input pipeline has no random part, so that an image's features never change. They are computed in
index order in fixed batches (a resumed run gets the same bits) and kept on the host as they are: float32 stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inpbench.harness.api import Context, TrainingSet
from inpbench.methods.fusion import Features

Encode = Callable[[Tensor], Features]


class FeatureSource:
    """Features of training images by index, from memory or straight from the encoder."""

    def __init__(self, train: TrainingSet, encode: Encode, batch_size: int, ctx: Context) -> None:
        self._train, self._encode, self._ctx = train, encode, ctx
        self._stored: tuple[Tensor, ...] = ()  # fused, then the groups; each (images, ...)
        if ctx.engine == "fast":
            self._fill(batch_size)

    @property
    def cached(self) -> bool:
        """Whether features are held in memory."""
        return bool(self._stored)

    def batch(self, indices: Sequence[int]) -> Features:
        """Features of the images `indices`, on the context's device."""
        if not self._stored:
            return self._encode(self._train.batch(indices))
        rows = torch.as_tensor(list(indices))
        device = self._ctx.device
        fused, *groups = (part.index_select(0, rows).to(device, non_blocking=True) for part in self._stored)
        return Features(fused, tuple(groups))

    def _fill(self, batch_size: int) -> None:
        """Encode all images; gives up after the first batch if they would not fit into `ctx.cache_bytes`."""
        count = len(self._train)
        stored: tuple[Tensor, ...] = ()
        for start in range(0, count, batch_size):
            indices = list(range(start, min(start + batch_size, count)))
            features = self._encode(self._train.batch(indices))
            parts = (features.fused, *features.groups)
            if not stored:
                needed = sum(part[0].numel() * part.element_size() for part in parts) * count
                if needed > self._ctx.cache_bytes:
                    return
                stored = tuple(torch.empty((count, *part.shape[1:]), dtype=part.dtype) for part in parts)
            for store, part in zip(stored, parts, strict=True):
                store[start : start + len(indices)] = part.to("cpu")
            self._ctx.progress(start + len(indices), count, "features")
        self._stored = stored
