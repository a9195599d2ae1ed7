"""What `--save-maps` leaves beside a record, in `<id12>.maps/`: the maps of every test image, and one sheet a category.

`<category>.npy` holds the smoothed maps (N, 256, 256) float32 and `<category>.masks.npy` the ground truth (N, 256, 32) uint8,
eight pixels a byte: exactly what the metrics saw (harness/rescore.py). `<category>.inputs.npy` holds small pictures (N, h, w, 3)
uint8 of what the method saw, for the report; `<category>.json` the image paths, scores, labels and `has_pixels` in the same order;
`<category>.png` is the sheet. Nothing of it is part of the record or of its identity. Maps go to the disk batch by batch: at most
340 KiB an image in all, whatever the data set's size.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inpbench.harness.atomic import cannot, write_bytes, write_text
from inpbench.harness.colours import make_scale
from inpbench.harness.errors import RecordError, UsageError
from inpbench.harness.small_files import read_json

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from inpbench.harness.api import Method, Preprocess
    from inpbench.harness.plan import Cell


PICTURE_PX = 160  # longer side of a kept picture


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
        self._masks: list[NDArray[np.uint8]] = []
        self._has_pixels: list[bool] = []
        self._inputs: list[NDArray[np.uint8]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._raw.open("wb")
        except OSError as error:
            raise RecordError(f"Cannot write maps to {folder}: {error.strerror or error}.", "Leave --save-maps out.") from error

    @staticmethod
    def complete(folder: Path, category: str) -> bool:
        """Whether a category's maps and sheet are all there."""
        return all(
            (folder / f"{_stem(category)}{suffix}").is_file() for suffix in (".npy", ".masks.npy", ".inputs.npy", ".json", ".png")
        )

    def add(self, smoothed: torch.Tensor, masks: torch.Tensor, has_pixels: torch.Tensor, pictures: NDArray[np.uint8]) -> None:
        """smoothed: (B, 256, 256) float. masks: (B, 256, 256) bool. has_pixels: (B,) bool. pictures: (B, h, w, 3), of `small`."""
        from inpbench.harness.scoring import image_scores

        maps = smoothed.float().cpu().numpy()
        self._high = max(self._high, float(image_scores(smoothed).max()))
        self._shape, self._count = maps.shape[1:], self._count + len(maps)
        self._masks.append(np.packbits(masks.cpu().numpy(), axis=-1))
        self._has_pixels += has_pixels.tolist()
        self._inputs.append(pictures)
        try:
            maps.tofile(self._file)
        except OSError as error:  # numpy gives it no number
            raise RecordError(
                f"Cannot write maps to {self._folder}: {error}.", "Free some space, or leave --save-maps out."
            ) from error

    def finish(self, cell: Cell, method: Method, samples: dict[str, list[Any]], device: torch.device) -> None:
        """Write the five files. samples: image, score and label of every map, in order."""
        from inpbench.harness.map_sheet import draw_sheet

        try:
            self._file.close()
            maps: NDArray[np.float32] = np.memmap(self._raw, np.float32, "r", shape=(self._count, *self._shape))
            with self._whole.open("wb") as file:
                np.save(file, maps, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            self._whole.replace(self._folder / f"{self._stem}.npy")
        except OSError as error:
            raise cannot(f"write maps to {self._folder}", error) from error
        for suffix, parts in (("masks", self._masks), ("inputs", self._inputs)):
            packed = io.BytesIO()
            np.save(packed, np.concatenate(parts), allow_pickle=False)
            write_bytes(self._folder / f"{self._stem}.{suffix}.npy", packed.getvalue())
        facts = {key: samples[key] for key in ("image", "score", "label")} | {"has_pixels": self._has_pixels}
        write_text(self._folder / f"{self._stem}.json", json.dumps(facts, ensure_ascii=False))
        chosen = self._which.choose(samples["score"], samples["label"])
        scale = make_scale(float(np.median(maps[:: max(1, len(maps) // 64)])), self._high)
        draw_sheet(cell, self._category, method, samples, maps, chosen, scale, self._folder / f"{self._stem}.png", device)

    def close(self) -> None:
        """Drop what is unfinished; called in any case, after `finish` too."""
        with contextlib.suppress(OSError):  # the bytes that a full disk refused
            self._file.close()
        self._raw.unlink(missing_ok=True)
        self._whole.unlink(missing_ok=True)


def small(images: torch.Tensor, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Normalised inputs (B, 3, H, W) as pictures (B, h, w, 3) uint8, the longer side PICTURE_PX."""
    import torch

    height, width = images.shape[-2:]
    size = (max(1, round(PICTURE_PX * height / max(height, width))), max(1, round(PICTURE_PX * width / max(height, width))))
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (preprocess.mean, preprocess.std))
    unit = torch.nn.functional.interpolate(images.float() * std + mean, size, mode="bilinear", antialias=True).clamp(0, 1)
    pictures: NDArray[np.uint8] = (unit * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pictures


class KeptMaps(NamedTuple):
    """The maps of one category, read back."""

    images: list[str]
    maps: NDArray[np.float32]  # (N, H, W), memory-mapped
    masks: NDArray[np.bool_]  # (N, H, W)
    scores: list[float]
    labels: list[int]
    has_pixels: list[bool]


def read_maps(folder: Path, category: str) -> KeptMaps:
    """What `MapKeeper` wrote. Raises `RecordError` naming the file that is missing, broken or of other images."""
    stem = _stem(category)
    again = "Run the cell again with --save-maps --force."
    try:
        facts = read_json(folder / f"{stem}.json")
        maps = _mapped(folder / f"{stem}.npy", np.float32, 3)
        packed = _mapped(folder / f"{stem}.masks.npy", np.uint8, 3)
        masks = np.unpackbits(packed, axis=-1, count=maps.shape[-1]).astype(np.bool_)
        lists = [_listed(facts, key, kind) for key, kind in _LISTS.items()]
    except FileNotFoundError as error:
        raise RecordError(f"There are no kept maps of {category}: {error.filename} is missing.", again) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RecordError(f"The kept maps of {category} in {folder} cannot be read: {error}.", again) from error
    if masks.shape != maps.shape or any(len(item) != len(maps) for item in lists):
        raise RecordError(f"The kept maps of {category} in {folder} are not of the same images.", again)
    return KeptMaps(lists[0], maps, masks, *lists[1:])


def read_inputs(folder: Path, category: str) -> NDArray[np.uint8]:
    """The small pictures (N, h, w, 3) of the tested images. Raises `RecordError`."""
    try:
        pictures: NDArray[np.uint8] = _mapped(folder / f"{_stem(category)}.inputs.npy", np.uint8, 4)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RecordError(
            f"The kept pictures of {category} in {folder} cannot be read: {error}.", "Run the cell again with --save-maps --force."
        ) from error
    return pictures


_LISTS: dict[str, type] = {"image": str, "score": float, "label": int, "has_pixels": bool}


def _listed(facts: Any, key: str, kind: type) -> list[Any]:
    found = facts[key]
    if not isinstance(found, list) or any(type(item) is not kind for item in found):
        raise TypeError(f"'{key}' must be a list of {kind.__name__}")
    return found


def _mapped(file: Path, dtype: type, dimensions: int) -> NDArray[Any]:
    """A memory-mapped array of this type: what a header promises and the file does not hold is an error, and takes no memory."""
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy reads a header as Python text, and a damaged one can raise anything; none of it runs
        raise ValueError(f"{file.name} is no array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != dimensions:
        raise ValueError(f"{file.name} is no array of {dimensions} dimensions of {np.dtype(dtype).name}")
    return array


def _stem(category: str) -> str:
    """A category's file name: one level, whatever the category is called."""
    return category.replace("/", "_")
