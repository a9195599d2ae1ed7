"""Files of tensors from anywhere (.pth, .pt), loaded so that they can neither run code nor fill the memory.

`torch.load(weights_only=True)` refuses every object but tensors and plain data. Before that the zip is looked at: a file that torch
wrote is not compressed, so members that promise more bytes than the file has are a bomb; and their checksums, which torch writes
but does not compare, tell of changed numbers. After it each tensor is held to what its storage holds: a shape of 10^12 numbers over
four bytes (stride 0) is legal in the format, and costs its reader everything.
"""

from __future__ import annotations

import argparse
import contextlib
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_ZIP = b"PK\x03\x04"
_BLOCK = 1 << 22
_SLACK = 1 << 20  # bytes that a zip may promise, and a tensor may show, beyond what is there


class HostileFileError(ValueError):
    """A file that promises more than it holds, or is none."""


def load(path: Path) -> Any:
    """The content of a file of tensors, on the CPU. Raises nearly anything for a broken or hostile file, and runs none of it."""
    import torch

    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise HostileFileError("it is no regular file")
    with path.open("rb") as stream:
        zipped = stream.read(len(_ZIP)) == _ZIP
    if zipped:
        _check_zip(path, status.st_size)
    with _safe_types():
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_zip(path: Path, size: int) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        promised = sum(member.file_size for member in members)
        if promised > size + _SLACK:
            raise HostileFileError(f"its {size} bytes unpack to {promised}")
        for member in members:
            if member.CRC:  # 0: written without one (torch.serialization.set_crc32_options)
                with archive.open(member) as stream:
                    while stream.read(_BLOCK):  # raises `BadZipFile` at the end
                        pass


def problem(tensor: Tensor) -> str:
    """Why no method can use this tensor of a file, or an empty text: no values, a type without arithmetic, more than is stored."""
    import torch

    usual = tensor.is_floating_point() or tensor.dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    )
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or not usual or tensor.is_nested:
        return f"is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device.type}"
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"is of {tensor.dtype}, which has no arithmetic"
    shown, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if shown > stored + _SLACK:
        return f"shows {shown} bytes of the {stored} that are stored"
    return "" if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()) else "holds values that are not finite"


@contextlib.contextmanager
def _safe_types() -> Iterator[None]:
    """Allow `argparse.Namespace`, plain data that some published files carry beside the tensors."""
    from torch import serialization

    before = serialization.get_safe_globals()
    serialization.add_safe_globals([argparse.Namespace])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)
