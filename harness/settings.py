"""The settings of the field as data: what is trained on what, and what is tested.

A setting is versioned: a change that changes a number raises its version, which is part of every identity.
`unit` says how many models a cell trains: one for the data set, one for each category, or one for each direction between
objects and textures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from inpbench.harness.api import DatasetInfo
from inpbench.harness.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One protocol of training and testing."""

    name: str
    version: int
    title: str
    unit: Literal["dataset", "category", "direction"]  # models a cell trains
    shots: tuple[int, ...] = ()  # customary numbers of support images; () where the setting has none
    source: bool = False  # trained on another data set than it is tested on
    several_datasets: bool = False
    anomalies: bool = False  # trained on every labelled image of the source, its test images and their anomalies included
    working: bool = True  # False: known, planned, refused with a reason

    @property
    def refusal(self) -> str:
        """Why no cell of this setting can run, or an empty string."""
        return "" if self.working else "not yet: this release runs " + ", ".join(s.name for s in SETTINGS.values() if s.working)


_ALL = (
    Setting(name="multi_class", version=1, title="one model for all categories", unit="dataset"),
    Setting(name="single_class", version=1, title="one model for each category", unit="category"),
    Setting(
        name="few_shot",
        version=1,
        title="one model, k normal images of each category",
        unit="dataset",
        shots=(1, 2, 4),
    ),
    Setting(
        name="zero_shot",
        version=1,
        title="trained on a source data set, tested on another",
        unit="dataset",
        source=True,
    ),
    Setting(
        name="super_multi_class",
        version=1,
        title="one model for the categories of several data sets",
        unit="dataset",
        several_datasets=True,
    ),
    Setting(
        name="cross_class",
        version=1,
        title="one model trained on objects and tested on textures, and one the other way round",
        unit="direction",
    ),
    Setting(
        name="generalist",
        version=1,
        title="trained on another data set with its anomalies, shown k normal images of each category that is tested",
        unit="dataset",
        shots=(2, 4, 8),
        source=True,
        anomalies=True,
    ),
)

SETTINGS = {setting.name: setting for setting in _ALL}


def get_setting(name: str) -> Setting:
    """The setting of this name; unknown names raise `UsageError` with the closest known ones."""
    if name not in SETTINGS:
        raise UsageError(f"Unknown setting '{name}'. {did_you_mean(name, SETTINGS)}", "Type: bench list settings")
    return SETTINGS[name]


def groups_of(dataset: DatasetInfo, categories: Sequence[str], *, one: bool = False) -> dict[str, list[str]]:
    """The categories by kind, `objects` and `textures`: both; `one`: one of them, tested with a model of the other kind.

    Raises `UsageError` where that is not what the categories are.
    """
    groups = {
        "objects": [category for category in categories if category not in dataset.textures],
        "textures": [category for category in categories if category in dataset.textures],
    }
    if not dataset.textures:
        why = f"{dataset.name} does not say which categories are textures"
        raise UsageError(f"cross_class needs objects and textures; {why}.", "Type for example: --dataset mvtec_ad")
    missing = [kind for kind, members in groups.items() if not members]
    if one and not missing:
        raise UsageError(
            "--checkpoint is one model, of objects or of textures, and both are to be tested.",
            f"Type: --categories {','.join(groups['textures'])}, with a model of the objects",
        )
    if missing and not one:
        raise UsageError(
            f"cross_class needs objects and textures; {dataset.name} has no {missing[0]} among {', '.join(categories)}.",
            "Type for example: --dataset mvtec_ad",
        )
    return groups
