"""The embedded data set: drawn by a program, so that the whole bench runs on a machine that has no data at all.

Six categories (textures weave, wood, tile; objects nut, capsule, board), five kinds of defects, exact pixel masks, in an MVTec-like
tree of PNG files. Every image has its own generator, seeded by (seed, category, split, kind, index): a picture does not depend on
how many others are drawn, and element-wise float64 arithmetic makes its pixels the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inpbench.harness.api import DatasetInfo, Finding, Report, Sample, Split
from inpbench.harness.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CATEGORIES = ("weave", "wood", "tile", "nut", "capsule", "board")
TEXTURES = frozenset({"weave", "wood", "tile"})
DEFECTS = ("scratch", "spot", "missing_part", "contamination", "deformation")
TRAIN, GOOD = "train", "good"


@dataclass(frozen=True, kw_only=True)
class SyntheticParams:
    """What is drawn; every field enters the identity of a run."""

    size: int = 256  # side of the square images, pixels
    seed: int = 0  # another seed, another set of the same kind
    train: int = 32  # normal training images a category
    normal: int = 16  # normal test images a category
    defective: int = 4  # test images a category and kind of defect
    categories: str = "all"  # or a comma-separated choice of CATEGORIES

    @property
    def chosen(self) -> tuple[str, ...]:
        """The categories to draw, in the official order."""
        if self.categories == "all":
            return CATEGORIES
        wanted = {name.strip() for name in self.categories.split(",")}
        return tuple(name for name in CATEGORIES if name in wanted)

    def check(self) -> None:
        """Raise `UsageError` for values that cannot be drawn."""
        if self.categories != "all":
            for name in self.categories.split(","):
                if name.strip() not in CATEGORIES:
                    raise UsageError(
                        f"synthetic has no category '{name.strip()}'. {did_you_mean(name.strip(), CATEGORIES)}",
                        f"Type for example: --set synthetic.categories={CATEGORIES[0]},{CATEGORIES[-1]}",
                    )
        for field, value, low, high in (
            ("size", self.size, 64, 1024),
            ("seed", self.seed, 0, 2**32 - 1),
            ("train", self.train, 1, 10_000),
            ("normal", self.normal, 1, 10_000),
            ("defective", self.defective, 1, 10_000),
        ):
            if not low <= value <= high:
                raise UsageError(
                    f"synthetic.{field}: expected {low} to {high}, found {value}.", f"Type: --set synthetic.{field}={low}"
                )


def draw(
    params: SyntheticParams, category: str, split: Split, kind: str, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """One picture: pixels (S, S, 3) uint8, and the mask (S, S) of its defect, None for a normal one.

    kind: `good` or one of DEFECTS; index: its number within (category, split, kind).
    """
    import numpy as np

    from inpbench.datasets.drawing import canvas
    from inpbench.datasets.drawing_categories import DRAWINGS, Part, Scene
    from inpbench.datasets.drawing_defects import make_defect

    where = canvas(params.size)
    key = (params.seed, CATEGORIES.index(category), int(split != TRAIN), (GOOD, *DEFECTS).index(kind), index)

    def stream(purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([*key, purpose])))

    def redraw(missing: Part | None) -> Scene:
        return DRAWINGS[category](where, stream(0), missing)

    scene, mask = redraw(None), None
    image = scene.image
    if kind != GOOD:
        image, mask = make_defect(kind, where, stream(1), scene, redraw)
    return _photographed(image, stream(2)), mask


def _photographed(image: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene (S, S, 3) under uneven light, through a camera with its own gain, colour balance and noise."""
    import numpy as np

    size = image.shape[0]
    ramp = np.linspace(-1.0, 1.0, size)
    tilt_y, tilt_x = rng.normal(0.0, 0.05, 2)
    light = (1.0 + 0.07 * rng.standard_normal()) * (1.0 + tilt_y * ramp[:, None] + tilt_x * ramp[None, :])
    balance = 1.0 + 0.015 * rng.standard_normal(3)
    noise = 0.013 * rng.standard_normal((size, size, 3))
    lit = image * light[..., None] * balance + noise
    pixels: NDArray[np.uint8] = np.rint(np.clip(lit, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels


def _entries(params: SyntheticParams) -> Iterator[tuple[Sample, int]]:
    """Every sample of the set with its index, in the order that `scan` promises: category, split, path."""
    for category in params.chosen:
        for index in range(params.train):
            yield Sample(f"{category}/train/good/{index:04d}.png", category, "train", 0), index
        for kind in sorted((GOOD, *DEFECTS)):
            for index in range(params.normal if kind == GOOD else params.defective):
                image = f"{category}/test/{kind}/{index:04d}.png"
                mask = None if kind == GOOD else f"{category}/ground_truth/{kind}/{index:04d}_mask.png"
                yield Sample(image, category, "test", int(kind != GOOD), mask, kind), index


def generate(folder: Path, params: SyntheticParams) -> None:
    """Draw the whole set into `folder` (made if missing): PNG images, and masks of 0 and 255."""
    import numpy as np
    from PIL import Image

    for sample, index in _entries(params):
        pixels, mask = draw(params, sample.category, sample.split, sample.defect, index)
        target = folder / sample.image
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target, compress_level=1)
        if sample.mask is not None:
            assert mask is not None, "a defective picture comes with its mask"
            target = folder / sample.mask
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(target)


def scan(root: Path, params: SyntheticParams, report: Report) -> list[Sample]:
    """The samples that `generate` drew with the same parameters; a file that has vanished since is reported."""
    if not any((root / category / "train" / GOOD).is_dir() for category in params.chosen):
        raise DataError(
            f"{root} holds no synthetic set (expected {params.chosen[0]}/train/good).", "Delete the folder and run again."
        )
    samples = []
    for sample, _ in _entries(params):
        if not (root / sample.image).is_file():
            report(Finding(sample.image, "missing_image", "drawn once, but no longer on disk"))
        elif sample.mask is not None and not (root / sample.mask).is_file():
            report(Finding(sample.mask, "missing_mask", "drawn once, but no longer on disk"))
        else:
            samples.append(sample)
    return samples


SYNTHETIC = DatasetInfo(
    name="synthetic",
    version=1,
    title="synthetic: three textures and three objects, drawn by a program",
    scan="inpbench.datasets.synthetic:scan",
    generate="inpbench.datasets.synthetic:generate",
    params=SyntheticParams,
    categories=CATEGORIES,
    textures=TEXTURES,
    licence="Apache-2.0 (drawn by this package)",
    expected_tree="CATEGORY/train/good/0000.png, CATEGORY/test/{good,DEFECT}/0000.png, CATEGORY/ground_truth/DEFECT/0000_mask.png",
)
