"""The scores of single images, kept beside a record: what a new metric, a bootstrap or a histogram is computed from later.

One `.npz` a record, read without pickle: `categories` and, for the i-th of them, `image_i` (N,) paths, `score_i` (N,) float64 and
`label_i` (N,) int8. Where a bootstrap was drawn, `draws_i` (7, D) float32: METRICS in every draw, NaN for a metric without a value;
and, since the intervals use it, `jackknife_i` (7, N) float32: what leaving out each image adds to METRICS, NaN where it is not left
out by itself. The same scores always give the same bytes, so that their hash can stand in the record.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inpbench.harness.errors import RecordError

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

    Samples = dict[str, dict[str, np.ndarray[Any, Any]]]

_KEYS = ("image", "score", "label")
LARGEST = 1 << 30  # bytes of all arrays together; a path of 100 characters takes 400 of them, before it is packed
DRAWS = "draws"
JACKKNIFE = "jackknife"
_TABLES = (DRAWS, JACKKNIFE)


def pack(samples: Mapping[str, Mapping[str, Sequence[Any]]]) -> bytes:
    """`{category: {"image": paths, "score": floats, "label": ints}}` as the bytes of a compressed npz."""
    import numpy as np

    arrays: dict[str, Any] = {"categories": np.asarray(list(samples), dtype=np.str_)}
    for index, table in enumerate(samples.values()):
        arrays[f"image_{index}"] = np.asarray(list(table["image"]), dtype=np.str_)
        arrays[f"score_{index}"] = np.asarray(table["score"], dtype=np.float64)
        arrays[f"label_{index}"] = np.asarray(table["label"], dtype=np.int8)
        for key in _TABLES:
            if key in table:
                arrays[f"{key}_{index}"] = np.asarray(table[key], dtype=np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpack(data: bytes, name: str) -> Samples:
    """The inverse of `pack`: (N,) arrays of str, float64 and int8, and the draws and the jackknife where there are any.

    `name` stands in the `RecordError` for anything else.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            promised = sum(member.file_size for member in archive.infolist())
        if promised > LARGEST:
            raise ValueError(f"its {len(data)} bytes unpack to {promised}")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            categories = arrays["categories"]
            if categories.ndim != 1 or categories.dtype.kind != "U" or len(set(categories.tolist())) != len(categories):
                raise ValueError("its categories are no list of names")
            found = {}
            for index, category in enumerate(categories):
                keys = (*_KEYS, *(key for key in _TABLES if f"{key}_{index}" in arrays))
                found[str(category)] = table = {key: arrays[f"{key}_{index}"] for key in keys}
                _check(str(category), table)
            return found
    except Exception as error:  # numpy reads a header as Python text, and a damaged one can raise anything; none of it runs
        raise RecordError(f"{name} is no file of scores: {error}.", "Run the cell again with --force.") from error


def _check(category: str, table: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Raise `ValueError` unless the arrays are of the types and lengths of the module docstring."""
    import numpy as np

    image, score, label = (table[key] for key in _KEYS)
    if (image.dtype.kind, score.dtype, label.dtype) != ("U", np.float64, np.int8):
        raise ValueError(f"{category}: arrays of {image.dtype}, {score.dtype} and {label.dtype}")
    if not image.shape == score.shape == label.shape == (len(image),) or not np.isfinite(score).all():
        raise ValueError(
            f"{category}: {image.shape} images, {score.shape} scores, {label.shape} labels, or a score that is no number"
        )
    for key in _TABLES:
        if key in table and (table[key].dtype != np.float32 or table[key].ndim != 2):
            raise ValueError(f"{category}: {key} of {table[key].dtype} in {table[key].ndim} dimensions")
