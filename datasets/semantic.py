"""Sets of classes (MNIST, CIFAR-10) as anomaly detection: what belongs to another class is anomalous. Image level only.

one_vs_all: a category a class, named like it, because methods with text prompts speak of it: normal is the class, anomalous are
all other test images; the published number is the mean over the categories, each with a model of its own (`--setting
single_class`; one model of all classes would learn every anomaly as normal, the plan refuses it). multi_class: one category, some
classes normal together.
Known deviation: the word for normal MNIST digits in the multi-class protocol is not published; it changes text prompts only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from inpbench.datasets.listing import find_base, folders, images, join
from inpbench.datasets.prepared import not_there
from inpbench.harness.api import Counts, Finding, Piece, Report, Sample
from inpbench.harness.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Protocol = Literal["one_vs_all", "multi_class"]
Found = dict[str, list[str]]  # class -> image paths, sorted


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What is known of a set of classes."""

    name: str
    title: str
    classes: tuple[str, ...]
    together: str  # category of the multi-class protocol
    normal: frozenset[str]  # classes that are normal there
    train: Mapping[str, int]  # published images by class
    test: Mapping[str, int]
    splits: tuple[tuple[str, ...], tuple[str, ...]]  # folder names of the training and test images
    tops: tuple[str, ...]  # folders that archives unpack to

    def counts(self, protocol: Protocol) -> dict[str, Counts]:
        """Published numbers of each category."""
        groups = {c: {c} for c in self.classes} if protocol == "one_vs_all" else {self.together: set(self.normal)}
        return {
            name: Counts(
                sum(self.train[c] for c in normal),
                sum(self.test[c] for c in normal),
                sum(self.test[c] for c in self.classes if c not in normal),
            )
            for name, normal in groups.items()
        }

    def split(self, root: Path, base: str, which: int) -> str | None:
        """The folder of the training (0) or test (1) images below root/base."""
        return next((join(base, name) for name in self.splits[which] if (root / base / name).is_dir()), None)


@dataclass(frozen=True, kw_only=True)
class ClassParams:
    """Which protocol; a set of classes derives from it and says what is known of it."""

    ABOUT: ClassVar[Classes]

    protocol: Protocol = "one_vs_all"  # multi_class: some classes normal together, the others anomalous

    @property
    def published(self) -> dict[str, Counts]:
        """The counts of this protocol, for the audit."""
        return self.ABOUT.counts(self.protocol)

    @property
    def alone(self) -> bool:
        """Whether each category needs a model of its own."""
        return self.protocol == "one_vs_all"


def scan_prepared(root: Path, params: ClassParams, report: Report, raw: Callable[[Path], str | None], kind: str) -> list[Sample]:
    """`scan_classes`; files as published (`raw` finds them below the root; kind: what they are) have to be prepared first."""
    about = params.ABOUT
    try:
        return scan_classes(root, about, params.protocol, report)
    except DataError:
        if raw(root) is None:
            raise
        raise DataError(
            f"{root} holds {about.title} as {kind}.",
            f"Type: bench data prepare {about.name} --from {root} --to NEW_FOLDER, then --data-root NEW_FOLDER",
        ) from None


def scan_classes(root: Path, about: Classes, protocol: Protocol, report: Report) -> list[Sample]:
    """The samples of one folder a class; `DataError` when the root is not of this layout."""

    def fits(path: Path) -> bool:
        return all(any((path / name / c).is_dir() for name in names for c in about.classes) for names in about.splits)

    base = find_base(root, about.tops, fits)
    if base is None:
        raise not_there(root, about.title, about.name, f"expected {about.splits[0][0]}/{about.classes[0]}/*.png")
    train, test = (_images(root, about, about.split(root, base, which) or "", report) for which in (0, 1))
    if protocol == "multi_class":
        return _category(about.together, about.normal, train, test)
    return [sample for c in about.classes if c in train for sample in _category(c, {c}, train, test)]


def _images(root: Path, about: Classes, folder: str, report: Report) -> Found:
    for name in folders(root / folder):
        if name not in about.classes:
            report(Finding(join(folder, name), "ignored", f"not a class of {about.title}"))
    for name in about.classes:
        if not (root / folder / name).is_dir():
            report(Finding(join(folder, name), "missing_category", "the folder of a class is not there"))
    return {c: [join(folder, c, name) for name in images(root, join(folder, c), report)] for c in about.classes}


def _category(name: str, normal: Iterable[str], train: Found, test: Found) -> list[Sample]:
    """Training images of the normal classes, all test images; the kind of defect of an anomalous one is its class."""
    chosen = set(normal)
    trained = [Sample(path, name, "train", 0) for c in chosen for path in train[c]]
    tested = [
        Sample(path, name, "test", int(c not in chosen), None, "good" if c in chosen else c) for c in test for path in test[c]
    ]
    return sorted(trained, key=lambda s: s.image) + sorted(tested, key=lambda s: s.image)


def class_pieces(
    about: Classes, which: int, pictures: Sequence[NDArray[np.uint8]], labels: Sequence[int], first: int = 0
) -> Iterable[Piece]:
    """`<split>/<class>/NNNNN.png`; the number is the image's place in its split, from `first` on."""
    for i, (pixels, label) in enumerate(zip(pictures, labels, strict=True), start=first):
        yield Piece(join(about.splits[which][0], about.classes[int(label)], f"{i:05d}.png"), pixels)
