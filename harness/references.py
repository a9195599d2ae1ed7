"""What a method sees of the category that it is about to be tested on: its name, normal images, and (oracle) the test labels.

Before the test images of a category are predicted, a method that is told the category (`harness.api.CategoryAware`) enters it.
References are the drawn images where the setting has shots, none in zero_shot, the category's normal training images elsewhere.
Every generator begins anew before `enter`, so that its outcome depends neither on earlier categories nor on an interruption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inpbench.harness.evaluation import Stopwatch
from inpbench.harness.training import images_of, support_images

if TYPE_CHECKING:
    from inpbench.harness.api import Progress, TrainingSet
    from inpbench.harness.plan import Cell
    from inpbench.harness.runner import Options


def references_of(cell: Cell, category: str, options: Options, progress: Progress) -> TrainingSet | None:
    """Normal images of a category, as the setting allows. Raises `DataError` for what cannot be read."""
    assert cell.manifest is not None
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
