"""Which records may stand in one table, and which of them are one row of it.

Records are comparable only when everything that makes up the protocol agrees (`FAMILY_KEYS`): such a family is one table, and
families are never mixed. A row is an identity without its seed and what the seed drew. A method that learned from no image stands
in the table of every source (there is nothing that it could have learned from another); what was tuned on the test labels (oracle)
never stands beside what was not.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inpbench.harness.marks import ORACLE
from inpbench.harness.records import Record, canonical_json
from inpbench.harness.settings import SETTINGS
from inpbench.harness.sources import caption_of, in_words, learned_nothing, manifest_in_words

FAMILY_KEYS = (
    "dataset",
    "dataset_version",
    "dataset_params",
    "manifest",
    "categories",
    "setting",
    "setting_version",
    "shots",
    "source",
    "scoring",
    "metrics",
    "limit",
)

HARDWARE_BOUND = ("fit_s", "predict_s", "predict_images_per_s", "peak_memory_mb")  # costs that say nothing on another machine


@dataclass(frozen=True)
class Family:
    """Records that may stand in one table."""

    protocol: dict[str, Any]  # what they share: FAMILY_KEYS of the identity
    records: tuple[Record, ...]

    @property
    def title(self) -> str:
        """`visa, multi_class` and, where there are any, the shots and the source."""
        k = self.protocol["shots"]
        shots = f", {k} shot{'s' if k > 1 else ''}" if k else ""
        source = f" {words}" if (words := in_words(self.protocol)) else ""
        oracle = f", {ORACLE}" if self.protocol.get("selection") == "oracle" else ""
        return f"{self.protocol['dataset']}, {self.protocol['setting']}{source}{shots}{oracle}"

    @property
    def group_means(self) -> tuple[str, ...]:
        """Names under which rows have the mean of a group of categories: one for each direction of cross_class."""
        return tuple(_direction(name) for name in self.records[0].identity.get("groups", {}))

    def caption(self) -> list[str]:
        """The protocol in words, one statement a line."""
        protocol = self.protocol
        setting = SETTINGS.get(protocol["setting"])
        scoring, metrics = protocol["scoring"], protocol["metrics"]
        lines = [
            f"Setting: {protocol['setting']} v{protocol['setting_version']}" + (f" ({setting.title})" if setting else ""),
            f"Data: {protocol['dataset']} v{protocol['dataset_version']}, {len(protocol['categories'])} categories, "
            + "".join(f"{key}={value}, " for key, value in sorted(protocol["dataset_params"].items()))
            + manifest_in_words(protocol["manifest"]),
            f"Metrics: suite {metrics.get('suite')}, variant {metrics.get('variant')}; scoring v{scoring.get('version')}, "
            f"mask rule {scoring.get('mask_rule')}; mean over categories, in per cent",
        ]
        if protocol["source"] is not None:
            lines += caption_of(protocol["source"])
        elif learned_nothing(protocol):
            lines.append("Trained on: nothing (these methods learn from no image)")
        if protocol["limit"] is not None:
            lines.append(f"LIMITED to {protocol['limit']} images a group: a trial, not a result")
        return lines


@dataclass(frozen=True)
class Row:
    """The records of one identity but for the seed, sorted by seed; all are done."""

    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        """Any one record stands for what the seeds share."""
        return self.records[0]

    @property
    def seeds(self) -> list[int]:
        """Seeds, ascending."""
        return [record.identity["seed"] for record in self.records]

    @property
    def chosen_on_test(self) -> bool:
        """Whether the checkpoint was picked by its test result, or the method was tuned on it."""
        return bool(self.first.identity["selection"] != "last")

    def values(self, metric: str, category: str | None = None) -> list[float]:
        """A fraction for each seed; empty when any seed has none: a mean over fewer seeds would be another number.

        category: a category, one of `Family.group_means`, or None for the mean over all categories.
        """
        found = [_value(record, metric, category) for record in self.records]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else []

    def mean(self, metric: str, category: str | None = None) -> float | None:
        """Mean over the seeds."""
        values = self.values(metric, category)
        return statistics.fmean(values) if values else None

    def sd(self, metric: str, category: str | None = None) -> float | None:
        """Sample standard deviation over the seeds (n - 1), None for one seed."""
        values = self.values(metric, category)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def hardware(self) -> list[str]:
        """The kinds of hardware that its records ran on, sorted."""
        return sorted({record.hardware for record in self.records})

    def cost(self, key: str) -> float | None:
        """Mean of a cost over the seeds that have it; None for a time or memory where the seeds ran on different hardware."""
        if key in HARDWARE_BOUND and len(self.hardware) > 1:
            return None
        values = [value for record in self.records if isinstance(value := record.cost.get(key), (int, float))]
        return statistics.fmean(values) if values else None


def _value(record: Record, metric: str, category: str | None) -> float | None:
    if category is None:
        return record.mean(metric)
    for name, members in record.identity.get("groups", {}).items():
        if category == _direction(name):
            found = [_value(record, metric, member) for member in members]
            known = [value for value in found if value is not None]
            return statistics.fmean(known) if len(known) == len(found) else None
    value = record.metrics["categories"].get(category, {}).get(metric)
    return None if value is None else float(value)


def _direction(group: str) -> str:
    """A group's mean by name; such a name is no category's."""
    return f"mean: trained on {'textures' if group == 'objects' else 'objects'}, tested on {group}"


def families(records: Iterable[Record]) -> list[Family]:
    """Records by comparability, in a stable order (data set, setting, shots, then the rest of the protocol)."""
    groups: dict[str, tuple[dict[str, Any], list[Record]]] = {}
    for record in records:
        protocol = _protocol(record)
        groups.setdefault(canonical_json(protocol), (protocol, []))[1].append(record)
    joined = _with_untrained(list(groups.values()))
    made = [Family(protocol, tuple(group)) for protocol, group in joined]

    def order(family: Family) -> tuple[Any, ...]:
        protocol = family.protocol
        return (protocol["dataset"], protocol["setting"], protocol["shots"], "selection" in protocol, canonical_json(protocol))

    return sorted(made, key=order)


def _protocol(record: Record) -> dict[str, Any]:
    """What records of one table share; `selection` enters where it tells an oracle from all others."""
    oracle = {"selection": "oracle"} if record.identity["selection"] == "oracle" else {}
    return {key: record.identity[key] for key in FAMILY_KEYS} | oracle


def _with_untrained(groups: list[tuple[dict[str, Any], list[Record]]]) -> list[tuple[dict[str, Any], list[Record]]]:
    """Groups whose methods learned from no image join the groups of every source; without any they stay by themselves."""
    kept = []
    for protocol, records in groups:
        hosts = []
        if learned_nothing(protocol):
            hosts = [theirs for other, theirs in groups if other["source"] is not None and other | {"source": None} == protocol]
        for host in hosts:
            host += records
        if not hosts:
            kept.append((protocol, records))
    return kept


def rows_of(family: Family) -> list[Row]:
    """The done records as rows, the best I-AUROC first, then P-AUROC, then by name; rows chosen on the test set last."""
    groups: dict[str, dict[int, Record]] = {}
    for record in family.records:
        if record.status == "done":
            # Another seed draws other support images: that is a part of what the deviation over seeds measures.
            key = canonical_json({name: value for name, value in record.identity.items() if name not in ("seed", "support")})
            groups.setdefault(key, {})[record.identity["seed"]] = record
    rows = [Row(tuple(group[seed] for seed in sorted(group))) for group in groups.values()]

    def rank(row: Row) -> tuple[Any, ...]:
        scores = [row.mean(metric) for metric in ("i_auroc", "p_auroc")]
        return (row.chosen_on_test, *(1.0 if score is None else -score for score in scores), row.first.label, row.first.id)

    return sorted(rows, key=rank)
