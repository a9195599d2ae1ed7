"""Predict a folder: scores, raw maps and overlays, on one colour scale and against one threshold.

First every image is scored and its map written; then, the scale being known, the overlays are drawn; `scores.csv` and
`scores.json` come last and name everything else, so that a folder with them is complete. A file that cannot be decoded stops a
strict run; a lenient one leaves it out and says why in its row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from inpbench.harness.atomic import write_bytes, write_text
from inpbench.harness.colours import Scale, make_scale
from inpbench.harness.errors import NothingError
from inpbench.harness.image_files import output_names
from inpbench.harness.spreadsheet import as_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.api import Progress
    from inpbench.harness.predictor import Predictor
    from inpbench.harness.thresholds import Threshold

MapFormat = Literal["npy", "tiff", "none"]
SUFFIX = {"npy": ".npy", "tiff": ".tiff"}


@dataclass(kw_only=True)
class Row:
    """One image in `scores.csv` and `scores.json`."""

    image: str  # relative to the folder asked for
    status: Literal["ok", "skipped"] = "ok"
    score: float | None = None
    verdict: str = ""  # normal or anomalous, where there is a threshold
    width: int | None = None  # of the image file and of its map, in pixels
    height: int | None = None
    map: str = ""  # relative to the output folder
    overlay: str = ""
    reason: str = ""  # why it was skipped


@dataclass
class Run:
    """The rows of a folder and what they share."""

    rows: list[Row] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)  # of the images that are ok: mean of the highest map values
    medians: list[float] = field(default_factory=list)  # of their maps

    @property
    def done(self) -> list[Row]:
        """The rows of images that were scored."""
        return [row for row in self.rows if row.status == "ok"]


def score_images(
    predictor: Predictor, root: Path, files: Sequence[str], maps: Path | None, form: MapFormat, strict: bool, progress: Progress
) -> Run:
    """Score every file below `root`; write its map below `maps` unless that is None.

    Raises `UnreadableError` for the first bad file when strict, `NothingError` when no file can be decoded.
    """
    from inpbench.harness.images import UnreadableError, image_size, read_for, read_image

    if strict:  # a broken header is found before the first image is scored
        for file in files:
            try:
                image_size(root / file, file)
            except UnreadableError:
                read_image(root / file, file)  # says in clearer words what is wrong
                raise
    names, run = output_names(list(files)), Run()
    for start in range(0, len(files), predictor.batch):
        progress(start, len(files), "scoring")
        pictures = []
        for file in files[start : start + predictor.batch]:
            try:
                image = read_for(root / file, file, predictor.preprocess)
            except UnreadableError as error:
                if strict:
                    raise
                run.rows.append(Row(image=file, status="skipped", reason=error.reason))
                continue
            row = Row(image=file, width=image.width, height=image.height)
            run.rows.append(row)
            pictures.append((row, image))
        if not pictures:
            continue
        for (row, _), result in zip(pictures, predictor([image for _, image in pictures]), strict=True):
            row.score = result.score
            run.levels.append(result.level)
            run.medians.append(float(np.nanmedian(result.amap)))
            if maps is not None:
                row.map = f"{maps.name}/{names[row.image]}{SUFFIX.get(form, '.npy')}"
                write_bytes(maps.parent / row.map, map_bytes(result.amap, form))
    progress(len(files), len(files), "scoring")
    if not run.done:
        raise NothingError(f"None of the {len(files)} files in {root} could be decoded.", f"The first: {run.rows[0].reason}.")
    return run


def map_bytes(amap: NDArray[np.float32], form: MapFormat) -> bytes:
    """float32, NaN where nothing was scored; as TIFF one uncompressed channel of floats."""
    buffer = io.BytesIO()
    if form == "tiff":
        from PIL import Image

        Image.fromarray(amap).save(buffer, "TIFF")
    else:
        np.save(buffer, amap, allow_pickle=False)
    return buffer.getvalue()


def _read_map(path: Path) -> NDArray[np.float32]:
    if path.suffix == ".tiff":
        from PIL import Image

        with Image.open(path, formats=("TIFF",)) as image:
            return np.asarray(image, dtype=np.float32)
    amap: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return amap


def scale_of(run: Run, reference: NDArray[np.float64] | None) -> tuple[Scale, str]:
    """The colour scale of a whole folder, and where it comes from.

    reference: (N,) scores of the record's test images; from the lowest to the highest, so that what every image has stays dark.
    Without one, or where the method's scores are no map values: from the median of the maps to the highest level of this run.
    """
    own_scores = any(
        abs(row.score - level) > 1e-6 * abs(level) for row, level in zip(run.done, run.levels, strict=True) if row.score
    )
    if reference is not None and len(reference) > 1 and not own_scores:
        scale = make_scale(float(reference.min()), float(reference.max()))
        return scale, "lowest to highest image score of the record's test images"
    return make_scale(float(np.median(run.medians)), max(run.levels)), "median of the maps to highest level of these images"


def draw_overlays(
    run: Run, root: Path, maps: Path, out: Path, scale: Scale, threshold: Threshold | None, progress: Progress
) -> None:
    """Write `overlays/<name>.png` for each scored image; its map is read from below `maps.parent`."""
    from inpbench.harness.images import read_image
    from inpbench.harness.overlays import overlay_picture

    names = output_names([row.image for row in run.rows])
    for index, row in enumerate(run.done):
        progress(index, len(run.done), "drawing")
        assert row.score is not None
        image = np.asarray(read_image(root / row.image, row.image))
        picture = overlay_picture(image, _read_map(maps.parent / row.map), scale, row.score, threshold.value if threshold else None)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        row.overlay = f"overlays/{names[row.image]}.png"
        write_bytes(out / row.overlay, buffer.getvalue())
    progress(len(run.done), len(run.done), "drawing")


def judge(run: Run, threshold: Threshold | None) -> None:
    """Fill in the verdicts: anomalous where `score > threshold`."""
    for row in run.done:
        assert row.score is not None
        row.verdict = "" if threshold is None else "anomalous" if row.score > threshold.value else "normal"


def document(run: Run, facts: dict[str, Any], threshold: Threshold | None, scale: Scale, scale_source: str) -> dict[str, Any]:
    """The content of `scores.json`."""
    return {
        "model": facts,
        "threshold": None if threshold is None else asdict(threshold),
        "colour_scale": {"low": scale.low, "high": scale.high, "source": scale_source},
        "images": [asdict(row) for row in run.rows],
    }


def write_scores(out: Path, content: dict[str, Any], run: Run) -> None:
    """`scores.json` and `scores.csv`, floats with every digit."""
    write_text(out / "scores.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(asdict(run.rows[0])), lineterminator="\n")
    writer.writeheader()
    for row in run.rows:
        writer.writerow({key: as_text(value) if isinstance(value, str) else value for key, value in asdict(row).items()})
    write_text(out / "scores.csv", buffer.getvalue())
