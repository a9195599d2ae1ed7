"""What `--save-maps` leaves beside a record, in `<id12>.maps/`: the maps of every test image, and one sheet a category.

`<category>.npy` holds the smoothed maps (N, 256, 256) float32, exactly what the metrics saw; `<category>.json` the image paths,
scores and labels in the same order; `<category>.png` the sheet. Nothing of it is part of the record or of its identity. Maps go
to the disk batch by batch: 256 KiB an image, whatever the data set's size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inpbench.harness.atomic import write_text
from inpbench.harness.colours import make_scale
from inpbench.harness.errors import RecordError, UsageError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from inpbench.harness.api import Method
    from inpbench.harness.plan import Cell


@dataclass(frozen=True)
class MapsOf:
    """Which images a sheet shows; the maps of all are kept."""

    best: bool = True  # the clearest: the anomalous image with the highest score, the normal one with the lowest
    worst: bool = True  # the most mistaken: the anomalous image with the lowest score, the normal one with the highest
    others: int = 4  # this many more, evenly through the test images

    def choose(self, scores: Sequence[float], labels: Sequence[int]) -> dict[int, str]:
        """Position of each chosen image -> why, in the order of the sheet. scores, labels: (N,)."""
        order = np.argsort(np.asarray(scores), kind="stable")
        anomalous = [int(i) for i in order if labels[i] == 1]
        normal = [int(i) for i in order if labels[i] == 0]
        wanted = []
        if self.worst:
            wanted += [(anomalous[:1], "worst: lowest anomalous"), (normal[-1:], "worst: highest normal")]
        if self.best:
            wanted += [(anomalous[-1:], "best: highest anomalous"), (normal[:1], "best: lowest normal")]
        chosen: dict[int, str] = {}
        for positions, why in wanted:
            for position in positions:
                chosen.setdefault(position, why)
        left = [i for i in range(len(scores)) if i not in chosen]
        count = min(self.others, len(left))
        chosen |= dict.fromkeys((left[(2 * k + 1) * len(left) // (2 * count)] for k in range(count)), "chosen")
        return chosen


def parse_maps_of(text: str) -> MapsOf:
    """`best,worst,4` in any order and number; raises `UsageError` for anything else."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    numbers = [word for word in words if word.isdecimal()]
    if len(numbers) > 1 or set(words) - set(numbers) - {"best", "worst"} or not words:
        raise UsageError(f"--maps-of takes best, worst and a number, found '{text}'.", "Type: --maps-of best,worst,4")
    return MapsOf("best" in words, "worst" in words, int(numbers[0]) if numbers else 0)


class MapKeeper:
    """The maps of one category, on their way to the disk while it is tested."""

    def __init__(self, folder: Path, category: str, which: MapsOf) -> None:
        self._folder, self._category, self._which = folder, category, which
        self._stem = _stem(category)
        self._raw, self._whole = folder / f".{self._stem}.raw.tmp", folder / f".{self._stem}.npy.tmp"
        self._shape: tuple[int, ...] = ()
        self._count, self._high = 0, -np.inf
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._raw.open("wb")
        except OSError as error:
            raise RecordError(f"Cannot write maps to {folder}: {error.strerror or error}.", "Leave --save-maps out.") from error

    @staticmethod
    def complete(folder: Path, category: str) -> bool:
        """Whether a category's maps and sheet are all there."""
        return all((folder / f"{_stem(category)}{suffix}").is_file() for suffix in (".npy", ".json", ".png"))

    def add(self, smoothed: torch.Tensor) -> None:
        """smoothed: (B, 256, 256)."""
        from inpbench.harness.scoring import image_scores

        maps = smoothed.float().cpu().numpy()
        self._high = max(self._high, float(image_scores(smoothed).max()))
        self._shape, self._count = maps.shape[1:], self._count + len(maps)
        maps.tofile(self._file)

    def finish(self, cell: Cell, method: Method, samples: dict[str, list[Any]], device: torch.device) -> None:
        """Write the three files. samples: image, score and label of every map, in order."""
        from inpbench.harness.map_sheet import draw_sheet

        self._file.close()
        maps: NDArray[np.float32] = np.memmap(self._raw, np.float32, "r", shape=(self._count, *self._shape))
        with self._whole.open("wb") as file:
            np.save(file, maps, allow_pickle=False)
        self._whole.replace(self._folder / f"{self._stem}.npy")
        write_text(self._folder / f"{self._stem}.json", json.dumps(samples, ensure_ascii=False))
        chosen = self._which.choose(samples["score"], samples["label"])
        scale = make_scale(float(np.median(maps[:: max(1, len(maps) // 64)])), self._high)
        draw_sheet(cell, self._category, method, samples, maps, chosen, scale, self._folder / f"{self._stem}.png", device)

    def close(self) -> None:
        """Drop what is unfinished; called in any case, after `finish` too."""
        self._file.close()
        self._raw.unlink(missing_ok=True)
        self._whole.unlink(missing_ok=True)


def _stem(category: str) -> str:
    """A category's file name: one level, whatever the category is called."""
    return category.replace("/", "_")
