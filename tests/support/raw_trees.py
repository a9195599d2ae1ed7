"""Small fake copies of what authors publish, drawn with PIL: sets that `bench data prepare` converts, and sets read as they are."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from trees import picture, save, spot

from inpbench.datasets.cifar10 import BATCHES, CLASSES


def sdd(root: Path, items: int = 4) -> Path:
    """Each item: two parts of 12 x 31 pixels; the second one's label has a spot in its last third."""
    for item in range(1, items + 1):
        for part in range(2):
            folder = root / f"kos{item:02d}"
            save(picture(600 + 2 * item + part, (12, 31)).convert("L"), folder / f"Part{part}.jpg", "JPEG")
            label = np.zeros((31, 12), np.uint8)
            if part:
                label[22:25, 3:6] = 255
            save(Image.fromarray(label), folder / f"Part{part}_label.bmp")
    return root


def aitex(root: Path, fabrics: Sequence[str] = ("2306881-210020u",), *, doubled: bool = False) -> Path:
    """One normal strip a fabric; defective strips with one mask, two masks, an empty one, none, and one of a narrow last tile."""

    def inside(name: str) -> Path:
        return root / name / name if doubled else root / name

    for i, fabric in enumerate(fabrics):
        save(picture(700 + i, (4096, 6)).convert("L"), root / "NODefect_images" / fabric / f"{i:04d}_000_0{i}.png")
    strips = {"0001_002_00": [300], "0044_019_04": [10, 3000], "0106_010_03": [], "0100_025_08": None, "0094_027_05": [700]}
    for i, (stem, columns) in enumerate(strips.items()):
        width = 720 if stem == "0094_027_05" else 4096
        save(picture(720 + i, (width, 6)).convert("L"), inside("Defect_images") / f"{stem}.png")
        if columns is None:
            continue
        masks = [np.zeros((6, width), np.uint8) for _ in columns or [0]]
        for mask, column in zip(masks, columns, strict=False):
            mask[2:4, column : column + 5] = 255
        for number, mask in enumerate(masks, start=1):
            name = f"{stem}_mask{number}.png" if len(masks) > 1 else f"{stem}_mask.png"
            save(Image.fromarray(mask), inside("Mask_images") / name)
    return root


def brainmri(root: Path) -> Path:
    """Nine scans without, four with a tumour, in mixed formats and modes."""
    for i in range(9):
        save(picture(740 + i).convert("L" if i % 2 else "RGB"), root / "no" / f"{i} no.{('jpg', 'JPG', 'jpeg')[i % 3]}", "JPEG")
    for i in range(4):
        save(picture(760 + i), root / "yes" / f"Y{i}.png")
    return root


def headct(root: Path) -> Path:
    """Five slices of each label."""
    rows = ["id, hemorrhage"]
    for i in range(10):
        save(picture(780 + i), root / "head_ct" / "head_ct" / f"{i:03d}.png")
        rows.append(f"{i},{i % 2}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def mnist_idx(root: Path, count: int = 30, *, packed: bool = True) -> Path:
    """Four idx files; image i of a split shows the digit i % 10."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, stem in enumerate(("train", "t10k")):
        pixels = np.random.RandomState(seed).randint(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in ((f"{stem}-images-idx3-ubyte", pixels), (f"{stem}-labels-idx1-ubyte", labels)):
            data = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            if packed:
                (root / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (root / name).write_bytes(data)
    return root


def cifar(root: Path, rows: int = 10, *, binary: bool = False) -> Path:
    """Six batches as published; row i of a batch shows class i % 10."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(name for names in BATCHES for name in names):
        data = np.random.RandomState(seed).randint(0, 256, (rows, 3072)).astype(np.uint8)
        labels = [i % 10 for i in range(rows)]
        if binary:
            packed = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
            (root / f"{name}.bin").write_bytes(packed.tobytes())
        else:
            (root / name).write_bytes(pickle.dumps({b"data": data, b"labels": labels, b"batch_label": b"x"}, protocol=2))
    return root


def class_folders(root: Path, classes: Sequence[str] = CLASSES, splits: Sequence[str] = ("train", "test")) -> Path:
    """Two training and two test images a class."""
    for which, split in enumerate(splits):
        for c, name in enumerate(classes):
            for i in range(2):
                save(picture(800 + 100 * which + 10 * c + i, (8, 8)), root / split / name / f"{i:05d}.png")
    return root


def mpdd(root: Path, categories: Sequence[str] = ("tubes", "bracket_black")) -> Path:
    from trees import mvtec

    return mvtec(root, categories)


def btad(root: Path, categories: Sequence[str] = ("02", "01", "03")) -> Path:
    """01 and 03 are .bmp, 02 is .png; masks of 03 are .bmp with values 0 and 1, one of them is empty."""
    for seed, name in enumerate(categories):
        image, mask = ("png" if name == "02" else "bmp"), ("bmp" if name == "03" else "png")
        for i in range(3):
            save(picture(1200 + 20 * seed + i), root / name / "train" / "ok" / f"{i:04d}.{image}")
            save(picture(1210 + 20 * seed + i), root / name / "test" / "ko" / f"{i:04d}.{image}")
            empty = Image.new("L", (24, 20))
            save(empty if name == "03" and i == 2 else spot(value=1), root / name / "ground_truth" / "ko" / f"{i:04d}.{mask}")
        save(picture(1215 + 20 * seed), root / name / "test" / "ok" / f"0000.{image}")
    return root


def mvtec_ad_2(root: Path, categories: Sequence[str] = ("vial", "can")) -> Path:
    """Each category: three scenes to train, one to validate, two lightings of a good and a bad scene, private images."""
    for seed, name in enumerate(categories):
        base, at = root / name, 1300 + 50 * seed
        for i in range(3):
            save(picture(at + i), base / "train" / "good" / f"{i:03d}_regular.png")
        save(picture(at + 5), base / "validation" / "good" / "003_regular.png")
        for i, light in enumerate(("regular", "shift_1")):
            save(picture(at + 10 + i), base / "test_public" / "good" / f"000_{light}.png")
            save(picture(at + 20 + i), base / "test_public" / "bad" / f"001_{light}.png")
            save(spot(), base / "test_public" / "ground_truth" / "bad" / f"001_{light}_mask.png")
            save(picture(at + 30 + i), base / "test_private" / f"{i:03d}_regular.png")
        save(picture(at + 40), base / "test_private_mixed" / "000_mixed.png")
    return root
