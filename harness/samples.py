"""The scores of single images, kept beside a record: what a new metric, a bootstrap or a histogram is computed from later.

One `.npz` a record, read without pickle: `categories` and, for the i-th of them, `image_i` (N,) paths, `score_i` (N,) float64 and
`label_i` (N,) int8. Where a bootstrap was drawn, `draws_i` (7, D) float32: METRICS in every draw, NaN for a metric without a value;
and, since the intervals use it, `jackknife_i` (7, N) float32: what leaving out each image adds to METRICS, NaN where it is not left
out by itself. The same scores always give the same bytes, so that their hash can stand in the record.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inpbench.harness.errors import RecordError

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

    Samples = dict[str, dict[str, np.ndarray[Any, Any]]]

_KEYS = ("image", "score", "label")
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
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {
                str(category): {
                    key: arrays[f"{key}_{index}"] for key in (*_KEYS, *_TABLES) if key in _KEYS or f"{key}_{index}" in arrays
                }
                for index, category in enumerate(arrays["categories"])
            }
    except (ValueError, LookupError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError(f"{name} is no file of scores: {error}.", "Run the cell again with --force.") from error
