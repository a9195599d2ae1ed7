"""What was measured of one tested category, on its way into a record; and the part of the record that all of them make."""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inpbench.harness.atomic import write_text
from inpbench.harness.errors import UsageError
from inpbench.harness.small_files import read_bytes

if TYPE_CHECKING:
    from inpbench.harness.draws import Drawing
    from inpbench.harness.metrics import MetricValues

log = logging.getLogger("inpbench")


@dataclass
class CategoryResult:
    """Everything the record needs of one tested category."""

    metrics: dict[str, float | None]
    undefined: dict[str, str]  # metric -> why it has no value
    bounds: dict[str, float]  # metric -> largest error of the streamed value
    counts: dict[str, int]  # normal, anomalous
    samples: dict[str, list[Any]]  # image, score, label: one entry an image, in the manifest's order; draws, jackknife: samples.py
    images: int
    predict_s: float
    enter_s: float = 0.0  # of `enter` and `consult`, where the method has them

    def write(self, folder: Path, category: str) -> None:
        """Save atomically; floats keep every bit (JSON with repr). The last line is the hash of the first: these numbers become
        a record's, and nothing else would tell that one of them was damaged.
        """
        text = json.dumps(self.__dict__)
        write_text(folder / f"{category}.json", f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")

    @classmethod
    def read(cls, folder: Path, category: str) -> CategoryResult | None:
        """The saved result, or None when there is none that can be read (it is measured again)."""
        try:
            content, _, digest = read_bytes(folder / f"{category}.json").rstrip().rpartition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != digest:
                raise ValueError("it is damaged")
            return cls(**json.loads(content))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("the saved result of %s cannot be read (%s) and is measured again.", category, error)
            return None


def check_names(categories: Iterable[str], folder: Path) -> None:
    """Raise `UsageError` where results of two categories would be one file below `folder`: one would be taken for the other."""
    alike: dict[str, str] = {}
    for category in categories:
        name = category.replace("/", "_")
        if (first := alike.setdefault(name, category)) != category:
            raise UsageError(
                f"The categories '{first}' and '{category}' would have one file name in {folder}.", f"Type: --categories {first}"
            )
    folded: dict[str, str] = {}
    for category in alike.values():
        first = folded.setdefault(unicodedata.normalize("NFKD", category.casefold()), category)
        if first != category and _ignores_case(folder):
            raise UsageError(
                f"The categories '{first}' and '{category}' would be one file in {folder}, whose file system ignores case.",
                f"Choose another disk with --results, or type: --categories {first}",
            )


def _ignores_case(folder: Path) -> bool:
    """Whether the file system says that a name and the same in other letters are one; nothing is written to find out."""
    place = folder.absolute()
    while not place.exists() or place.name.swapcase() == place.name:
        if place == place.parent:
            return False
        place = place.parent
    other = place.with_name(place.name.swapcase())
    return other.exists() and other.samefile(place)


def result_of(values: MetricValues, samples: dict[str, list[Any]], drawing: Drawing | None, *, predict_s: float) -> CategoryResult:
    """The result of a category whose images are all counted. samples: image, score, label; draws and jackknife are added to it."""
    labels = np.asarray(samples["label"])
    drawn = drawing.finish(np.asarray(samples["score"]), labels, values.values) if drawing is not None else None
    return CategoryResult(
        metrics=dict(values.values),
        undefined=dict(values.undefined),
        bounds=dict(values.bounds),
        counts={"normal": int((labels == 0).sum()), "anomalous": int((labels == 1).sum())},
        samples=samples if drawn is None else samples | drawn,
        images=len(labels),
        predict_s=predict_s,
    )


def measured(results: Mapping[str, CategoryResult]) -> dict[str, Any]:
    """`Record.metrics` of categories in their official order."""
    return {
        "mean": _means(results),
        "categories": {c: r.metrics for c, r in results.items()},
        "counts": {c: r.counts for c, r in results.items()},
        "bounds": {c: r.bounds for c, r in results.items()},
        "undefined": {c: r.undefined for c, r in results.items() if r.undefined},
    }


def _means(results: Mapping[str, CategoryResult]) -> dict[str, float | None]:
    """Plain mean over categories; undefined where it is undefined for any (a mean over fewer categories is another number)."""
    names = list(dict.fromkeys(name for result in results.values() for name in result.metrics))
    means: dict[str, float | None] = {}
    for name in names:
        values = [result.metrics.get(name) for result in results.values()]
        known = [value for value in values if value is not None]
        means[name] = float(np.mean(known)) if len(known) == len(values) and known else None
    return means
