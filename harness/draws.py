"""The bootstrap of one category while it is tested: maps and masks go to a file; draws and jackknife are made when all are there.

The images of a draw depend on the data alone (`seed_of`): every method that is tested on the same images is measured on the same
1,000 draws, which is what makes two of them comparable in pairs (harness/statistics.py). 320 KiB of disk an image until the
category is done, whatever its size; where the disk has no room, the category goes without draws and says so.
"""

from __future__ import annotations

import logging
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from inpbench.harness.metrics import METRICS, intervals
from inpbench.harness.metrics.bootstrap import draw_metrics, pixel_counts
from inpbench.harness.samples import DRAWS, JACKKNIFE

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("inpbench")


def seed_of(manifest: str, category: str) -> int:
    """The seed of a category's draws: from the hash of the data set's listing and the category's name, so from the record."""
    return zlib.crc32(f"{manifest}/{category}".encode())


class Drawing:
    """What the bootstrap of one category needs, collected batch by batch. `close` in any case."""

    def __init__(self, folder: Path, seed: int) -> None:
        """folder: where the temporary files lie. seed: of `seed_of`."""
        self._seed = seed
        self._shape: tuple[int, ...] = ()
        self._has_pixels: list[bool] = []
        self._files: list[IO[bytes]] = []
        self._pending: tuple[list[torch.Tensor], torch.cuda.Event | None] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(2):
                self._files.append(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115  closed by `close`
        except OSError as error:
            self._give_up(error)

    def add(self, maps: torch.Tensor, masks: torch.Tensor, has_pixels: torch.Tensor) -> None:
        """maps: (B, H, W) smoothed. masks: (B, H, W) bool, on any device. has_pixels: (B,) bool on the host."""
        self._has_pixels += has_pixels.tolist()
        if not self._files or not has_pixels.any():
            return
        if not has_pixels.all():
            chosen = has_pixels.nonzero().flatten()
            maps, masks = (part.index_select(0, chosen.to(part.device)) for part in (maps, masks))
        # On a GPU this batch is copied while the next one is computed; nobody waits but for the batch before.
        parts = [part.to("cpu", non_blocking=True) for part in (maps.float(), masks)]
        ready = torch.cuda.Event() if maps.is_cuda else None  # type: ignore[no-untyped-call]
        if ready is not None:
            ready.record()
        self._shape = tuple(maps.shape[1:])
        self._write()
        self._pending = (parts, ready)

    def _write(self) -> None:
        """Write the batch that was copied last."""
        if self._pending is None:
            return
        parts, ready = self._pending
        self._pending = None
        if ready is not None:
            ready.synchronize()
        try:
            for file, part in zip(self._files, parts, strict=False):
                file.write(part.numpy().tobytes())
        except OSError as error:
            self._give_up(error)

    def finish(
        self, scores: NDArray[Any], labels: NDArray[Any], measured: Mapping[str, float | None]
    ) -> dict[str, list[list[float]]] | None:
        """The arrays of harness/samples.py: METRICS in every draw (7, D), and with each image left out (7, I), NaN for no value.

        scores, labels: (I,) of all images in the order of `add`. measured: the metrics of the category: draws are counted in bins
        and by the exact definition, and are moved by what that differs from the value they belong to. None without labels, or
        without room on the disk.
        """
        if not self._files or not np.isin(labels, (0, 1)).all():
            return None
        self._write()
        if not self._files:
            return None
        has_pixels = np.asarray(self._has_pixels)
        counts = None
        if has_pixels.any():
            shape = (int(has_pixels.sum()), *self._shape)
            for file in self._files:
                file.flush()
            maps: NDArray[np.float32] = np.memmap(self._files[0], np.float32, "r", shape=shape)
            masks: NDArray[np.bool_] = np.memmap(self._files[1], np.bool_, "r", shape=shape)
            counts = pixel_counts(maps, masks)
        drawn = draw_metrics(scores, labels, counts, has_pixels, seed=self._seed)
        values, left_out = np.full((len(METRICS), intervals.DRAWS), np.nan), np.full((len(METRICS), len(labels)), np.nan)
        for row, metric in enumerate(METRICS):
            value = measured.get(metric)
            if metric in drawn.values and value is not None:
                values[row] = np.clip(drawn.values[metric] + (value - drawn.measured[metric]), 0, 1)
                left_out[row] = drawn.changes[metric]
        return {DRAWS: values.astype(np.float32).tolist(), JACKKNIFE: left_out.astype(np.float32).tolist()}

    def close(self) -> None:
        """Drop the temporary files."""
        for file in self._files:
            file.close()
        self._files = []

    def _give_up(self, error: OSError) -> None:
        log.warning("no room for the maps of the bootstrap (%s): this category gets no intervals.", error.strerror or error)
        self.close()
