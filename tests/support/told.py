"""A tiny method that is told the category, for tests: the distance from the mean of the references, or from what it learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inpbench.harness.api import Context, MethodInfo, Prediction, Preprocess, TrainingSet
from inpbench.harness.errors import UsageError

CALLS: list[tuple[Any, ...]] = []  # what the bench did, in order; emptied by the tests


@dataclass(frozen=True, kw_only=True)
class ToldParams:
    oracle: bool = False  # scale each category's maps by its test labels

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(resize=(32, 32), crop=(32, 32))

    @property
    def selection(self) -> str:
        return "oracle" if self.oracle else "last"


class Told:
    """`harness.api.Method`, `CategoryAware` and `Oracle`."""

    def __init__(self, params: ToldParams, ctx: Context) -> None:
        self.ctx = ctx
        self.known: dict[str, Tensor] = {}  # category -> mean image (3, H, W)
        self.learned: Tensor | None = None
        self.category, self.scale = "", 1.0

    def fit(self, train: TrainingSet) -> None:
        labels = Counter((sample.split, sample.label) for sample in train.samples)
        CALLS.append(("fit", self.ctx.setting, self.ctx.shots, tuple(train.categories), dict(labels)))
        anomalous = [i for i, sample in enumerate(train.samples) if sample.label == 1]
        assert not anomalous or bool(train.masks(anomalous).any())
        self.learned = train.batch(range(len(train))).mean(0)

    def enter(self, category: str, references: TrainingSet | None) -> None:
        names = None if references is None else [sample.image for sample in references.samples]
        CALLS.append(("enter", category, names))
        self.category, self.scale = category, 1.0
        if references is not None:
            assert {sample.category for sample in references.samples} == {category} == set(references.categories)
            assert all(sample.label == 0 and sample.split == "train" for sample in references.samples)
            self.known[category] = references.batch(range(len(references))).mean(0)
        elif category not in self.known and self.ctx.setting != "zero_shot":
            raise UsageError(f"told needs normal images of {category}.", "Type: --normal DIR")

    def consult(self, test: TrainingSet) -> None:
        labels = [sample.label for sample in test.samples]
        CALLS.append(("consult", self.category, labels, int(test.masks(range(len(test))).flatten(1).any(1).sum())))
        self.scale = 1.0 + sum(labels)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        CALLS.append(("predict", self.category))
        normal = self.known.get(self.category, self.learned)
        return Prediction(self.scale * (images if normal is None else images - normal).abs().mean(1))

    def state(self) -> dict[str, Tensor]:
        learned = {} if self.learned is None else {"learned": self.learned}
        return {**learned, **{f"of.{category}": mean for category, mean in self.known.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.learned = state.get("learned")
        self.known = {key.removeprefix("of."): value for key, value in state.items() if key.startswith("of.")}


INFO = MethodInfo(
    name="told",
    version=1,
    title="a test's method that is told the category",
    target="told:Told",
    params=ToldParams,
    settings=MethodInfo.SETTINGS_ALL,
    told_category=True,
)
FREE = MethodInfo(
    name="free",
    version=1,
    title="a test's method that learns from no image in zero_shot",
    target="told:Told",
    params=ToldParams,
    settings=frozenset({"zero_shot", "few_shot", "multi_class"}),
    told_category=True,
    untrained=frozenset({"zero_shot", "few_shot"}),
)
