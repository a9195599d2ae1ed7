"""The split that InCTRL's authors make of sets without an official one: a quarter of the normal images is tested, none is lost.

Equal to scikit-learn's train_test_split(names, test_size=0.25, random_state=42), without scikit-learn. The draw depends on the
order of the names: the order of a table where there is one, else sorted names. The authors' scripts take the order in which the
file system lists a folder; there the sizes agree with ours, the members differ from machine to machine.
"""

from __future__ import annotations

import math


def split_normals(names: list[str]) -> tuple[list[str], list[str]]:
    """(train, test) in the order of the draw: RandomState(42).permutation, the first ceil(n/4) are tested."""
    import numpy as np

    order = np.random.RandomState(42).permutation(len(names))
    tested = math.ceil(0.25 * len(names))
    return [names[i] for i in order[tested:]], [names[i] for i in order[:tested]]


def tested(names: list[str]) -> set[str]:
    """The names that the split tests; all others are trained on."""
    return set(split_normals(names)[1])
