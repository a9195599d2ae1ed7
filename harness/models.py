"""What a cell learned, kept beside its record: `<id12>.models/<model>.safetensors`, and back to a method that predicts.

A file holds the trained tensors (not the frozen encoder) and, in its header, the record's id and the model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness import params as parameters
from inpbench.harness.api import Context
from inpbench.harness.atomic import write_bytes
from inpbench.harness.errors import PrerequisiteError, RecordError, UsageError, WeightsError, did_you_mean
from inpbench.harness.records import Record, RecordStore
from inpbench.harness.registry import METHODS, resolve
from inpbench.harness.snapshots import FolderSnapshots

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from inpbench.harness.api import Weights


def models_folder(store: RecordStore, record: Record) -> Path:
    """Where the models of a record lie."""
    return store.path_of(record.identity).with_suffix(".models")


def save_model(folder: Path, name: str, record_id: str, state: Mapping[str, Tensor]) -> None:
    """Write one model atomically; a method that learns no tensors leaves no file."""
    from safetensors.torch import save

    if not state:
        return
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{name}.safetensors", save(tensors, {"format": "pt", "record": record_id, "model": name}))


def load_model(store: RecordStore, record: Record, name: str | None) -> tuple[str, dict[str, Tensor]]:
    """The tensors of a model of a record (its only one, where no name is given).

    Raises `PrerequisiteError` when the models were not kept, `UsageError` for an unknown name, `WeightsError` for a broken file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = models_folder(store, record)
    names = sorted(path.stem for path in folder.glob("*.safetensors")) if folder.is_dir() else []
    if not names:
        raise PrerequisiteError(
            f"Record {record.id12} ({record.label}) has no kept model in {folder}.",
            "Run the cell again with --force and without --no-keep-models.",
        )
    if name is None and len(names) > 1:
        raise UsageError(f"Record {record.id12} has {len(names)} models: {', '.join(names)}.", f"Type: --model {names[0]}")
    chosen = name or names[0]
    if chosen not in names:
        raise UsageError(
            f"Record {record.id12} has no model '{chosen}'. {did_you_mean(chosen, names)}", f"Type: --model {names[0]}"
        )
    path = folder / f"{chosen}.safetensors"
    try:
        return chosen, load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {error}.", "Run the cell again with --force.") from error


def rebuild(record: Record, weights: Weights, device: torch.device, state: Mapping[str, Tensor], scratch: Path) -> Any:
    """The method of a record with what it learned, ready to predict.

    Raises `RecordError` when this version of the method is not the record's, `WeightsError` when the tensors do not fit.
    """
    import torch

    info = METHODS.get(record.identity["method"])
    if info.version != record.identity["method_version"]:
        recorded = record.identity["method_version"]
        raise RecordError(
            f"Record {record.id12} is of version {recorded} of {info.name}, this is version {info.version}.",
            "Run the cell again, or install the inpbench of the record's stamp.",
        )
    params = parameters.build(info.name, info.params, parameters.from_plain(record.identity["params"]))
    context = Context(
        device=device,
        dtype=torch.float32,
        seed=record.identity["seed"],
        setting=record.identity["setting"],
        weights=weights,
        snapshots=FolderSnapshots(scratch),
        progress=lambda done, total, text="", **numbers: None,
        shots=record.identity["shots"],
        engine=record.identity["engine"],
    )
    method = resolve(info.target)(params, context)
    method.load_state(state)
    return method
