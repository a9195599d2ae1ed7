"""`bench export RECORD`: a trained model in the format of its authors, as safetensors, or as a graph with scoring included."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from inpbench.harness.cli.options import Results, results_folder
from inpbench.harness.cli.run_options import Download, Weights
from inpbench.harness.errors import NothingError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from inpbench.harness.export_files import GraphFormat
    from inpbench.harness.records import Record
    from inpbench.harness.weights import WeightStore


class ModelFormat(str, Enum):
    """How a model is written."""

    official = "official"
    safetensors = "safetensors"
    onnx = "onnx"
    torchscript = "torchscript"
    torch_export = "torch_export"


class MapMode(str, Enum):
    """What the anomaly map of a graph is."""

    reconstruction = "reconstruction"
    zero_shot = "zero_shot"


class Pixels(str, Enum):
    """What a graph takes."""

    unit = "unit"
    normalised = "normalised"


FORMATS = "official: the authors' model.pth, encoder included. onnx, torchscript, torch_export: image to anomaly_map and score."
CATEGORY = "Graphs of a method that is told the category: which; else picks the model that was tested on it."
NORMAL = "Graphs of a method that is told the category: its references, instead of those that the model kept."
SCORING = "Graphs: reconstruction (what trained models are tested with) or zero_shot (distance to the nearest prototype)."
PIXELS = "Graphs: `image` is RGB in [0, 1] (unit, normalised inside), or normalised already."


def export(
    record: Annotated[str, typer.Argument(metavar="RECORD", help="Id of a record, or its beginning (at least 6 digits).")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write (a folder, for several official files).")
    ],
    format_: Annotated[ModelFormat, typer.Option("--format", "-f", help=FORMATS)] = ModelFormat.official,
    model: Annotated[str | None, typer.Option("--model", help="Which model of a record that has several (its category).")] = None,
    category: Annotated[str | None, typer.Option("--category", help=CATEGORY)] = None,
    normal: Annotated[Path | None, typer.Option("--normal", metavar="DIR", help=NORMAL)] = None,
    scoring: Annotated[MapMode | None, typer.Option("--scoring", help=SCORING, show_default="the record's setting decides")] = None,
    pixels: Annotated[Pixels, typer.Option("--pixels", help=PIXELS)] = Pixels.unit,
    weights: Weights = None,
    download: Download = False,
    results: Results = None,
) -> None:
    """Write a trained model to a file.

    bench export 3f9c1a20 --out model.pth

    bench export 3f9c1a20 --format onnx --out model.onnx
    """
    from inpbench.harness.models import load_model, model_for
    from inpbench.harness.records import RecordStore
    from inpbench.harness.weights import WeightStore

    graph = format_ not in (ModelFormat.official, ModelFormat.safetensors)
    if graph:
        from inpbench.harness.export_files import require

        require(cast("GraphFormat", format_.value))
    elif scoring is not None or pixels is not Pixels.unit:
        raise UsageError(f"--scoring and --pixels are for graphs, not for --format {format_.value}.", "Type: --format onnx")
    store = RecordStore(results_folder(results))
    found = store.find(record)
    if found is None:
        raise NothingError(f"No record '{record}' in {store.folder}.", "Type: bench leaderboard --json")
    name, state = load_model(store, found, model or model_for(found.identity, category))
    weight_store = WeightStore(weights or _choice(found.identity["weights"]), download=download)
    said = ""
    if graph:
        mode = scoring.value if scoring else "zero_shot" if found.identity["setting"] == "zero_shot" else "reconstruction"
        method = _method(found, weight_store, state)
        entered = _enter(found, method, category or (name if name in found.identity["categories"] else None), normal)
        said = _write_graph(found, name, method, out, format_.value, mode, pixels.value, entered)
    elif format_ is ModelFormat.safetensors:
        from safetensors.torch import save

        from inpbench.harness.atomic import write_bytes

        write_bytes(out, save(state, {"format": "pt", "record": found.id, "model": name}))
    else:
        _write_official(_method(found, weight_store, state), found, out)
    typer.echo(f"wrote {out}: {found.label}, model {name}{said}", err=True)


def _method(record: Record, weights: WeightStore, state: dict[str, Tensor]) -> Any:
    """The method of a record on the CPU."""
    import torch

    from inpbench.harness.models import rebuild

    with tempfile.TemporaryDirectory() as scratch:
        return rebuild(record, weights, torch.device("cpu"), state, Path(scratch))


def _enter(record: Record, method: Any, category: str | None, normal: Path | None) -> str | None:
    """Tell a method the category whose graph is written; None for a method that is told nothing."""
    import torch

    from inpbench.harness.models import preprocess_of
    from inpbench.harness.references import enter_named
    from inpbench.harness.registry import METHODS

    info, known = METHODS.get(record.identity["method"]), record.identity["categories"]
    return enter_named(info, method, category, normal, preprocess_of(record), torch.device("cpu"), known)


def _write_official(method: Any, record: Record, out: Path) -> None:
    import io

    import torch

    from inpbench.harness.atomic import write_bytes

    if not hasattr(method, "official_state"):
        raise UsageError(f"{record.identity['method']} has no official format.", "Type: --format safetensors")
    named = getattr(method, "official_files", None)  # of a method whose authors publish several files
    if named is None or out.suffix:
        files = {out: method.official_state()}
    else:
        files = {out / name: state for name, state in named().items()}
    for path, state in files.items():
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(path, buffer.getvalue())


def _write_graph(
    record: Record, name: str, method: Any, out: Path, format_: str, mode: str, pixels: str, category: str | None
) -> str:
    """Write and check; returns what is said of it: the inputs, the outputs, and how far it is from torch."""
    import json
    from importlib.metadata import version

    from inpbench.harness.export_files import CHECKED, TOLERANCE, write_graph
    from inpbench.harness.export_graph import ScoredMethod, preprocessing
    from inpbench.harness.models import preprocess_of
    from inpbench.harness.scoring import Scoring

    preprocess = preprocess_of(record)
    constants: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in record.identity["scoring"].items()
    }
    graph = ScoredMethod(method, preprocess, mode=cast(Any, mode), pixels=cast(Any, pixels), scoring=Scoring(**constants))
    metadata = {
        "inpbench": version("inpbench"),
        "record": record.id,
        "method": record.identity["method"],
        "model": name,
        **({} if category is None else {"category": category}),
        "scoring": mode,
        "marks": "; ".join(record.marks),
        "preprocessing": json.dumps(preprocessing(preprocess, cast(Any, pixels))),
    }
    differences = write_graph(graph, out, cast("GraphFormat", format_), metadata)
    height, width = graph.crop
    rows, columns = graph.scoring.metric_size
    return (
        f", {mode}\n  image (B, 3, {height}, {width}) {pixels} -> anomaly_map (B, {rows}, {columns}), score (B,)"
        f"\n  against torch on {CHECKED} images: anomaly_map {differences.anomaly_map:.1e}, score {differences.score:.1e} "
        f"(allowed {TOLERANCE:.0e})"
    )


def _choice(weights: dict[str, str]) -> str | None:
    """Random encoder weights are made again from the record's seed; others are looked for as usual."""
    return "random" if "random" in weights.values() else None
