"""What is known of each category: its prototypes, its constants, and which images they come from.

A category's normal images are split: every fifth (`held_out`) gives the constants, the others the prototypes. With fewer images
than that takes, the same images do both: the constants are then too small and the map's offset with them, the ranking is not.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inpbench.harness.errors import WeightsError
from inpbench.methods.pmad.proposal import Calibration

_PREFIX = "bank/"
_FIELDS = ("prototypes", "constants", "images")


class Bank(NamedTuple):
    """One category."""

    prototypes: Tensor  # (M, C) on the device
    constants: Calibration | None  # none before the flow is trained
    images: tuple[int, int]  # number and crc of the names of the normal images it was made from


def digest(names: Sequence[str]) -> tuple[int, int]:
    """Number and crc of image names: tells one set of references from another."""
    return len(names), zlib.crc32("\n".join(names).encode())


def split(indices: Sequence[int], held_out: float) -> tuple[list[int], list[int]]:
    """(indices for prototypes, indices for constants), evenly spread; both are everything where one would be empty."""
    every = round(1.0 / held_out) if held_out > 0.0 else 0
    if every < 2 or len(indices) < every:
        return list(indices), list(indices)
    aside = list(indices[every - 1 :: every])
    kept = set(aside)
    return [index for index in indices if index not in kept], aside


def pooled(banks: Mapping[str, Bank]) -> Bank:
    """One bank of all categories, for images of which nobody says what they are."""
    known = list(banks.values())
    prototypes = torch.cat([bank.prototypes for bank in known])
    constants = [bank.constants for bank in known if bank.constants is not None]
    if not constants:
        return Bank(prototypes, None, (0, 0))
    level = max(one.level for one in constants)
    # p is relative to the level: a peak of another level is brought to the common one.
    peak = max(one.peak * float(torch.tensor(one.level - level, dtype=torch.float64).exp()) for one in constants)
    return Bank(prototypes, Calibration(level, peak, max(one.threshold for one in constants)), (0, 0))


def to_state(banks: Mapping[str, Bank]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all banks."""
    for category, bank in banks.items():
        yield f"{_PREFIX}{category}/prototypes", bank.prototypes
        yield f"{_PREFIX}{category}/images", torch.tensor(bank.images, dtype=torch.int64)
        if bank.constants is not None:
            yield f"{_PREFIX}{category}/constants", bank.constants.tensor()


def from_state(state: Mapping[str, Tensor], dim: int, device: torch.device, dtype: torch.dtype) -> dict[str, Bank]:
    """The inverse of `to_state`; other keys are left alone. Raises `WeightsError` naming what does not fit."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith(_PREFIX):
            category, _, name = key.removeprefix(_PREFIX).rpartition("/")
            if name not in _FIELDS:
                raise WeightsError(f"The weights do not fit pmad: unexpected {key}.", "Give a model that pmad was trained to.")
            found.setdefault(category, {})[name] = value
    banks = {}
    for category, parts in found.items():
        rows = parts.get("prototypes")
        if rows is None or rows.ndim != 2 or rows.shape[1] != dim or "images" not in parts:
            shape = None if rows is None else tuple(rows.shape)
            raise WeightsError(
                f"The weights do not fit pmad: prototypes of {category}: expected (M, {dim}) and their images, found {shape}.",
                "Give a model of the same parameters.",
            )
        constants = Calibration(*parts["constants"].tolist()) if "constants" in parts else None
        count, crc = parts["images"].tolist()
        banks[category] = Bank(rows.to(device, dtype), constants, (int(count), int(crc)))
    return banks
