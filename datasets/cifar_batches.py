"""The batches of CIFAR-10, binary or Python, read without trust.

The Python ones are pickles, and an ordinary unpickler runs what a pickle says: ours knows harmless stand-ins for numpy's names and
refuses every other, so that no foreign code runs and no numpy internals are fed; the bytes are checked for length before they
are pixels. A binary batch is rows of a label and an image of three planes.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROW = 3 * 32 * 32  # bytes of an image: red, green, blue planes
LARGEST = 1 << 26  # bytes of a batch; the published ones have 31 million


class _Dtype:
    """Stands for numpy.dtype: keeps its name, is told the rest and forgets it."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        return None


class _Array:
    """Stands for numpy.ndarray and what makes one: keeps the state of a pickled array: version, shape, dtype, order, bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Encoded:
    """Stands for _codecs.encode, which writes bytes in old protocols. A class, because a pickle may change functions."""

    def __new__(cls, text: str, encoding: Any = "latin1") -> bytes:  # type: ignore[misc]
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("bytes in another encoding than latin1")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        return None


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a known name; every other name ends the reading."""
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch of CIFAR-10 does") from None


def read_batch(file: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """(N, 32, 32, 3) pixels and N labels of a binary or Python batch. Raises `DataError` for anything else, running nothing."""
    import numpy as np

    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise DataError(f"{file.name} cannot be read: {error.strerror}.", "Unpack the archive again.") from error
    if len(data) > LARGEST:
        raise DataError(f"{file.name} is larger than any batch of CIFAR-10.", "Unpack the archive again.")
    pixels, labels = _binary(data) if file.suffix == ".bin" else _python(data, file.name)
    if not labels or len(pixels) != len(labels) * ROW or not all(isinstance(n, int) and 0 <= n < 10 for n in labels):
        raise DataError(
            f"{file.name} is no batch of CIFAR-10: {len(pixels)} bytes, {len(labels)} labels.", "Unpack the archive again."
        )
    planes = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _binary(data: bytes) -> tuple[bytes, list[int]]:
    """Rows of a label and an image."""
    rows = range(0, len(data), ROW + 1)
    return b"".join(data[start + 1 : start + 1 + ROW] for start in rows), [data[start] for start in rows]


def _python(data: bytes, name: str) -> tuple[bytes, list[int]]:
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        labels = batch.get(b"labels", batch.get("labels"))
        array = batch.get(b"data", batch.get("data"))
        _, shape, dtype, fortran, pixels = array.state
        if (
            tuple(shape) != (len(labels), ROW)
            or dtype.name not in ("u1", "|u1", "uint8")
            or fortran
            or not isinstance(pixels, bytes)
        ):
            raise pickle.UnpicklingError(f"its data are {shape} of {dtype.name}")
        return pixels, list(labels)
    except Exception as error:  # a hostile pickle can make the unpickler raise nearly anything; it runs none of it
        raise DataError(
            f"{name} is no batch of CIFAR-10: {error}.", "Unpack the archive again, or use the binary version."
        ) from error
