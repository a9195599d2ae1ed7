"""What a cell learned, kept beside its record: `<id12>.models/<model>.safetensors`, and back to a method that predicts.

A file holds the trained tensors (not the frozen encoder) and, in its header, the record's id and the model's name. A model that
several cells share (harness/sources.py) lies in `trained/<method>/<id12>/` instead, under the id of its training.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness import params as parameters
from inpbench.harness.api import Context, MethodInfo, Preprocess
from inpbench.harness.atomic import write_bytes
from inpbench.harness.errors import PrerequisiteError, RecordError, UsageError, WeightsError, did_you_mean
from inpbench.harness.marks import TOLD
from inpbench.harness.records import Record, RecordStore
from inpbench.harness.registry import METHODS, resolve
from inpbench.harness.small_files import read_bytes
from inpbench.harness.snapshots import Fitting, FolderSnapshots
from inpbench.harness.sources import is_shared, training_id
from inpbench.harness.weights import BesideCheckpoint, WeightStore

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from inpbench.harness.api import Weights

_LARGEST = 1 << 40  # bytes; a memory bank has gigabytes


def models_folder(store: RecordStore, record: Record) -> Path:
    """Where the models of a record lie: beside it, or, where only a shared training made them, in the folder of that."""
    own = store.path_of(record.identity).with_suffix(".models")
    if not is_shared(record.identity) or own.is_dir():
        return own
    found = trained_file(store, record.identity)
    return shared_folder(store, record.identity) if found is None else found[0].parent


def shared_folder(store: RecordStore, identity: Mapping[str, Any]) -> Path:
    """Where the model of a shared training is kept, whether it is there or not."""
    method = store.path_of(identity).parent.name
    return store.folder / "trained" / method / training_id(identity)[:12]


def trained_file(store: RecordStore, identity: Mapping[str, Any]) -> tuple[Path, Fitting] | None:
    """The kept model of the training behind a cell, and what that took: the shared one, or that of the source's own record.

    Not of a record whose method is told the category: that model also knows the references of the categories tested there.
    """
    shared = shared_folder(store, identity) / "all.safetensors"
    if shared.is_file():
        return shared, fitting_of(shared)
    wanted = training_id(identity)
    same = {"method": identity["method"], "seed": identity["seed"], "setting": identity["source"]["setting"]}
    for record in store.all(status="done", **same):
        path = store.path_of(record.identity).with_suffix(".models") / "all.safetensors"
        if is_shared(record.identity) or TOLD in record.marks:
            continue
        if training_id(record.identity) == wanted and path.is_file():
            return path, Fitting(float(record.cost.get("fit_s") or 0.0), record.stamp.get("team"))
    return None


def kept_folder(store: RecordStore, identity: Mapping[str, Any]) -> Path | None:
    """Where a cell finds models that were trained as its own would be; None where nothing is kept.

    Its own record's, the shared ones, or those of a record that differs in scoring and metrics alone, which training never sees.
    """
    if is_shared(identity):
        found = trained_file(store, identity)
        return None if found is None else found[0].parent
    wanted, alike = training_id(identity), ("dataset", "setting", "method", "seed", "shots")
    candidates = [store.path_of(identity)]
    candidates += [
        store.path_of(record.identity)
        for record in store.all(**{key: identity[key] for key in alike})
        if not is_shared(record.identity) and training_id(record.identity) == wanted
    ]
    folders = (path.with_suffix(".models") for path in candidates)
    return next((folder for folder in folders if any(folder.glob("*.safetensors"))), None)


def kept_state(store: RecordStore, identity: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], Fitting]:
    """The tensors of a kept model by its name, and what its training took (0 seconds where it is not known).

    Raises `PrerequisiteError` where it is not kept, `WeightsError` for a broken file.
    """
    folder = kept_folder(store, identity)
    path = None if folder is None else folder / f"{name}.safetensors"
    if path is None or not path.is_file():
        raise PrerequisiteError(f"The model '{name}' is not kept, and --phase test trains nothing.", "Leave --phase out.")
    return read_model(path), fitting_of(path)


def is_trained(store: RecordStore, identity: Mapping[str, Any]) -> bool:
    """Whether a cell can be tested without training: a model of it is kept, or lies ready in its unfinished work."""
    ready = store.path_of(identity).with_suffix(".work").glob("models/*/fitted.pt")
    return any(True for _ in ready) or kept_folder(store, identity) is not None


def fitting_of(path: Path) -> Fitting:
    """What the training of a kept model took, as its file says; 0 seconds where it does not."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            return Fitting(float(header.get("fit_s", 0.0)), json.loads(header.get("team", "null")))
    except (OSError, SafetensorError, ValueError):  # `read_model` says what is wrong with it
        return Fitting(0.0)


def save_model(folder: Path, name: str, record_id: str, state: Mapping[str, Tensor], fitting: Fitting | None = None) -> None:
    """Write one model atomically, of no tensor at all where a method learned none. fitting: what its training took."""
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    header = {"format": "pt", "record": record_id, "model": name, "sha256": _hash_of(tensors)}
    if fitting is not None:
        header |= {"fit_s": repr(fitting.seconds)} | ({} if fitting.team is None else {"team": json.dumps(fitting.team)})
    write_bytes(folder / f"{name}.safetensors", save(tensors, header))


def model_for(identity: Mapping[str, Any], category: str | None) -> str | None:
    """The name of the model that a record tested a category with; None where it has one for all, or does not know the category."""
    if category is None or category not in identity["categories"]:
        return None
    if identity["setting"] == "single_class":
        return category
    groups = identity.get("groups", {})  # cross_class: the model of the other group
    return next((name for name, members in groups.items() if category not in members), None)


def load_model(store: RecordStore, record: Record, name: str | None) -> tuple[str, dict[str, Tensor]]:
    """The tensors of a model of a record (its only one, where no name is given).

    Raises `PrerequisiteError` when the models were not kept, `UsageError` for an unknown name, `WeightsError` for a broken file.
    """
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
    return chosen, read_model(folder / f"{chosen}.safetensors")


def read_model(path: Path) -> dict[str, Tensor]:
    """The tensors of a kept model; raises `WeightsError` for a broken file, one whose numbers were changed, and another model's."""
    from safetensors import safe_open
    from safetensors.torch import load

    again = "Run the cell again with --force."
    try:
        tensors = dict(load(read_bytes(path, most=_LARGEST)))
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except Exception as error:  # a damaged header can make the reader raise anything
        raise WeightsError(f"{path} cannot be read: {error}.", again) from error
    if header.get("sha256", whole := _hash_of(tensors)) != whole:  # models of earlier releases have none
        raise WeightsError(f"{path} is damaged: its tensors are not those that were saved.", again)
    owner = path.parent.name.removesuffix(".models")  # the beginning of a record's id, or of a training's
    mine = (header.get("record", owner)[: len(owner)], header.get("model", path.stem))
    if re.fullmatch(r"[0-9a-f]{12}", owner) and mine != (owner, path.stem):
        raise WeightsError(f"{path} is the model '{mine[1]}' of {mine[0]}: it was copied there.", again)
    return tensors


def _hash_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and numbers, on the CPU."""
    import torch

    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(repr((key, str(value.dtype), tuple(value.shape))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def preprocess_of(record: Record) -> Preprocess:
    """How a record's images became inputs of its method."""
    info = METHODS.get(record.identity["method"])
    preprocess = parameters.build(info.name, info.params, parameters.from_plain(record.identity["params"])).preprocess
    assert isinstance(preprocess, Preprocess)
    return preprocess


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


def from_official(info: MethodInfo, params: Any, device: torch.device, checkpoint: Path, weights: WeightStore, hint: str) -> Any:
    """A method with the tensors of an official checkpoint (encoder included), ready to predict.

    weights: where the files are that a checkpoint does not hold. hint: what to type where the method has no such format
    (`UsageError`). Raises `WeightsError` when the tensors do not fit.
    """
    method = untrained(info, params, device, BesideCheckpoint(weights), "multi_class")
    if not hasattr(method, "load_official"):
        raise UsageError(f"{info.name} has no official checkpoints.", hint)
    method.load_official(weights.read_file(checkpoint))
    return method


def untrained(info: MethodInfo, params: Any, device: torch.device, weights: Weights, setting: str, shots: int = 0) -> Any:
    """A method that has learned nothing (yet), outside of a run; seed 1."""
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
            device=device,
            dtype=torch.float32,
            seed=1,
            setting=setting,
            weights=weights,
            snapshots=FolderSnapshots(Path(scratch)),
            progress=lambda done, total, text="", **numbers: None,
            shots=shots,
        )
        return resolve(info.target)(params, context)
