"""`bench export RECORD`: a trained model in the format of its authors, or as safetensors."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from inpbench.harness.cli.options import Results, results_folder
from inpbench.harness.cli.run_options import Download, Weights
from inpbench.harness.errors import NothingError, UsageError


class ModelFormat(str, Enum):
    """How a model is written."""

    official = "official"
    safetensors = "safetensors"


def export(
    record: Annotated[str, typer.Argument(help="Id of a record, or its beginning (at least 6 digits).")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write.")],
    format_: Annotated[
        ModelFormat, typer.Option("--format", "-f", help="official: the authors' model.pth, encoder included.")
    ] = ModelFormat.official,
    model: Annotated[str | None, typer.Option("--model", help="Which model of a record that has several (its category).")] = None,
    weights: Weights = None,
    download: Download = False,
    results: Results = None,
) -> None:
    """Write a trained model to a file.

    bench export 3f9c1a20 --out model.pth
    """
    import io

    import torch
    from safetensors.torch import save

    from inpbench.harness.atomic import write_bytes
    from inpbench.harness.models import load_model, rebuild
    from inpbench.harness.records import RecordStore
    from inpbench.harness.weights import WeightStore

    store = RecordStore(results_folder(results))
    found = store.find(record)
    if found is None:
        raise NothingError(f"No record '{record}' in {store.folder}.", "Type: bench leaderboard --json")
    name, state = load_model(store, found, model)
    if format_ is ModelFormat.safetensors:
        write_bytes(out, save(state, {"format": "pt", "record": found.id, "model": name}))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            store_of_weights = WeightStore(weights or _choice(found.identity["weights"]), download=download)
            method = rebuild(found, store_of_weights, torch.device("cpu"), state, Path(scratch))
        if not hasattr(method, "official_state"):
            raise UsageError(f"{found.identity['method']} has no official format.", "Type: --format safetensors")
        buffer = io.BytesIO()
        torch.save(method.official_state(), buffer)
        write_bytes(out, buffer.getvalue())
    typer.echo(f"wrote {out}: {found.label}, model {name}", err=True)


def _choice(weights: dict[str, str]) -> str | None:
    """Random encoder weights are made again from the record's seed; others are looked for as usual."""
    return "random" if "random" in weights.values() else None
