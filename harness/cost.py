"""What a cell costs: seconds, images a second, memory, parameters, operations. Recorded beside the accuracy, never in the identity.

Peak memory is a cell's own: it is reset where a cell begins (CUDA, Linux), else that of the process so far.
`flops` counts the multiply-adds of one forward of one image twice (2 operations each), by torch's own formulas, on the method's
own `predict`; operations that torch does not count (norms, interpolation) are left out, as in the field's usual tools.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from inpbench.harness.api import Size

if TYPE_CHECKING:
    from inpbench.harness.category_result import CategoryResult
    from inpbench.harness.runner import Options
    from inpbench.harness.snapshots import Fitting

log = logging.getLogger("inpbench")

# Linux: the process's highest resident memory, and where it is set back.
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Sums over the models of a cell; parameters and operations are those of one model."""

    fit_s: float = 0.0
    parameters_total: int | None = None
    parameters_trainable: int | None = None
    flops: int | None = None
    peak_memory_mb: float | None = None
    team: dict[str, Any] | None = None  # of the processes that trained, where there were several

    @classmethod
    def begin(cls, device: torch.device) -> Cost:
        """Nothing spent yet; the highest memory so far is forgotten."""
        if device.type == "cuda":
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # else torch refuses: nothing was allocated yet
                torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # no Linux, or not allowed: the peak is then that of the process so far
                _CLEAR.write_text("5", encoding="ascii")
        return cls()

    def add_fit(self, fitting: Fitting) -> None:
        """Add the training of one model, interrupted runs included."""
        self.fit_s += fitting.seconds
        self.team = fitting.team or self.team

    def as_dict(self, results: Iterable[CategoryResult]) -> dict[str, Any]:
        """The record's `cost`: None where a number could not be had."""
        results = list(results)
        images = sum(result.images for result in results)
        seconds = sum(result.predict_s for result in results)
        enter_s = sum(result.enter_s for result in results)
        return {
            "fit_s": self.fit_s,
            **({"enter_s": enter_s} if enter_s > 0 else {}),
            "predict_s": seconds,
            "predict_images_per_s": images / seconds if seconds > 0 else None,
            "parameters_total": self.parameters_total,
            "parameters_trainable": self.parameters_trainable,
            "flops_per_image": self.flops,
            "peak_memory_mb": self.peak_memory_mb,
        }


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory of the device (CUDA) or of this process (CPU) since `Cost.begin`, in MB of 10^6 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with contextlib.suppress(OSError, StopIteration), _STATUS.open(encoding="ascii", errors="replace") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # macOS counts bytes, Linux KiB


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the floating-point operations of what runs inside it, by torch's own table of formulas."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it, where the table knows it."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def count_cost(method: Any, size: Size, options: Options, cost: Cost) -> None:
    """Fill in parameters, operations and memory.

    Learned ("trainable") are the numbers of the method's `state()`: weights, or a memory bank, but not the reference images that a
    method which is told the category keeps (`references/...`). The total adds the parameters of those torch modules among its
    attributes that are not in the state: the frozen encoder.
    """
    state = {key: value for key, value in method.state().items() if not key.startswith("references/")}
    modules = [value for value in vars(method).values() if isinstance(value, torch.nn.Module)]
    learned = {tensor.data_ptr(): tensor.numel() for tensor in state.values() if tensor.numel()}
    frozen = {tensor.data_ptr(): tensor.numel() for module in modules for tensor in module.parameters() if tensor.numel()}
    cost.parameters_trainable = sum(tensor.numel() for tensor in state.values())
    cost.parameters_total = cost.parameters_trainable + sum(frozen[place] for place in frozen.keys() - learned.keys())
    cost.peak_memory_mb = peak_memory_mb(options.device)
    image = torch.zeros(1, 3, *size, device=options.device, dtype=options.dtype)
    try:
        with Operations() as operations:
            method.predict(image)
        cost.flops = operations.total
    except (RuntimeError, TypeError) as error:  # a third party's compiled or scripted model may not be countable; the rest stands
        log.warning("operations not counted: %s", error)
