"""Golden cases: where they lie, how a case is read, and the formula weights (tests/data/golden/README.md)."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "tests" / "data" / "golden"  # for tests that name a case
ROOT = Path(os.environ.get("INPBENCH_GOLDEN", COMMITTED))  # for tests of every case

TOKENS = {
    "cls_token",
    "pos_embed",
    "register_tokens",
    "mask_token",
    "prototype_token",
    "class_embedding",
    "positional_embedding",
}


@dataclass(frozen=True)
class Case:
    """NAME.json and the arrays of NAME.npz ({} where there is none)."""

    family: str
    name: str
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]


def case_names(family: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / family).glob("*.json"))


def read_case(family: str, name: str, root: Path | None = None) -> Case:
    folder = (root or ROOT) / family
    arrays = {}
    if (folder / f"{name}.npz").is_file():
        with np.load(folder / f"{name}.npz", allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files}
    return Case(family, name, json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), arrays)


def by_beginning(family: str, name: str, kinds: Mapping[str, Callable[[Case], None]]) -> Callable[[Case], None]:
    """How a case is checked, by the beginning of its name; an unknown one fails."""
    for beginning, check in kinds.items():
        if name.startswith(beginning):
            return check
    raise AssertionError(f"golden case {family}/{name} is of a kind that this runner does not know: {', '.join(kinds)}")


def data_folder() -> Path:
    """The real images of the `data` family; skips with a reason where they are absent."""
    for folder in (ROOT.parent / "data", REPOSITORY.parent / "shared" / "data"):
        if (folder / "mtd_mvtec").is_dir():
            return folder
    pytest.skip("the real images (../shared/data) are not on this machine")


def normal(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    state = np.random.RandomState((zlib.crc32(key.encode()) ^ seed) & 0xFFFFFFFF)
    return state.standard_normal(shape)


def formula(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The formula weight of one tensor of the original's state_dict, float64."""
    z = normal(key, tuple(shape), seed)
    last = key.rsplit(".", 1)[-1]
    if key.endswith(("gamma", "learn_scale", "logit_scale")):
        value = 0.5 + 0.1 * z
    elif len(shape) == 1 and key.endswith("weight"):
        value = 1 + 0.05 * z
    elif key.endswith("bias"):
        value = 0.02 * z
    elif last == "running_mean":
        value = 0.05 * z
    elif last == "running_var":
        value = 1 + 0.1 * np.abs(z)
    elif last in TOKENS or key == "token_embedding.weight":
        value = 0.3 * z
    else:
        value = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float64))


def images(first: int, count: int, height: int, width: int) -> torch.Tensor:
    """(count, 3, height, width) float64, already normalised."""
    return torch.from_numpy(
        np.stack([np.random.RandomState(1000 + first + i).standard_normal((3, height, width)) for i in range(count)])
    )
