"""Made-up records for the tests of records, tables and checks."""

from __future__ import annotations

import json
from typing import Any

from inpbench.harness.metrics import METRICS
from inpbench.harness.params import plain
from inpbench.harness.records import Record, new_record
from inpbench.harness.registry import METHODS

CATEGORIES = ["bottle", "câble"]


def identity(**changes: Any) -> dict[str, Any]:
    """A complete identity document."""
    return {
        "v": 1,
        "method": "inp_former",
        "method_version": 1,
        "params": json.loads(json.dumps(plain(METHODS.get("inp_former").params()))),
        "setting": "multi_class",
        "setting_version": 1,
        "shots": 0,
        "seed": 0,
        "source": None,
        "dataset": "toy",
        "dataset_version": 1,
        "dataset_params": {},
        "manifest": "sha256:" + "ab" * 32,
        "categories": list(CATEGORIES),
        "input": {"resize": [448, 448], "crop": [392, 392]},
        "scoring": {"version": 1, "metric_size": [256, 256], "kernel": 5, "sigma": 4.0, "top_ratio": 0.01, "mask_rule": "gt05"},
        "metrics": {"suite": 1, "variant": "exact"},
        "weights": {"dinov2reg_vit_base_14": "sha256:" + "cd" * 32},
        "engine": "fast",
        "limit": None,
        "selection": "last",
        "checkpoint": None,
    } | changes


def measured(value: float = 0.9, categories: list[str] = CATEGORIES, **means: float | None) -> dict[str, Any]:
    """A metrics document; of two categories one lies 0.01 below the mean and one above."""
    mean = {metric: means.get(metric, value) for metric in METRICS}
    shifts = (-0.01, 0.01) if len(categories) == 2 else (0.0,) * len(categories)
    tables = {
        category: {metric: None if mean[metric] is None else mean[metric] + shift for metric in METRICS}
        for category, shift in zip(categories, shifts, strict=True)
    }
    undefined = {metric: "only one label" for metric in METRICS if mean[metric] is None}
    return {
        "mean": mean,
        "categories": tables,
        "counts": {category: {"normal": 20, "anomalous": 30} for category in categories},
        "bounds": {category: dict.fromkeys(METRICS, 0.0) for category in categories},
        "undefined": {categories[0]: undefined} if undefined else {},
    }


def record(value: float = 0.9, *, label: str = "", status: str = "done", hardware: str = "cpu-x86_64-2", **changes: Any) -> Record:
    """A record whose metrics are all `value`; `changes` go into the identity, or into `means` of the metrics."""
    means = {key: changes.pop(key) for key in list(changes) if key in METRICS}
    others = {key: changes.pop(key) for key in list(changes) if key in ("marks", "skipped", "finished", "cost", "stamp", "notes")}
    document = identity(**changes)
    made = new_record(document, label or document["method"], started="2026-01-01T00:00:00+00:00", **others)
    made.status = status
    made.finished = others.get("finished", "2026-01-01T00:10:00+00:00")
    made.stamp = {"hardware": hardware, "git": {"commit": "0123456789abcdef", "dirty": False}} | others.get("stamp", {})
    made.cost = {"fit_s": 12.5, "predict_images_per_s": 40.0, "parameters_total": 1_500_000} | others.get("cost", {})
    if status == "done":
        made.metrics = measured(value, list(document["categories"]), **means)
    if status == "failed":
        made.error = {"type": "ValueError", "message": "out of\nluck", "traceback": ""}
    return made
