"""What the app can predict with: the kept models of records, and an official checkpoint; each read once, at its first use.

A source gives a smoothed map and a score in one of two modes. `zero_shot`: the distance of each patch to the nearest prototype of
the image itself; needs no training on the object at hand. `reconstruction`: what a trained model is tested with. They are different
quantities on different scales; judging a trained model by its zero-shot map is a known source of false alarms.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inpbench.harness.errors import NothingError, PrerequisiteError, UsageError
from inpbench.harness.marks import TOLD, obstacles
from inpbench.harness.sources import trained_on

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from inpbench.harness.api import Preprocess
    from inpbench.harness.export_graph import Mode
    from inpbench.harness.records import Record, RecordStore
    from inpbench.harness.weights import WeightStore

NEXT = (
    "Train a source model, offline: bench run --methods inp_former --dataset synthetic --encoder builtin --preset demo; "
    "or give one: bench app --checkpoint model.pth"
)


class Answer(NamedTuple):
    """What a source says of an image."""

    amap: NDArray[np.float32]  # (H, W) on the grid of the image, NaN where the model does not look
    score: float  # the bench's: the mean of the highest 1 % of the smoothed map


@dataclass
class Source:
    """A model by its name, loaded when it is first asked; safe to ask from several threads."""

    name: str
    about: str  # where it comes from, for the page
    marks: tuple[str, ...]  # why its numbers are not comparable with published ones
    load: Callable[[], Any] = field(repr=False)
    reads: int = 0  # how often the weights were read
    _method: Any = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def method(self) -> Any:
        """The loaded method; raises what loading raises (`WeightsError`, ...) and tries again at the next call."""
        with self._lock:
            if self._method is None:
                self._method = self.load()
                self.reads += 1
            return self._method

    def modes(self) -> tuple[Mode, ...]:
        """What it can show, the default first."""
        return ("zero_shot", "reconstruction") if hasattr(self.method(), "zero_shot_map") else ("reconstruction",)

    def ask(self, image: Image.Image, mode: Mode) -> Answer:
        """The map and score of an RGB image of any size."""
        import torch

        from inpbench.harness.export_graph import ScoredMethod
        from inpbench.harness.geometry import map_on_image
        from inpbench.harness.images import image_at_crop

        method = self.method()
        preprocess: Preprocess = method.params.preprocess
        graph = ScoredMethod(method, preprocess, mode=mode).to(method.ctx.device)
        pixels = torch.from_numpy(image_at_crop(image, preprocess))[None].to(method.ctx.device).float() / 255
        with self._lock, torch.inference_mode():
            amap, score = graph(pixels)
        return Answer(map_on_image(amap[0].float().cpu().numpy(), (image.height, image.width), preprocess), float(score[0]))


def record_sources(
    store: RecordStore, wanted: Sequence[str], weights: Callable[[Record], WeightStore], device: torch.device
) -> list[Source]:
    """The kept models of the records `wanted` (ids or their beginnings), or of all INP-Former records."""
    from inpbench.harness.models import models_folder

    if wanted:
        records = []
        for id in wanted:
            found = store.find(id)
            if found is None:
                raise NothingError(f"No record '{id}' in {store.folder}.", "Type: bench leaderboard --json")
            records.append(found)
    else:
        records = list(store.all(method="inp_former", status=("done", "trained")))
    sources = []
    for record in records:
        folder = models_folder(store, record)
        names = sorted(path.stem for path in folder.glob("*.safetensors")) if folder.is_dir() else []
        if TOLD in record.marks:
            raise UsageError(
                f"Record {record.id12} ({record.label}) must be told the category of each image, which bench app does not ask for.",
                f"Type: bench predict {record.id12} --category NAME --images PATH --out DIR",
            )
        if wanted and not names:
            raise PrerequisiteError(f"Record {record.id12} ({record.label}) has no kept model in {folder}.", NEXT)
        sources += [_record_source(store, record, name, weights, device) for name in names]
    return sources


def _record_source(
    store: RecordStore, record: Record, name: str, weights: Callable[[Record], WeightStore], device: torch.device
) -> Source:
    from inpbench.harness.models import load_model, rebuild

    def load() -> Any:
        _, state = load_model(store, record, name)
        with tempfile.TemporaryDirectory() as scratch:
            return rebuild(record, weights(record), device, state, Path(scratch))

    identity = record.identity
    trained = name if name != "all" else f"{len(identity['categories'])} categories"
    learned = f" ({trained})" if trained_on(identity) == identity["dataset"] else ""  # of another set: its own categories
    about = f"{record.label}, trained on {trained_on(identity)}{learned}, {identity['setting']}, seed {identity['seed']}"
    return Source(f"{record.id12} {record.label}: {identity['dataset']} {trained}", about, tuple(obstacles(record.marks)), load)


def checkpoint_source(
    path: Path, method: str, preset: str, changes: dict[str, Any], weights: WeightStore, device: torch.device
) -> Source:
    """An official checkpoint of a method with these parameters."""
    from inpbench.harness import params as parameters
    from inpbench.harness.models import from_official
    from inpbench.harness.registry import METHODS

    info = METHODS.get(method)
    if preset not in info.presets:
        raise UsageError(f"{method} has no preset '{preset}'.", f"Known: {', '.join(info.presets)}.")
    params = parameters.build(info.name, info.params, info.presets[preset], changes)

    def load() -> Any:
        return from_official(info, params, device, path, weights, "Type: bench app RECORD")

    return Source(f"{path.name} {method}", f"{method} of the checkpoint {path.name}", _marks(params), load)


def _marks(params: Any) -> tuple[str, ...]:
    return ("built-in encoder",) if getattr(params, "encoder", "") == "builtin" else ()
