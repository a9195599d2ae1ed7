"""Golden cases of WinCLIP and InCTRL: networks of the case's sizes, formula weights through the official loader, strided arrays.

A stored array is every stride-th element of the full array in C order; `sum` and `abs_sum` are of the full array.
Tolerances are relative to the largest absolute expected value: 1e-10 for what is computed once (independent implementations agree
to 2e-16 to 1e-13), 1e-8 after optimiser steps (4e-10 seen: AdamW enlarges the rounding of the smallest gradients). Where a query is
among its own references every distance is rounding alone: tolerances are of LEAST then.
"""

from __future__ import annotations

from typing import Any

import golden
import numpy as np
import torch
from golden import Case
from golden_arrays import array, close
from methodkit import make_context
from torch import Tensor

from inpbench.methods.clip_params import ARCHITECTURES, ClipArchitecture

ONCE, AFTER_STEPS, LEAST = 1e-10, 1e-8, 1e-2


def architecture(config: dict[str, Any], name: str = "of a golden case") -> ClipArchitecture:
    """The network of a case's `config` (open_clip's own words)."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    assert not config.get("quick_gelu", False)
    return ClipArchitecture(
        name=name,
        embed=config.get("embed_dim", 640),
        image=vision["image_size"],
        patch=vision["patch_size"],
        width=vision["width"],
        head_width=vision.get("head_width", 64),
        layers=vision["layers"],
        text_width=text["width"],
        text_heads=text["heads"],
        text_layers=text["layers"],
        context=text["context_length"],
        vocabulary=text["vocab_size"],
    )


def registered(config: dict[str, Any], patch: Any) -> str:
    """Register the case's network under a name of the table, so that the production parameters can ask for it."""
    built = architecture(config)
    patch.setitem(ARCHITECTURES, built.name, built)
    return built.name


def images(indices: list[int], side: int) -> Tensor:
    """Formula images (B, 3, side, side) float64 by index."""
    return torch.cat([golden.images(index, 1, side, side) for index in indices]) if indices else torch.empty(0, 3, side, side)


def formula_state(like: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Formula tensors for the keys and shapes of an official state; counters of batches stay."""
    return {
        key: value if key.endswith("num_batches_tracked") else golden.formula(key, tuple(value.shape), seed)
        for key, value in like.items()
    }


def context(setting: str, **changes: Any) -> Any:
    """float64 on the CPU, random weights (replaced by the formula's), reference engine: the text tower on all tokens."""
    return make_context(dtype=torch.float64, engine="reference", setting=setting, **changes)


class Strided:
    """Compares full arrays with the stored ones and remembers which were compared."""

    def __init__(self, case: Case) -> None:
        self.case, self._seen = case, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self.case.arrays

    def check(self, name: str, actual: Any, tolerance: float = ONCE) -> None:
        self._seen.add(name)
        info, full = self.case.config["arrays"][name], array(actual)
        assert list(full.shape) == info["full_shape"], f"{name}: shape {full.shape}, expected {info['full_shape']}"
        stored = self.case.arrays[name]
        part = full if info["stride"] == 1 else full.reshape(-1)[:: info["stride"]]
        least = 0.0 if name.startswith(("grad0.", "after.")) else LEAST
        close(name, part.reshape(stored.shape), stored, tolerance, least)
        if "sum" in info:
            for label, found in (("sum", full.astype(np.float64).sum()), ("abs_sum", np.abs(full.astype(np.float64)).sum())):
                assert abs(found - info[label]) <= max(tolerance, 1e-12) * max(info["abs_sum"], least * full.size), (
                    f"{name} {label}: {found}, {info[label]}"
                )

    def check_if_present(self, name: str, actual: Any, tolerance: float = ONCE) -> None:
        if name in self:
            self.check(name, actual, tolerance)

    def finish(self, *ignored: str) -> None:
        """Fail if an array of the case was never compared (`ignored`: with a stated reason at the call)."""
        left = set(self.case.arrays) - self._seen - set(ignored)
        assert not left, f"{self.case.name}: never compared: {sorted(left)}"


class References:
    """Formula images as a training set: what `enter` is given."""

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: Any) -> Tensor:
        return self.pictures[list(indices)]
