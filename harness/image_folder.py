"""Folders of images that a method's parameters name: textures, foreground maps. Read here, because methods touch no files.

What such a folder holds is part of a cell's identity, where it lies is not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from inpbench.harness.errors import DataError
from inpbench.harness.image_files import find_images
from inpbench.harness.weights import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from inpbench.harness.api import MethodInfo


class FolderImages:
    """`harness.api.ImageFolder` of a folder with all below it, in natural order. Raises `DataError` where there is no image."""

    def __init__(self, folder: str) -> None:
        self._root, self._files = find_images(Path(folder))
        self._place = {_stem(name): place for place, name in enumerate(self._files)}

    def __len__(self) -> int:
        return len(self._files)

    def pixels(self, index: int) -> Tensor:
        """Image (3, h, w), uint8 RGB, on the host."""
        import numpy as np
        import torch

        from inpbench.harness.images import read_image

        image = read_image(self._root / self._files[index], self._files[index])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def find(self, path: str) -> int | None:
        """The place of the image with this relative path, whatever its extension."""
        return self._place.get(_stem(path))

    @property
    def sha256(self) -> str:
        """A hash of all names and contents."""
        digest = hashlib.sha256()
        for name in self._files:
            digest.update(f"{file_sha256(self._root / name)} {name}\n".encode())
        return digest.hexdigest()


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def in_identity(method: MethodInfo, params: dict[str, Any]) -> dict[str, Any]:
    """Parameters as an identity has them: folders by their content. Raises `DataError` for one without images."""
    return params | {name: _content(method, name, params[name]) for name in method.folders if params[name] is not None}


def _content(method: MethodInfo, name: str, folder: str) -> str:
    try:
        return f"sha256:{FolderImages(folder).sha256}"
    except DataError as error:
        raise DataError(f"{method.name}.{name}: {error.message}", f"Type: --set {method.name}.{name}=FOLDER") from error
