"""Writing a `ScoredMethod` as ONNX, TorchScript or torch.export, and reading it back to prove that it computes the same.

The file appears only after its own runtime (onnxruntime, torch.jit, torch.export) agreed with torch on four images, together and
one by one, to TOLERANCE (of the largest value, where that is above 1): a file that differs is never left behind.
ONNX needs the exporter on top of torch.export, torch 2.6 or newer, where every shape but the batch is a number. The older tracer
takes the shapes that the position embedding needs for tensors and fails on them.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from inpbench.harness.atomic import write_bytes
from inpbench.harness.errors import BenchError, ExportError, PrerequisiteError
from inpbench.harness.export_graph import ScoredMethod

GraphFormat = Literal["onnx", "torchscript", "torch_export"]
Run = Callable[[Tensor], tuple[Tensor, Tensor]]

TOLERANCE = 1e-4
CHECKED = 4  # images of the comparison
LARGEST_BATCH = 4096
INPUT, MAP, SCORE = "image", "anomaly_map", "score"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Differences(NamedTuple):
    """Largest differences between the file and torch, of the value scale where that is above 1."""

    anomaly_map: float
    score: float


def require(format_: GraphFormat) -> None:
    """Raise `PrerequisiteError` for what a format needs and is not there, before any work is done."""
    if format_ != "onnx":
        return
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise PrerequisiteError(f"ONNX needs {', '.join(missing)}, not installed here.", "Type: pip install 'inpbench[export]'")
    if _torch_version() < (2, 6):
        raise PrerequisiteError(
            f"ONNX needs torch 2.6 or newer, found {torch.__version__}.", "Type: pip install -U torch, or: --format torchscript"
        )


def write_graph(graph: ScoredMethod, path: Path, format_: GraphFormat, metadata: Mapping[str, str]) -> Differences:
    """Write the file and return how far it is from torch; raises `ExportError` (and writes nothing) beyond TOLERANCE.

    metadata: texts that travel in the file; ONNX keeps them as custom metadata, the others as an extra file `metadata.json`.
    """
    require(format_)
    with torch.no_grad(), tempfile.TemporaryDirectory() as scratch, _quiet():
        file = Path(scratch) / "graph"
        try:
            run = {"onnx": _onnx, "torchscript": _torchscript, "torch_export": _torch_export}[format_](graph, file, metadata)
        except BenchError:
            raise
        except Exception as error:  # an exporter fails in as many ways as a graph can be unusual
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(
                f"{type(graph.method).__name__} cannot be written as {format_}: {type(error).__name__}: {reason}",
                "Its predict must be made of tensor operations. Type: --format safetensors, which keeps the weights alone.",
            ) from error
        differences = compare(graph, run)
        write_bytes(path, file.read_bytes())
    return differences


def compare(graph: ScoredMethod, run: Run, tolerance: float = TOLERANCE) -> Differences:
    """The largest differences over CHECKED images, as one batch and one by one; raises `ExportError` beyond the tolerance."""
    images = graph.example(CHECKED, seed=1)
    expected = graph(images)
    found = [run(images), *(run(image[None]) for image in images)]
    alone = tuple(torch.cat([pair[i] for pair in found[1:]]) for i in range(2))
    largest = []
    for name, reference, one_batch, one_by_one in zip((MAP, SCORE), expected, found[0], alone, strict=True):
        for values in (one_batch, one_by_one):
            if values.shape != reference.shape:
                raise ExportError(
                    f"The written graph gives {name} the shape {tuple(values.shape)}, torch {tuple(reference.shape)}.",
                    "Its batch is not free. Please report the method and the torch version.",
                )
        scale = max(1.0, float(reference.abs().max()))
        largest.append(max(float((values - reference).abs().max()) / scale for values in (one_batch, one_by_one)))
    differences = Differences(*largest)
    if not all(difference <= tolerance for difference in differences):  # NaN is not <= anything
        raise ExportError(
            f"The written graph differs from torch by {differences.anomaly_map:.1e} (anomaly_map) and {differences.score:.1e} "
            f"(score); {tolerance:.0e} is allowed. Nothing was written.",
            "Try another torch or onnxruntime, or: --format torchscript",
        )
    return differences


# --- formats --------------------------------------------------------------------------------------------------------


def _onnx(graph: ScoredMethod, file: Path, metadata: Mapping[str, str]) -> Run:
    import onnx
    import onnxruntime

    program: Any = torch.onnx.export(
        graph,
        (graph.example(2),),
        input_names=[INPUT],
        output_names=[MAP, SCORE],
        dynamo=True,
        dynamic_shapes=_free_batch(),
        external_data=False,
        verbose=False,
    )
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    data = model.SerializeToString()
    file.write_bytes(data)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        amap, score = session.run([MAP, SCORE], {INPUT: images.numpy()})
        return torch.from_numpy(amap), torch.from_numpy(score)

    return run


def _torchscript(graph: ScoredMethod, file: Path, metadata: Mapping[str, str]) -> Run:
    jit: Any = torch.jit
    traced = jit.trace(graph, (graph.example(2),), check_trace=False)  # `compare` checks more than it would
    jit.save(traced, str(file), _extra_files={"metadata.json": json.dumps(dict(metadata))})
    loaded: Run = jit.load(str(file))
    return loaded


def _torch_export(graph: ScoredMethod, file: Path, metadata: Mapping[str, str]) -> Run:
    program = torch.export.export(graph, (graph.example(2),), dynamic_shapes=_free_batch())
    buffer = io.BytesIO()  # given a path, torch insists on its own suffix
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(dict(metadata))})
    file.write_bytes(buffer.getvalue())
    buffer.seek(0)
    loaded: Run = torch.export.load(buffer).module()
    return loaded


def _free_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},)


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own future and print their stages; the comparison, not they, says whether the file is right."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
