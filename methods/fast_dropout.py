"""The noise of dropout on a CPU, the same bits as torch's in about half the time.

torch draws one number after the other, r < 2^53 (1 - p) for r of 53 random bits, and a layer of 400 channels takes as long as four
products. Here a whole vector of the generator's 64-bit numbers is drawn and compared at once: the same numbers of the same stream.
Which numbers torch takes is no promise of its documentation (with Intel's library it takes others): `agrees` compares both ways
once a process, and where they differ, torch's own way is taken.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_BITS = 53


def pays(x: Tensor) -> bool:
    """Whether to use this module for an input of any shape."""
    return x.device.type == "cpu" and x.is_contiguous() and agrees()


def noise(x: Tensor, p: float) -> Tensor:
    """What dropout multiplies `x` by: 0 with probability p, else 1 / (1 - p); draws from torch's generator of the CPU."""
    bits = torch.empty(x.shape, dtype=torch.int64).random_().bitwise_and_((1 << _BITS) - 1)
    return torch.lt(bits, math.ceil((1.0 - p) * (1 << _BITS))).to(x.dtype).div_(1.0 - p)


@lru_cache(maxsize=1)
def agrees() -> bool:
    """Whether this machine's torch draws as `noise` does, and leaves its generator in the same state."""
    ones, found = torch.ones(3, 111), []
    with torch.random.fork_rng(devices=[]):
        for ours in (True, False):
            torch.manual_seed(0)
            drawn = [noise(ones, p) if ours else F.dropout(ones, p, training=True) for p in (0.2, 0.7)]
            found.append([*drawn, torch.get_rng_state()])
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))
