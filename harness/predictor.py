"""A trained method on image files: score and map of each, on the image's own pixels.

Whole images take the road of `bench run` (resize, crop, method, `harness.scoring`), so an image has the score that its record
has. The map is the smoothed map that the metrics see, put back onto the image; its units are the method's, nothing is rescaled.
With tiles each tile takes that road (`harness.tiles`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from inpbench.harness.api import Method, Preprocess, Size
from inpbench.harness.errors import MetricError
from inpbench.harness.geometry import map_on_image
from inpbench.harness.images import check_preprocess, image_at_crop
from inpbench.harness.loading import Normaliser
from inpbench.harness.scoring import DEFAULT_SCORING, Scoring, image_scores, smooth_maps
from inpbench.harness.tiles import Blend, check_tiles, tile_boxes, tile_preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from PIL import Image


class Scored(NamedTuple):
    """What is known of one image."""

    score: float  # higher is more anomalous
    amap: NDArray[np.float32]  # (height, width) of the image file; NaN where nothing was scored
    level: float  # mean of the highest map values: the score itself, unless the method gives its own


@dataclass
class Predictor:
    """See the module docstring. tile: (height, width) in image pixels, or None for whole images."""

    method: Method
    preprocess: Preprocess
    device: torch.device
    scoring: Scoring = DEFAULT_SCORING
    tile: Size | None = None
    overlap: int = 0
    batch: int = 8
    _normalise: dict[Preprocess, Normaliser] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_preprocess(self.preprocess)
        if self.tile is not None:
            check_tiles(self.tile, self.overlap)

    def __call__(self, images: Sequence[Image.Image]) -> list[Scored]:
        """RGB images of any sizes -> one result each. Raises `MetricError` for scores or maps that are not finite."""
        if self.tile is not None:
            return [self._tiled(image, self.tile) for image in images]
        results = self._run(images, self.preprocess)
        return [
            Scored(score, map_on_image(smooth, (image.height, image.width), self.preprocess), level)
            for image, (score, smooth, level) in zip(images, results, strict=True)
        ]

    def _tiled(self, image: Image.Image, tile: Size) -> Scored:
        size = image.height, image.width
        boxes, preprocess = tile_boxes(size, tile, self.overlap), tile_preprocess(self.preprocess)
        blend, scores, levels = Blend(size, self.overlap), [], []
        for start in range(0, len(boxes), self.batch):
            some = boxes[start : start + self.batch]
            pieces = [image.crop((box.left, box.top, box.right, box.bottom)) for box in some]
            for box, (score, smooth, level) in zip(some, self._run(pieces, preprocess), strict=True):
                blend.add(box, map_on_image(smooth, box.size, preprocess))
                scores.append(score)
                levels.append(level)
        return Scored(max(scores), blend.result(), max(levels))

    def _run(self, images: Sequence[Image.Image], preprocess: Preprocess) -> list[tuple[float, NDArray[np.float32], float]]:
        """Score, smoothed map (256, 256) and level of each image."""
        normalise = self._normalise.setdefault(preprocess, Normaliser(preprocess, self.device, torch.float32))
        pixels = normalise(np.stack([image_at_crop(image, preprocess) for image in images]))
        with torch.inference_mode():
            prediction = self.method.predict(pixels)
            smoothed = smooth_maps(prediction.amap, preprocess.crop, self.scoring)
            levels = image_scores(smoothed, self.scoring)
            scores = levels if prediction.score is None else prediction.score
        maps = smoothed.float().cpu().numpy()
        found = list(zip(scores.double().cpu().tolist(), maps, levels.double().cpu().tolist(), strict=True))
        if not (np.isfinite(maps).all() and np.isfinite([score for score, _, _ in found]).all()):
            raise MetricError(
                "The model gives scores that are not finite (NaN or infinity).", "Train it again, or use another record."
            )
        return found


def scoring_of(recorded: Mapping[str, Any]) -> Scoring:
    """The scoring constants of a record's identity; constants that this version does not know are not guessed."""
    known = {item.name for item in fields(Scoring)}
    if unknown := set(recorded) - known:
        raise MetricError(f"The record's scoring has constants unknown here: {', '.join(sorted(unknown))}.", "Run the cell again.")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in recorded.items()}
    return Scoring(**values)
