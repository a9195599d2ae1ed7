"""Marks: what a reader must know about a number before comparing it. Kept in the record, shown in every table.

Most say why a number is not comparable with published ones. INFORMATION says what a method is told that others are not, and that a
checkpoint's training is its user's word: such rows share tables with all others and are compared with published numbers, which were
made the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inpbench.harness.plan import Cell

TOLD = "told the category of each test image"
ORACLE = "oracle: tuned on test labels"
PROMPTS = "shown the images of prompt files"
CLAIMED = "a checkpoint: what it was trained on is its user's word"
INFORMATION = frozenset({TOLD, PROMPTS, CLAIMED})


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
    if cell.identity.get("checkpoint") is not None:
        marks.append(CLAIMED)
    return marks


def claim_in_words(identity: Mapping[str, Any]) -> str:
    """What a checkpoint has to have learned from for its numbers to be of this setting; an empty text where there is none."""
    if identity["checkpoint"] is None:
        return ""
    name = identity["dataset"]
    learned = f"normal training images of {name} alone"
    for kind, tested in identity.get("groups", {}).items():
        if not tested:
            learned = f"the {kind} of {name} alone"
    if identity["setting"] == "super_multi_class":
        learned = f"normal training images of several data sets, {name} among them"
    elif identity["source"] is not None:
        learned = f"no image of {name} (source: {identity['source']['dataset']})"
    elif identity["shots"]:
        learned = f"{identity['shots']} normal images of each category of {name} alone"
    return f"the checkpoint is taken at its user's word to have learned from {learned}"


def weight_marks(weights: Mapping[str, str]) -> list[str]:
    """What the identities of weights (`WeightStore.identity`, by name) say against a comparison."""
    marks = ["built-in encoder"] if any(value.startswith("builtin") for value in weights.values()) else []
    return marks + (["random weights"] if "random" in weights.values() else [])


def obstacles(marks: Iterable[str]) -> list[str]:
    """The marks that forbid a comparison with published numbers."""
    return [mark for mark in marks if mark not in INFORMATION]
