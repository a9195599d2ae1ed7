"""`torch.compile` where it pays and may fail: a function compiled for one shape, and as written for everything else.

Used by the fast engine on CUDA alone: on the CPU a compiler would be needed and numbers would change in the last digit.
A failure of the compiler is said once, with its reason, and costs speed but no result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

from inpbench.harness.api import Context

log = logging.getLogger("inpbench")


def compiles(ctx: Context) -> bool:
    """Whether this run compiles."""
    return ctx.engine == "fast" and ctx.compile and ctx.device.type == "cuda"


class CompiledOnce:
    """Calls `function`, compiled for the first key it is called with; other keys (a smaller last batch) run as written."""

    def __init__(self, function: Callable[..., Any], name: str, enabled: bool) -> None:
        self._plain, self._name = function, name
        self._compiled: Callable[..., Any] | None = torch.compile(function, dynamic=False) if enabled else None
        self._key: Hashable | None = None

    def __call__(self, key: Hashable, *arguments: Any) -> Any:
        """`function(*arguments)`; key: what compilation depends on (shapes, mode)."""
        if self._compiled is None:
            return self._plain(*arguments)
        first = self._key is None
        if first:
            self._key = key
        if key != self._key:
            return self._plain(*arguments)
        try:
            return self._compiled(*arguments)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler's own errors have no common type
            if not first:
                raise
            log.warning("torch.compile failed on %s (%s: %s); it runs uncompiled.", self._name, type(error).__name__, error)
            self._compiled = None
            return self._plain(*arguments)
