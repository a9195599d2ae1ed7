"""The prompts of WinCLIP's compositional ensemble: every state of an object in every template of a photograph.

    prompt = template.format(state.format(name))       states are the outer loop, templates the inner one
`MALA_LAB` are the 22 templates of the WinCLIP and InCTRL repositories, `ANOMALIB` the 21 of anomalib 2.7.0 (two of them absent, one
doubled). Nothing is corrected: "a photo of a screws." stays.
"""

from __future__ import annotations

from typing import NamedTuple


class Prompts(NamedTuple):
    """What a category is described with."""

    normal: tuple[str, ...]
    anomalous: tuple[str, ...]


NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")

MALA_LAB = (
    "a cropped photo of the {}.",
    "a cropped photo of a {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of a {}.",
    "a dark photo of the {}.",
    "a jpeg corrupted photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of the {}.",
    "a blurry photo of a {}.",
    "a photo of the {}.",
    "a photo of a {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for anomaly detection.",
    "a photo of the {} for anomaly detection.",
)
ANOMALIB = (
    "a cropped photo of the {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of the {}.",
    "a dark photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of the {}.",
    "a blurry photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.",
    "a photo of a {} for anomaly detection.",
)
# InCTRL describes these (CIFAR-10's classes and their union) by one prompt each.
NATURAL = frozenset({"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "animal"})


def object_name(category: str) -> str:
    """The words for a category: its name without the data set's (`visa/pcb1`), every `_` a space."""
    return category.rpartition("/")[2].replace("_", " ")


def ensemble(name: str, templates: tuple[str, ...]) -> Prompts:
    """All states of `name` in all templates."""

    def all_of(states: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(template.format(state.format(name)) for state in states for template in templates)

    return Prompts(all_of(NORMAL_STATES), all_of(ANOMALOUS_STATES))


def inctrl_prompts(name: str) -> Prompts:
    """InCTRL's prompts: the ensemble, but one pair for natural objects."""
    if name in NATURAL:
        return Prompts((f"a photo of {name} for anomaly detection.",), (f"a photo without {name} for anomaly detection.",))
    return ensemble(name, MALA_LAB)
