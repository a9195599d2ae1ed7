"""Sets of one category, as `bench data prepare` and InCTRL's scripts leave them: train/good, test/good, test/<defect>.

The root is the category, or holds it under one of its names. `pieces` writes such a tree from samples found elsewhere: images are
copied byte for byte, masks become PNG files of 0 and 255 named `<stem>_mask.png`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from inpbench.datasets.layouts import MaskPolicy, Tree, is_category, read_test, read_train
from inpbench.datasets.listing import find_base, folders, join
from inpbench.harness.api import Decoder, Piece, Report, Sample
from inpbench.harness.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TREE = """\
<root>/train/good/NAME.png            (the root, or <root>/{name})
<root>/test/good/NAME.png
<root>/test/<defect>/NAME.png{masks}"""


def expected_tree(name: str, masks: bool, raw: str) -> str:
    """The prepared layout and, below it, the published one."""
    lines = "\n<root>/ground_truth/<defect>/NAME_mask.png" if masks else ""
    return TREE.format(name=name, masks=lines) + "\n" + raw


def read_prepared(root: Path, category: str, names: Sequence[str], masks: MaskPolicy, report: Report) -> list[Sample] | None:
    """The samples of a prepared tree, or None where there is none below the root."""
    base = find_base(root, names, lambda path: is_category(path) and (path / "train" / "good").is_dir())
    if base is None:
        return None
    tree = Tree(root, base, category, masks=masks)
    return read_train(tree, report) + read_test(tree, report)


def not_there(root: Path, title: str, name: str, expected: str) -> DataError:
    """The error for a root that holds neither the prepared nor the published layout."""
    found = ", ".join(folders(root)[:8]) or "no folder"
    return DataError(
        f"{root} holds no {title}: {expected}. Found: {found}.", f"Type: bench data show {name}, for the layouts that are read."
    )


def to_prepare(root: Path, title: str, name: str) -> DataError:
    """The error for a root that holds what is published, which has to be converted first."""
    return DataError(
        f"{root} holds {title} as it is published; it is measured on what `bench data prepare` makes of it.",
        f"Type: bench data prepare {name} --from {root} --to NEW_FOLDER, then --data-root NEW_FOLDER",
    )


def pieces(raw: Path, samples: Iterable[Sample], read: Decoder) -> Iterator[Piece]:
    """The prepared tree of samples of one category."""
    for sample in samples:
        name = PurePosixPath(sample.image)
        yield Piece(join(sample.split, sample.defect, name.name), raw / sample.image)
        if sample.mask is not None:
            yield Piece(join("ground_truth", sample.defect, f"{name.stem}_mask.png"), as_mask(read.mask(sample.mask, sample.image)))


def as_mask(defective: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H, W) of 0 and 255."""
    import numpy as np

    out: NDArray[np.uint8] = defective.astype(np.uint8) * np.uint8(255)
    return out
