"""Scores on the host and on a device: NumPy does on the CPU what torch's threads would make dearer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from inpbench.harness.metrics import loops
from inpbench.harness.metrics.keys import BITS, Ints, values_of


def room(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor (count,); of large pages on the CPU, where NumPy asks the system for them and torch does not."""
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(count, str(dtype).removeprefix("torch.")))


def keep(scores: Tensor, kept: Tensor) -> tuple[float, float] | None:
    """Write scores (n,) to `kept` (n,), of their type or a wider one, -0.0 as 0.0.

    Returns the smallest and the largest where that costs nothing; of scores with a NaN one of the two is NaN. On the CPU without
    torch: a barrier of its threads costs more than the operation on a busy machine.
    """
    if kept.device.type != "cpu":
        torch.add(scores, 0.0, out=kept)
        return None
    host = kept.numpy()
    if not loops.COMPILED:
        np.add(scores.numpy(), 0.0, out=host)
        return None
    found, into = (part.view(BITS[kept.dtype]).numpy() for part in (scores.to(kept.dtype), kept))
    extremes = loops.keep(found, into)
    low, high = values_of(np.array(extremes), host.dtype)
    return float(low), float(high)


def take(values: Tensor, positions: Ints) -> Tensor:
    """values[positions]: (n,), (p,) int64 on the host -> (p,); on the CPU by NumPy, which is twice as fast."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy()[positions])
    return values[sent(torch.from_numpy(positions), values.device)]


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; the host does not wait for what the device is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
