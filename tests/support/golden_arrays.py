"""Comparing a golden case: every array is compared with what the same part of ours gives, and none may be forgotten.

A tolerance is relative to the largest absolute value of the expected array.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from golden import Case
from torch import Tensor


def array(value: Any) -> np.ndarray:
    """A tensor, list or number as an array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def close(name: str, actual: Any, expected: Any, tolerance: float, least: float = 0.0) -> None:
    """Assert equality within `tolerance` of the largest absolute expected value, or of `least`; NaN never passes."""
    found, wanted = array(actual), array(expected)
    assert found.shape == wanted.shape, f"{name}: shape {found.shape}, expected {wanted.shape}"
    if not wanted.size:
        return
    scale = max(float(np.abs(wanted).max()), least)
    worst = float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max())
    assert worst <= tolerance * scale or worst == 0.0, f"{name}: off by {worst:.3e}, allowed {tolerance:g} of {scale:.3e}"


def _part(full: np.ndarray, text: str) -> np.ndarray:
    """`full` or the slice that a case's json names: `[:, ::7, ::16]`, `flat[::48][:48]`, `... flat [::97] ...`."""
    flat = re.search(r"flat ?((?:\[[^\]]*\])+)", text)
    if flat:
        out = full.reshape(-1)
        for part in re.findall(r"\[([^\]]*)\]", flat.group(1)):
            out = out[_slice(part)]
        return out
    if re.match(r"\[[\s:\d]*[:,]", text):
        return full[tuple(_slice(part) for part in text.strip("[]").split(","))]
    return full


def _slice(text: str) -> slice:
    fields = [int(part) if part.strip() else None for part in text.split(":")]
    assert 2 <= len(fields) <= 3, text
    return slice(*fields)


class Comparison:
    """Compares full arrays with the stored parts of a case and remembers which were compared."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._seen: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.case.arrays

    def arrays_named(self, pattern: str) -> list[re.Match[str]]:
        """Matches of a pattern with the whole name of each array."""
        return [match for name in self.case.arrays if (match := re.fullmatch(pattern, name))]

    def check(self, name: str, actual: Any, tolerance: float, stat_of: Any = None) -> None:
        """Compare the array `name` with the same part of `actual`, and its `__stat` (of `stat_of`, by default `actual`)."""
        self._seen.add(name)
        info = self.case.config["arrays"][name]
        text = info.get("slice", "full")
        text = info["what"] if text == "full" else text
        full = array(actual)
        expected_shape = info.get("full_shape")
        if expected_shape is not None and "flat" not in text:
            assert list(full.shape) == expected_shape, f"{name}: shape {full.shape}, expected {expected_shape}"
        expected = self.case.arrays[name]
        part = _part(full, text)
        close(name, part.reshape(expected.shape) if part.size == expected.size else part, expected, tolerance)
        stat = f"{name}__stat"
        if stat in self.case.arrays:
            self._check_stat(stat, full if stat_of is None else array(stat_of), tolerance)

    def check_if_present(self, name: str, actual: Any, tolerance: float) -> None:
        """`check` where the case has the array."""
        if name in self:
            self.check(name, actual, tolerance)

    def skip(self, *names: str) -> None:
        """Count arrays as compared that the caller compares in a way of its own, or that are inputs."""
        self._seen.update(names)

    def _check_stat(self, name: str, full: np.ndarray, tolerance: float) -> None:
        self._seen.add(name)
        total, absolute, square, low, high = self.case.arrays[name].tolist()
        full = full.astype(np.float64)  # the sum of a float32 array is off by more than its numbers
        for label, found, wanted, scale in (
            ("sum", full.sum(), total, absolute),  # a sum of both signs is as exact as the sum of absolute values
            ("sum|x|", np.abs(full).sum(), absolute, absolute),
            ("sum x^2", (full**2).sum(), square, square),
            ("min", full.min(), low, max(abs(low), abs(high))),
            ("max", full.max(), high, max(abs(low), abs(high))),
        ):
            assert abs(found - wanted) <= tolerance * scale, f"{name} {label}: {found}, expected {wanted}"

    def finish(self, *ignored: str) -> None:
        """Fail if an array of the case was never compared (`ignored`: names with a stated reason at the call)."""
        left = set(self.case.arrays) - self._seen - set(ignored)
        assert not left, f"{self.case.name}: never compared: {sorted(left)}"
