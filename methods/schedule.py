"""WarmCosine: a linear warm-up, then a cosine, then the final rate; a pure function of the step.

The warm-up includes both of its ends, so that step 0 has the start rate (0: moments are updated, parameters do not move) and the
base rate is used twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WarmCosine:
    """The learning rate of step i (0-based); with total <= warmup the cosine part is empty."""

    base: float
    final: float
    total: int  # steps
    warmup: int = 0  # steps
    start: float = 0.0

    def __call__(self, step: int) -> float:
        """The rate of one step; steps beyond the total get the final rate."""
        if step >= self.total:
            return self.final
        if step < self.warmup:
            if step == self.warmup - 1 and step > 0:
                return self.base
            return self.start + step * ((self.base - self.start) / max(1, self.warmup - 1))
        done = (step - self.warmup) / (self.total - self.warmup)
        return self.final + 0.5 * (self.base - self.final) * (1.0 + math.cos(math.pi * done))
