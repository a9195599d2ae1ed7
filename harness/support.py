"""The support images of settings with shots: k normal training images of each category, drawn as INP-Former draws them.

One generator for all categories: `random.Random(seed)`, then `sample(images of the category, k)` category by category in the
official order. The draw of k = 1 is therefore no part of the draw of k = 2. Nothing else takes numbers from this generator.

The prompts of `generalist` have no published draw: each category has a generator of its own, `random.Random("<seed>/<category>")`,
whose permutation of the category's images is cut after k. They depend on nothing but seed and category, and those of k = 2 are the
first two of k = 4.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inpbench.harness.api import Sample
from inpbench.harness.errors import UsageError

if TYPE_CHECKING:
    from inpbench.harness.manifest import Manifest


def draw_support(counts: Mapping[str, int], shots: int, seed: int) -> dict[str, list[int]]:
    """Positions of the drawn images of each category, in the order of the draw.

    counts: number of normal training images of each category, in the official order.
    Raises `UsageError` when a category has fewer than `shots`.
    """
    _check(counts, shots)
    generator = random.Random(seed)
    return {category: generator.sample(range(count), shots) for category, count in counts.items()}


def draw_prompts(counts: Mapping[str, int], shots: int, seed: int) -> dict[str, list[int]]:
    """Positions of the prompts of each category: a function of seed and category alone. Arguments and errors of `draw_support`."""
    _check(counts, shots)
    return {name: random.Random(f"{seed}/{name}").sample(range(count), count)[:shots] for name, count in counts.items()}


def _check(counts: Mapping[str, int], shots: int) -> None:
    if shots < 1:
        raise UsageError(f"Few-shot needs at least one image, found shots={shots}.", "Type: --shots 1,2,4")
    for category, count in counts.items():
        if count < shots:
            raise UsageError(
                f"{category} has {count} normal training images, {shots} shots were asked for.", f"Type: --shots {max(count, 1)}"
            )


def support_samples(samples: Sequence[Sample], shots: int, seed: int) -> list[Sample]:
    """The drawn samples among a manifest's, category by category, in the order of the draw."""
    normal = _normal(samples)
    drawn = draw_support({category: len(group) for category, group in normal.items()}, shots, seed)
    return [normal[category][position] for category, positions in drawn.items() for position in positions]


def draw_of(manifest: Manifest, shots: int, seed: int, *, prompts: bool = False) -> dict[str, list[int]]:
    """Positions of the drawn images of each category of a manifest, among its normal training images.

    prompts: as `generalist` draws them, instead of as INP-Former does. There, categories that were left out (--categories) still
    take their numbers from the stream where their published counts are known, so that the draw of one category is that of the
    whole set. Raises as `draw_support`.
    """
    counts = {category: len(group) for category, group in _normal(manifest.samples).items()}
    missing = [category for category in manifest.categories if category not in counts]
    if missing:
        raise UsageError(
            f"{missing[0]} has 0 normal training images, {shots} shots were asked for.", "Leave it out with --categories."
        )
    if prompts:
        return draw_prompts(counts, shots, seed)
    published = manifest.info.counts
    every = manifest.info.categories
    if set(counts) <= set(every) and all(category in counts or category in published for category in every):
        absent = {category: published[category].train for category in every if category not in counts}
        if all(count >= shots for count in absent.values()):
            stream = {category: counts.get(category, absent.get(category, 0)) for category in every}
            drawn = draw_support(stream, shots, seed)
            return {category: drawn[category] for category in counts}
    return draw_support(counts, shots, seed)


def drawn_samples(manifest: Manifest, drawn: Mapping[str, Sequence[int]]) -> list[Sample]:
    """The samples at the positions that `draw_of` gave, category by category, in the order of the draw."""
    normal = _normal(manifest.samples)
    return [normal[category][position] for category, positions in drawn.items() for position in positions]


def _normal(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    normal: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.split == "train" and sample.label == 0:
            normal.setdefault(sample.category, []).append(sample)
    return normal
