"""The Python that runs the tests, as a command; with -P (Python 3.11) nothing of the current folder is importable."""

from __future__ import annotations

import sys

PYTHON = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else [])]
