"""`bench predict`: a trained model on image files: scores, raw maps, overlays, verdicts."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inpbench.harness.cli import run_options as option
from inpbench.harness.cli.options import Json, Results, Set, results_folder
from inpbench.harness.console import harmless
from inpbench.harness.errors import UsageError

if TYPE_CHECKING:
    import torch

    from inpbench.harness.api import Progress, Size
    from inpbench.harness.predictor import Predictor
    from inpbench.harness.thresholds import Threshold
    from inpbench.harness.trained import Trained
    from inpbench.harness.weights import WeightStore


class MapFormat(str, Enum):
    """How raw maps are written."""

    npy = "npy"
    tiff = "tiff"
    none = "none"


CATEGORY = "What the images show: its model, threshold and scale; methods that are told the category must have it."
NORMAL = "Normal images: for the quantile, instead of the record's; the references of a method that is told the category."


def predict(
    images: Annotated[Path, typer.Option("--images", "-i", metavar="PATH", help="A file, or a folder with all below it.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for scores, maps and overlays.")],
    record: Annotated[str, typer.Argument(metavar="[RECORD]", help="Id of a record with a kept model, or its beginning.")] = "",
    threshold: Annotated[
        str | None,
        typer.Option(help="quantile=Q (of normal images), f1, none, or a number. Default: quantile=0.995 where scores are known."),
    ] = None,
    normal: Annotated[Path | None, typer.Option("--normal", metavar="DIR", help=NORMAL)] = None,
    category: Annotated[str | None, typer.Option("--category", help=CATEGORY)] = None,
    maps: Annotated[MapFormat, typer.Option("--maps", help="Raw maps as float32 npy or tiff, or none.")] = MapFormat.npy,
    overlays: Annotated[bool, typer.Option("--overlays/--no-overlays", help="Draw a PNG of each image with its map.")] = True,
    scale: Annotated[
        str | None, typer.Option("--scale", metavar="LOW,HIGH", help="Ends of the colour scale, in map units.")
    ] = None,
    tile: Annotated[str | None, typer.Option("--tile", metavar="PX|HxW", help="Score in tiles of this many image pixels.")] = None,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="Pixels that neighbouring tiles share.")] = 64,
    strict: Annotated[
        bool, typer.Option("--strict/--lenient", help="Stop at a bad file, or skip it and say why in its row.")
    ] = True,
    model: Annotated[str | None, typer.Option("--model", help="Which model of a record that has several (its category).")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="FILE|DIR", help="An official model.pth, instead of a record.")
    ] = None,
    methods: Annotated[str, typer.Option("--methods", "-m", help="The checkpoint's method, or one that is not trained.")] = "",
    preset: option.Preset = "paper",
    encoder: option.Encoder = None,
    set_: Set = None,
    weights: option.Weights = None,
    download: option.Download = False,
    device: option.Device = "auto",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images, or tiles, at once.")] = 8,
    results: Results = None,
    json_: Json = False,
    display: option.Display = option.DisplayMode.auto,
) -> None:
    """Score images with a trained model; maps lie on each image's own pixels, colours mean the same in all of them.

    bench predict 3f9c1a20 --images photos --out predicted --threshold quantile=0.995

    bench predict --methods winclip --category "metal nut" --images photos --out predicted
    """
    from inpbench.harness.cli.where import find_device
    from inpbench.harness.console import Live
    from inpbench.harness.predictor import Predictor
    from inpbench.harness.thresholds import parse_rule
    from inpbench.harness.weights import WeightStore

    if (bool(record) and checkpoint is not None) or not (record or checkpoint or methods):
        raise UsageError(
            "bench predict needs a RECORD, --checkpoint, or a method that is not trained (--methods winclip): one of them.",
            "Type: bench predict RECORD --images PATH --out DIR",
        )
    if threshold is not None:
        parse_rule(threshold)
    ends = None if scale is None else _ends(scale)
    tile_size = None if tile is None else _tile_size(tile)
    _check_out(out, images)
    torch_device = find_device(device)
    if record:
        trained = _record_model(record, results, weights, download, torch_device, model, category, normal)
    else:
        store = WeightStore(weights, download=download)
        trained = _model_of_method(checkpoint, methods, preset, encoder, set_ or [], store, torch_device, category, normal)
    predictor = Predictor(
        trained.method, trained.preprocess, torch_device, trained.scoring, tile_size, overlap if tile_size else 0, batch
    )
    live = Live(display.value)
    with live:
        content = _work(
            predictor, trained, images, out, threshold, normal, maps.value, overlays, ends, strict, live.task("predict")
        )
    _print(content, out, trained, live, json_, display)


def _ends(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--scale takes two numbers, found '{text}'.", "Type for example: --scale 0.1,0.6") from None
    return low, high


def _tile_size(text: str) -> Size:
    try:
        sides = [int(part) for part in text.lower().split("x")]
        height, width = sides if len(sides) == 2 else (*sides, *sides)
    except ValueError:
        raise UsageError(f"--tile takes pixels or HEIGHTxWIDTH, found '{text}'.", "Type for example: --tile 448") from None
    return height, width


def _check_out(out: Path, images: Path) -> None:
    """Results inside the folder of images would be taken for images the next time."""
    if images.is_dir() and (out.resolve() == images.resolve() or images.resolve() in out.resolve().parents):
        raise UsageError(f"--out {out} lies inside --images {images}.", "Choose a folder elsewhere.")


def _record_model(
    record: str,
    results: Path | None,
    weights: str | None,
    download: bool,
    device: torch.device,
    model: str | None,
    category: str | None,
    normal: Path | None,
) -> Trained:
    from inpbench.harness.records import RecordStore
    from inpbench.harness.trained import from_record

    return from_record(RecordStore(results_folder(results)), record, weights, download, device, model, category, normal)


def _model_of_method(
    checkpoint: Path | None,
    methods: str,
    preset: str,
    encoder: str | None,
    changes: list[str],
    weights: WeightStore,
    device: torch.device,
    category: str | None,
    normal: Path | None,
) -> Trained:
    from inpbench.harness.params import split_settings
    from inpbench.harness.trained import from_checkpoint, from_nothing

    if not methods:
        raise UsageError("--checkpoint needs its method.", "Type: --methods inp_former")
    asked = split_settings(changes)
    if others := set(asked) - {methods}:
        raise UsageError(f"--set {sorted(others)[0]}.…: only {methods} has parameters here.", f"Type: --set {methods}.KEY=VALUE")
    described = (methods, preset, encoder, asked.get(methods, {}), weights, device, category, normal)
    return from_nothing(*described) if checkpoint is None else from_checkpoint(checkpoint, *described)


def _work(
    predictor: Predictor,
    trained: Trained,
    images: Path,
    out: Path,
    threshold: str | None,
    normal: Path | None,
    form: Any,
    overlays: bool,
    ends: tuple[float, float] | None,
    strict: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Score, choose threshold and scale, draw, write. Returns the content of scores.json."""
    from inpbench.harness import predictions
    from inpbench.harness.colours import make_scale
    from inpbench.harness.image_files import find_images

    fixed = None if ends is None else make_scale(*ends)
    root, files = find_images(images)
    limit = _threshold(predictor, trained, threshold, normal, strict, progress)
    with tempfile.TemporaryDirectory() as scratch:
        kept = (Path(scratch) if form == "none" else out) / "maps"
        run = predictions.score_images(predictor, root, files, kept if overlays or form != "none" else None, form, strict, progress)
        reference = None if predictor.tile else trained.scores
        found, source = (fixed, "--scale") if fixed is not None else predictions.scale_of(run, reference)
        predictions.judge(run, limit)
        if overlays:
            predictions.draw_overlays(run, root, kept, out, found, limit, progress)
        if form == "none":
            for row in run.rows:
                row.map = ""
    facts = {**trained.facts, "tile": predictor.tile, "overlap": predictor.overlap, "images": str(images)}
    content = predictions.document(run, facts, limit, found, source)
    predictions.write_scores(out, content, run)
    return content


def _threshold(
    predictor: Predictor, trained: Trained, text: str | None, normal: Path | None, strict: bool, progress: Progress
) -> Threshold | None:
    """The threshold that was asked for; by default the 0.995 quantile where there are scores of normal images."""
    import numpy as np

    from inpbench.harness import thresholds
    from inpbench.harness.image_files import find_images
    from inpbench.harness.predictions import score_images

    recorded = trained.scores is not None and predictor.tile is None
    references, normal = normal, None if trained.category is not None else normal
    if text is None:
        text = "quantile=0.995" if recorded or normal is not None else "none"
    rule = thresholds.parse_rule(text)
    if normal is not None and rule.kind != "quantile":
        raise UsageError(f"--normal has no use with --threshold {text}.", "Type: --threshold quantile=0.995")
    if rule.kind == "none":
        return None
    if rule.kind == "value":
        return thresholds.Threshold(rule.number, text, "given")
    if normal is None and not recorded:
        why = "this model has no scores of test images"
        if trained.scores is not None:
            why = "tiles have other scores than the record's whole images"
        if references is not None:
            raise UsageError(
                f"--threshold {text}: the images of --normal are references, whose own scores would be too low.",
                "Type: --threshold NUMBER",
            )
        raise UsageError(
            f"--threshold {text}: {why}.", "Type: --normal DIR --threshold quantile=0.995, with a folder of normal images"
        )
    if normal is not None:
        root, files = find_images(normal)
        run = score_images(predictor, root, files, None, "none", strict, progress)
        scores, source = np.array([row.score for row in run.done]), f"images of {normal}"
    else:
        assert trained.scores is not None and trained.labels is not None
        if rule.kind == "f1":
            value = thresholds.f1_threshold(trained.scores, trained.labels)
        scores, source = trained.scores[trained.labels == 0], "normal test images of the record"
    if rule.kind == "quantile":
        value = thresholds.quantile_threshold(scores, rule.number)
    return thresholds.Threshold(value, text, source, len(scores), int((scores > value).sum()))


def _print(content: dict[str, Any], out: Path, trained: Trained, live: Any, json_: bool, display: option.DisplayMode) -> None:
    """The scores on stdout (all as JSON, or the first 30 as lines), what was written on stderr."""
    import json

    rows = content["images"]
    if json_:
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        for row in rows[:30]:
            score = f"{row['score']:.4g}" if row["score"] is not None else "-"
            reason = f"  ({row['reason']})" if row["reason"] else ""
            typer.echo(harmless(f"{score:>9}  {row['verdict'] or row['status']:9}  {row['image']}{reason}"))
        if len(rows) > 30:
            typer.echo(f"... and {len(rows) - 30} more in {out / 'scores.csv'}")
    if display is option.DisplayMode.none:
        return
    limit = content["threshold"]
    if limit is not None:
        of = (
            f" ({limit['rule']}, {limit['source']}: {limit['false_alarms']} of {limit['normal_images']} above)"
            if limit["normal_images"]
            else ""
        )
        live.console.print(f"Threshold {limit['value']:.4g}{of}", markup=False, soft_wrap=True)
    if limit is not None and limit["normal_images"] and limit["false_alarms"] == limit["normal_images"]:
        message = (
            "Warning: F1 is highest when every image is called anomalous; --threshold quantile=0.995 looks at normal images only."
        )
        live.console.print(message, markup=False, style="yellow", soft_wrap=True)
    if limit is None and (content["model"]["tile"] is not None or trained.scores is None):
        how = "--normal DIR chooses one from normal images" if trained.category is None else "--threshold NUMBER gives one"
        live.console.print(f"No threshold, so no verdicts: {how}.", markup=False)
    for mark in trained.facts.get("marks", []):
        live.console.print(f"Model: {mark}", markup=False)
    skipped = sum(row["status"] == "skipped" for row in rows)
    live.console.print(
        f"{trained.title}: {len(rows) - skipped} images scored, {skipped} skipped. Wrote {out}", markup=False, soft_wrap=True
    )
