"""Normal images that a method's authors published as tensors: `<category>.pt`, a list of K images (3, H, W), already normalised.

InCTRL's authors distribute their few-shot prompts so, one folder a data set and K. `bench run --prompts DIR` shows them to a method
that is told the category, in the place of drawn images; their hashes are in the identity. The files do not say which images they
are: nothing can tell whether one is tested too. They are read without running code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inpbench.harness.api import Sample, Size
from inpbench.harness.errors import DataError, UsageError
from inpbench.harness.tensor_files import load, problem
from inpbench.harness.user_paths import expanded
from inpbench.harness.weights import file_sha256

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from inpbench.harness.plan import Cell

HINT = "Give the folder of <category>.pt files for this number of shots, as InCTRL's authors distribute it."


def prompt_file(folder: Path, category: str) -> Path:
    """The file of a category; raises `DataError` where there is none."""
    path = expanded(folder) / f"{category}.pt"
    if not path.is_file():
        raise DataError(f"--prompts: there is no {path}.", HINT)
    return path


def prompt_hashes(folder: Path, categories: Sequence[str]) -> dict[str, str]:
    """`sha256:...` of the file of each category, for the identity."""
    return {category: f"sha256:{file_sha256(prompt_file(folder, category))}" for category in categories}


class PromptImages:
    """The images of one file; implements `harness.api.TrainingSet`, but for `pixels`."""

    def __init__(self, folder: Path, category: str, shots: int, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        """Raises `DataError` for a file that is broken, or of another number, size or type of images."""
        import torch
        from torch import Tensor

        path = prompt_file(folder, category)
        try:
            content = load(path)
        except Exception as error:  # a hostile or broken file can raise anything while it is parsed
            raise DataError(f"{path} cannot be read as tensors: {type(error).__name__}.", HINT) from error
        images = list(content) if isinstance(content, (list, tuple, Tensor)) else []
        wanted = (3, *size)
        if not images or any(not isinstance(image, Tensor) or tuple(image.shape) != wanted for image in images):
            raise DataError(f"{path}: expected a list of tensors {wanted}, found {_described(content)}.", HINT)
        if len(images) != shots:
            raise DataError(f"{path} holds {len(images)} images, {shots} shots were asked for.", f"Type: --shots {len(images)}")
        for number, image in enumerate(images):
            if why := problem(image):
                raise DataError(f"{path}: image {number} {why}.", HINT)
        self._images = torch.stack(images).to(device, dtype)
        self.categories = [category]
        self.samples = [Sample(f"{path.name}#{number}", category, "train", 0) for number in range(shots)]

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """(B, 3, H, W) as stored."""
        return self._images[list(indices)]

    def masks(self, indices: Sequence[int]) -> Tensor:
        """(B, H, W), all False: these are normal images."""
        return self.batch(indices)[:, 0].bool() & False

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """Not there: raises `UsageError`."""
        raise UsageError("Prompt files hold normalised images, and no pixels to augment.", "Leave --prompts out.")


def _described(content: object) -> str:
    if isinstance(content, (list, tuple)) and content:
        return f"a list of {_described(content[0])}"
    shape = getattr(content, "shape", None)
    return f"a {type(content).__name__}" if shape is None else f"{tuple(shape)}"


def prompts_of(cell: Cell, category: str, device: torch.device, dtype: torch.dtype) -> PromptImages:
    """The prompts that a cell's request names for a category. Raises as `PromptImages`."""
    assert cell.request is not None and cell.request.prompts is not None
    return PromptImages(cell.request.prompts, category, cell.shots, cell.params.preprocess.crop, device, dtype)
