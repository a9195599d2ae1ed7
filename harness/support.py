"""The support images of few-shot settings: k normal training images of each category, drawn as INP-Former draws them.

One generator for all categories: `random.Random(seed)`, then `sample(images of the category, k)` category by category in the
official order. The draw of k = 1 is therefore no part of the draw of k = 2. Nothing else takes numbers from this generator.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from inpbench.harness.api import Sample
from inpbench.harness.errors import UsageError


def draw_support(counts: Mapping[str, int], shots: int, seed: int) -> dict[str, list[int]]:
    """Positions of the drawn images of each category, in the order of the draw.

    counts: number of normal training images of each category, in the official order.
    Raises `UsageError` when a category has fewer than `shots`.
    """
    if shots < 1:
        raise UsageError(f"Few-shot needs at least one image, found shots={shots}.", "Type: --shots 1,2,4")
    for category, count in counts.items():
        if count < shots:
            raise UsageError(
                f"{category} has {count} normal training images, {shots} shots were asked for.", f"Type: --shots {max(count, 1)}"
            )
    generator = random.Random(seed)
    return {category: generator.sample(range(count), shots) for category, count in counts.items()}


def support_samples(samples: Sequence[Sample], shots: int, seed: int) -> list[Sample]:
    """The drawn samples among a manifest's, category by category, in the order of the draw."""
    normal: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.split == "train" and sample.label == 0:
            normal.setdefault(sample.category, []).append(sample)
    drawn = draw_support({category: len(group) for category, group in normal.items()}, shots, seed)
    return [normal[category][position] for category, positions in drawn.items() for position in positions]
