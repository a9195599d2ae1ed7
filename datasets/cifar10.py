"""CIFAR-10: 60,000 photographs, 32 x 32; classes as categories, or animals against vehicles (`semantic`).

Read are PNG folders train/<class>, test/<class>; `prepare` makes them from the published batches, binary or Python. The Python ones
are pickles, and an ordinary unpickler runs what a pickle says: ours knows three harmless stand-ins for numpy's names and refuses
every other, so that no foreign code runs and no numpy internals are fed; the bytes are checked for length before they are pixels.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.datasets.listing import find_base
from inpbench.datasets.prepared import not_there
from inpbench.datasets.semantic import Classes, Protocol, class_pieces, scan_classes
from inpbench.harness.api import Archive, Counts, DatasetInfo, Decoder, Piece, Report, Sample
from inpbench.harness.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = (tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",))
ROW = 3 * 32 * 32  # bytes of an image: red, green, blue planes
LARGEST = 1 << 26  # bytes of a batch; the published ones have 31 million
ABOUT = Classes(
    name="cifar10",
    title="CIFAR-10",
    classes=CLASSES,
    together="animal",
    normal=frozenset({"bird", "cat", "deer", "dog", "frog", "horse"}),
    train=dict.fromkeys(CLASSES, 5000),
    test=dict.fromkeys(CLASSES, 1000),
    splits=(("train",), ("test",)),
    tops=("cifar10", "cifar-10", "CIFAR-10", "CIFAR10"),
)


@dataclass(frozen=True, kw_only=True)
class CifarParams:
    """Which protocol."""

    protocol: Protocol = "one_vs_all"  # multi_class: animals normal, vehicles anomalous

    @property
    def published(self) -> dict[str, Counts]:
        """The counts of this protocol, for the audit."""
        return ABOUT.counts(self.protocol)

    @property
    def alone(self) -> bool:
        """Whether each category needs a model of its own."""
        return self.protocol == "one_vs_all"


def scan(root: Path, params: CifarParams, report: Report) -> list[Sample]:
    """The samples of a tree of PNG folders; `DataError` otherwise, also for batches, which have to be prepared."""
    try:
        return scan_classes(root, ABOUT, params.protocol, report)
    except DataError:
        if _base(root) is None:
            raise
        raise DataError(
            f"{root} holds CIFAR-10 as batches.",
            f"Type: bench data prepare cifar10 --from {root} --to NEW_FOLDER, then --data-root NEW_FOLDER",
        ) from None


def _file(folder: Path, stem: str) -> Path | None:
    return next((folder / name for name in (f"{stem}.bin", stem) if (folder / name).is_file()), None)


def _base(root: Path) -> str | None:
    tops = ("cifar-10-batches-py", "cifar-10-batches-bin")
    return find_base(root, tops, lambda path: all(_file(path, stem) for stems in BATCHES for stem in stems))


# --- batches --------------------------------------------------------------------------------------------------------


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


def prepare(raw: Path, params: CifarParams, read: Decoder, report: Report) -> Iterator[Piece]:
    """PNG folders of the training and test images."""
    base = _base(raw)
    if base is None:
        raise not_there(raw, "CIFAR-10", "cifar10", "data_batch_1 to data_batch_5 and test_batch (or .bin) are not there")
    for which, stems in enumerate(BATCHES):
        first = 0
        for stem in stems:
            file = _file(raw / base, stem)
            assert file is not None, "found by _base"
            pixels, labels = read_batch(file)
            yield from class_pieces(ABOUT, which, list(pixels), labels, first)
            first += len(labels)


CIFAR10 = DatasetInfo(
    name="cifar10",
    version=1,
    title="CIFAR-10 (classes as categories)",
    scan="inpbench.datasets.cifar10:scan",
    params=CifarParams,
    categories=CLASSES,
    counts=ABOUT.counts("one_vs_all"),
    licence="none stated; cite Krizhevsky 2009",
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
    expected_tree="""\
<root>/train/<class>/00000.png, <root>/test/<class>/00000.png
for bench data prepare: data_batch_1 ... data_batch_5, test_batch (the Python version), or the same with .bin (the binary one)
--set cifar10.protocol=multi_class: animals normal, vehicles anomalous""",
    prepare="inpbench.datasets.cifar10:prepare",
    archives=(
        Archive(
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            file="cifar-10-python.tar.gz",
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    ),
)
