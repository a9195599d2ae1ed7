"""A model to predict with: from a record and its kept tensors, from an official checkpoint, or of a method that learns nothing.

Beside the method stands what the record knows about scores, from which thresholds and colour scales are chosen.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness import params as parameters
from inpbench.harness.api import Method, MethodInfo, Preprocess
from inpbench.harness.errors import NothingError, PrerequisiteError, UsageError, did_you_mean
from inpbench.harness.image_files import find_images
from inpbench.harness.marks import weight_marks
from inpbench.harness.models import from_official, load_model, model_for, preprocess_of, rebuild, untrained
from inpbench.harness.registry import METHODS
from inpbench.harness.scoring import DEFAULT_SCORING, Scoring
from inpbench.harness.weights import IN_CHECKPOINT, WeightStore

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from inpbench.harness.records import RecordStore


@dataclass(frozen=True)
class Trained:
    """See the module docstring. scores, labels: (N,) of the record's test images, None without a record."""

    method: Method
    preprocess: Preprocess
    scoring: Scoring
    title: str  # of the model, for people
    facts: dict[str, Any]  # of the model, for scores.json
    scores: NDArray[np.float64] | None = None
    labels: NDArray[np.int8] | None = None
    category: str | None = None  # that the method was told


def from_record(
    store: RecordStore,
    record_id: str,
    weights: str | None,
    download: bool,
    device: torch.device,
    model: str | None,
    category: str | None,
    normal: Path | None = None,
) -> Trained:
    """model: which of several models (single_class, cross_class). category: take its model and its scores only, and tell it to a
    method that is told the category; such a method takes the images of `normal` for references, and has no known scores then.

    Raises `NothingError` for an unknown record and what `load_model`, `rebuild`, `enter_named` and `read_samples` raise.
    """
    import numpy as np

    from inpbench.harness.predictor import scoring_of
    from inpbench.harness.references import enter_named

    record = store.find(record_id)
    if record is None:
        raise NothingError(f"No record '{record_id}' in {store.folder}.", "Type: bench leaderboard --json")
    encoders = record.identity["weights"].values()
    if IN_CHECKPOINT in encoders:
        raise PrerequisiteError(
            f"Record {record.id12} tested an official checkpoint, which holds the encoder.",
            f"Type: bench predict --checkpoint model.pth --methods {record.identity['method']} --images PATH --out DIR",
        )
    name, state = load_model(store, record, model or model_for(record.identity, category))
    # Random encoder weights are made again from the record's seed; others are looked for as usual.
    weight_store = WeightStore(weights or ("random" if "random" in encoders else None), download=download)
    with tempfile.TemporaryDirectory() as scratch:
        method = rebuild(record, weight_store, device, state, Path(scratch))
    samples = store.read_samples(record) if record.status != "trained" else {}  # of `--phase train`: nothing is scored yet
    chosen = category or (name if name in samples else None)  # a model of single_class has its category's name
    info, preprocess = METHODS.get(record.identity["method"]), preprocess_of(record)
    known = [chosen] if chosen in samples else record.identity["categories"]
    entered = enter_named(info, method, chosen, normal, preprocess, device, known)
    if entered is not None:
        chosen, samples = entered, {entered: samples[entered]} if entered in samples and normal is None else {}
    elif chosen is not None and chosen not in samples:
        raise UsageError(
            f"Record {record.id12} has no category '{chosen}'. {did_you_mean(chosen, samples)}", "Leave --category out."
        )
    tables = [table for each, table in samples.items() if chosen in (None, each)]
    scores = np.concatenate([table["score"] for table in tables]) if tables else None
    labels = np.concatenate([table["label"] for table in tables]) if tables else None
    return Trained(
        method,
        preprocess,
        scoring_of(record.identity["scoring"]),
        f"{record.label} of record {record.id12}, model {name}",
        {"record": record.id, "label": record.label, "model": name, "marks": record.marks} | _said(entered, normal),
        scores,
        labels,
        entered,
    )


def from_checkpoint(
    checkpoint: Path,
    name: str,
    preset: str,
    encoder: str | None,
    changes: Mapping[str, str],
    weights: WeightStore,
    device: torch.device,
    category: str | None = None,
    normal: Path | None = None,
) -> Trained:
    """An official `model.pth`, encoder included. weights: of what it does not hold. category, normal: as for `from_record`.

    Raises `UsageError` where the method has no such format, `WeightsError` for a file that is broken or does not fit.
    """
    from inpbench.harness.references import enter_named

    info = METHODS.get(name)
    params = _params(info, preset, encoder, changes)
    hint = "Type: bench predict RECORD --images PATH --out DIR"
    method = from_official(info, params, device, checkpoint, weights, hint)
    entered = enter_named(info, method, category, normal, params.preprocess, device)
    facts = {"checkpoint": weights.hash_file(checkpoint), "method": name, "params": parameters.plain(params)}
    facts |= _said(entered, normal)
    return Trained(method, params.preprocess, DEFAULT_SCORING, f"{name} of {checkpoint.name}", facts, category=entered)


def from_nothing(
    name: str,
    preset: str,
    encoder: str | None,
    changes: Mapping[str, str],
    weights: WeightStore,
    device: torch.device,
    category: str | None,
    normal: Path | None,
) -> Trained:
    """A method that needs no training: its zero_shot, or its few_shot where `normal` gives the references.

    Raises `UsageError` for a method that must be trained, `WeightsError` for missing weights, and what `enter_named` raises.
    """
    from inpbench.harness.references import enter_named

    info = METHODS.get(name)
    setting = "zero_shot" if normal is None else "few_shot"
    if setting not in info.untrained:
        raise UsageError(
            f"{name} has to be trained: bench predict needs a RECORD of it, or --checkpoint.",
            f"Type: bench run --methods {name} --dataset NAME, then: bench predict RECORD --images PATH --out DIR",
        )
    params = _params(info, preset, encoder, changes)
    identities = {spec.name: weights.identity(spec) for spec in info.weights(params)}
    shots = 0 if normal is None else len(find_images(normal)[1])
    method = untrained(info, params, device, weights, setting, shots)
    entered = enter_named(info, method, category, normal, params.preprocess, device)
    facts = {"method": name, "setting": setting, "shots": shots, "params": parameters.plain(params), "weights": identities}
    facts |= {"marks": weight_marks(identities)} | _said(entered, normal, kept="none")
    return Trained(method, params.preprocess, DEFAULT_SCORING, f"{name}, {setting}, not trained", facts, category=entered)


def _params(info: MethodInfo, preset: str, encoder: str | None, changes: Mapping[str, str]) -> Any:
    if preset not in info.presets:
        raise UsageError(f"{info.name} has no preset '{preset}'. {did_you_mean(preset, info.presets)}", "Type: bench list methods")
    chosen = {} if encoder is None else {"encoder": encoder}
    return parameters.build(info.name, info.params, info.presets[preset], chosen, changes)


def _said(category: str | None, normal: Path | None, kept: str = "those of the model") -> dict[str, Any]:
    """What a method was told, for scores.json. kept: which references it has where none were given."""
    if category is None:
        return {}
    return {"category": category, "references": kept if normal is None else str(normal)}
