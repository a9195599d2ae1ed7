"""What a method sees of the category that it is about to look at: its name, normal images, and (oracle) the test labels.

Before the test images of a category are predicted, a method that is told the category (`harness.api.CategoryAware`) enters it.
References are the drawn images where the setting has shots, none in zero_shot, the category's normal training images elsewhere.
Every generator begins anew before `enter`, so that its outcome depends neither on earlier categories nor on an interruption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from inpbench.harness.api import DatasetInfo, MethodInfo, NoParams, Preprocess, Sample
from inpbench.harness.errors import DataError, UsageError
from inpbench.harness.evaluation import Stopwatch
from inpbench.harness.image_files import find_images
from inpbench.harness.loading import TrainingImages
from inpbench.harness.manifest import FileFact, Manifest
from inpbench.harness.prompt_files import prompts_of
from inpbench.harness.training import images_of, support_images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from inpbench.harness.api import Progress, TrainingSet
    from inpbench.harness.plan import Cell
    from inpbench.harness.runner import Options


def references_of(cell: Cell, category: str, options: Options, progress: Progress) -> TrainingSet | None:
    """Normal images of a category, as the setting allows. Raises `DataError` for what cannot be read."""
    assert cell.manifest is not None and cell.request is not None
    if cell.request.prompts is not None:
        return prompts_of(cell, category, options.device, options.dtype)
    if cell.setting.shots:
        return support_images(cell, [category], options, progress)
    if cell.setting.source:
        return None
    return images_of(cell, cell.manifest, [category], options, progress)


def labelled_test_images(cell: Cell, category: str, options: Options, progress: Progress) -> TrainingSet:
    """The test images of a category with labels and masks, in the order of the test. Raises `DataError` where a mask is missing."""
    assert cell.manifest is not None
    test = [s for s in cell.manifest.samples if s.category == category and s.split == "test" and s.label >= 0]
    return images_of(cell, cell.manifest, [category], options, progress, test)


def enter(cell: Cell, category: str, method: Any, options: Options, progress: Progress) -> float:
    """Tell a method all that it may know of the category; gives the seconds it took, 0 for a method that is told nothing."""
    from inpbench.harness.runner import seed_everything

    watch = Stopwatch(options.device)
    if cell.method.told_category:
        references = references_of(cell, category, options, progress)
        seed_everything(cell.seed)
        with watch:
            method.enter(category, references)
    if cell.identity["selection"] == "oracle":
        test = labelled_test_images(cell, category, options, progress)
        seed_everything(cell.seed)
        with watch:
            method.consult(test)
    return watch.seconds


def enter_named(
    info: MethodInfo,
    method: Any,
    category: str | None,
    normal: Path | None,
    preprocess: Preprocess,
    device: torch.device,
    known: Sequence[str] = (),
) -> str | None:
    """`enter` for a trained method outside of a run: with a category that a person names, and normal images that they have.

    normal: a file or folder of references, instead of those that the method kept. known: the record's categories; where there is
    only one it is meant. Gives the category that was entered; does nothing (and gives None) for a method that is told nothing.
    Raises `UsageError` where no category is named, or references are missing, and `DataError` for a file that cannot be read.
    """
    if not info.told_category:
        return None
    if category is None and len(known) != 1:
        names = f" (the record has {', '.join(known)})" if known else ""
        raise UsageError(
            f"{info.name} is told the category of the images, and none is named{names}.",
            f"Type: --category {known[0] if known else 'NAME'}",
        )
    entered = category or known[0]
    method.enter(entered, None if normal is None else given_references(normal, entered, preprocess, device))
    return entered


def given_references(path: Path, category: str, preprocess: Preprocess, device: torch.device) -> TrainingSet:
    """Image files, or all of a folder, as normal images of a category. Raises `DataError` for the first that cannot be read."""
    root, files = find_images(path)
    stats = {file: (root / file).stat() for file in files}
    facts = {file: FileFact(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in stats.items()}
    samples = tuple(Sample(file, category, "train", 0) for file in files)
    info = DatasetInfo(name="references", version=1, title="given images", scan="")
    manifest = Manifest(info, NoParams(), root, False, samples, facts)
    try:
        return TrainingImages(manifest, [category], preprocess, device=device, cache=False)
    finally:
        if manifest.findings:
            broken = manifest.findings[0]
            raise DataError(f"{root / broken.file}: {broken.message}.", "Take it out of the references, or fetch it again.")
