"""Dinomaly as a method under test: global cosine loss whose gradient is shrunk at the easy points."""

from __future__ import annotations

from inpbench.methods.dinomaly import DinomalyParams
from inpbench.methods.noisy import NoisyReconstruction


class Dinomaly(NoisyReconstruction):
    """`harness.api.Method` of Dinomaly: the shared noisy reconstruction as it is."""

    params: DinomalyParams
