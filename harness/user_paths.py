"""Paths as people type them: `~` and `~name` stand for home folders."""

from __future__ import annotations

from pathlib import Path

from inpbench.harness.errors import UsageError


def expanded(path: str | Path) -> Path:
    """The path with its `~` replaced. Raises `UsageError` where nobody knows that home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{path} begins with a home folder that this machine does not know.", "Type the whole path.") from None
