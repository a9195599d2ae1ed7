"""Marks: what a reader must know about a number before comparing it. Kept in the record, shown in every table.

Most say why a number is not comparable with published ones. INFORMATION says what a method is told that others are not: such rows
share tables with all others and are compared with published numbers, which were made the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inpbench.harness.plan import Cell

TOLD = "told the category of each test image"
ORACLE = "oracle: tuned on test labels"
INFORMATION = frozenset({TOLD})


def marks_of(cell: Cell) -> list[str]:
    """The marks of a cell with an identity."""
    marks = []
    weights = cell.identity.get("weights", {})
    if any(str(value).startswith("builtin") for value in weights.values()):
        marks.append("built-in encoder")
    if "random" in weights.values():
        marks.append("random weights")
    if cell.identity.get("limit") is not None:
        marks.append(f"limited to {cell.identity['limit']} images a group")
    if cell.identity.get("selection") == "oracle":
        marks.append(ORACLE)
    if cell.method.told_category:
        marks.append(TOLD)
    return marks


def obstacles(marks: Iterable[str]) -> list[str]:
    """The marks that forbid a comparison with published numbers."""
    return [mark for mark in marks if mark not in INFORMATION]
