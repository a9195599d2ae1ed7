"""Marks: what a reader must know about a number before comparing it. Kept in the record, shown in every table.

Most say why a number is not comparable with published ones. INFORMATION says what a method is told that others are not: such rows
share tables with all others and are compared with published numbers, which were made the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inpbench.harness.plan import Cell

TOLD = "told the category of each test image"
ORACLE = "oracle: tuned on test labels"
PROMPTS = "shown the images of prompt files"
INFORMATION = frozenset({TOLD, PROMPTS})


def marks_of(cell: Cell) -> list[str]:
    """The marks of a cell with an identity."""
    marks = weight_marks(cell.identity.get("weights", {}))
    if cell.identity.get("limit") is not None:
        marks.append(f"limited to {cell.identity['limit']} images a group")
    if cell.identity.get("selection") == "oracle":
        marks.append(ORACLE)
    if cell.method.told_category:
        marks.append(TOLD)
    if "prompts" in cell.identity:
        marks.append(PROMPTS)
    return marks


def weight_marks(weights: Mapping[str, str]) -> list[str]:
    """What the identities of weights (`WeightStore.identity`, by name) say against a comparison."""
    marks = ["built-in encoder"] if any(value.startswith("builtin") for value in weights.values()) else []
    return marks + (["random weights"] if "random" in weights.values() else [])


def obstacles(marks: Iterable[str]) -> list[str]:
    """The marks that forbid a comparison with published numbers."""
    return [mark for mark in marks if mark not in INFORMATION]
