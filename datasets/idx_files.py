"""The idx files of MNIST: a magic number, the sizes, the bytes; every length is checked before anything is believed."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from inpbench.harness.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 1 << 26  # bytes of an unpacked file; the largest published one has 47,040,016


def read_idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes. Raises `DataError` for any other content, and for one of another length."""
    import numpy as np

    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.name} cannot be read: {error}.", "Fetch it again.") from error
    head = 4 + 4 * dimensions
    if len(data) < head or len(data) > LARGEST or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{file.name} is no idx file of bytes in {dimensions} dimensions.", "Fetch it again.")
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    expected = 1
    for length in shape:
        expected *= length
    if expected != len(data) - head:
        raise DataError(f"{file.name}: its header promises {expected} bytes, found {len(data) - head}.", "Fetch it again.")
    array: NDArray[np.uint8] = np.frombuffer(data, np.uint8, offset=head).reshape(shape)
    return array
