"""Small fake data sets on disk, drawn with PIL: MVTec AD, VisA (raw and converted), Real-IAD, ELPV and a tree of nasty files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 20)  # width, height


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """An RGB image that no other seed gives."""
    width, height = size
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8))


def spot(size: tuple[int, int] = SIZE, value: int = 255) -> Image.Image:
    """An L mask with a rectangle of `value` in the middle."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = value
    return Image.fromarray(mask)


def save(image: Image.Image, path: Path, form: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, form)
    return path


def mvtec(root: Path, categories: Sequence[str] = ("carpet", "bottle"), suffix: str = "_mask", ext: str = ".png") -> Path:
    """Each category: 4 train, 2 good, 2 of one defect with masks."""
    seed = 0
    for category in categories:
        base = root / category
        for i in range(4):
            save(picture(seed := seed + 1), base / "train" / "good" / f"{i:03d}{ext}")
        for i in range(2):
            save(picture(seed := seed + 1), base / "test" / "good" / f"{i:03d}{ext}")
            save(picture(seed := seed + 1), base / "test" / "hole" / f"{i:03d}{ext}")
            save(spot(), base / "ground_truth" / "hole" / f"{i:03d}{suffix}.png")
    return root


def visa_raw(root: Path, objects: Sequence[str] = ("candle", "pcb1"), *, newline: str = "\r\n", bom: bool = False) -> Path:
    """Each object: 3 train, 2 test normal, 2 test anomalous with index masks; split_csv/1cls.csv."""
    rows, seed = ["object,split,label,image,mask"], 100
    for name in objects:
        for i in range(5):
            image = f"{name}/Data/Images/Normal/{i:03d}.JPG"
            save(picture(seed := seed + 1), root / image, "JPEG")
            rows.append(f"{name},{'train' if i < 3 else 'test'},normal,{image},")
        for i in range(2):
            image, mask = f"{name}/Data/Images/Anomaly/{i:03d}.JPG", f"{name}/Data/Masks/Anomaly/{i:03d}.png"
            save(picture(seed := seed + 1), root / image, "JPEG")
            save(spot(value=i + 1), root / mask)
            rows.append(f"{name},test,anomaly,{image},{mask}")
    write_csv(root / "split_csv" / "1cls.csv", rows, newline=newline, bom=bom)
    return root


def write_csv(path: Path, rows: Sequence[str], *, newline: str = "\n", bom: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + (newline.join(rows) + newline).encode())


def visa_converted(root: Path, objects: Sequence[str] = ("candle", "pcb1"), bad: str = "bad") -> Path:
    seed = 200
    for name in objects:
        base = root / name
        for i in range(3):
            save(picture(seed := seed + 1), base / "train" / "good" / f"{i:03d}.JPG", "JPEG")
        for i in range(2):
            save(picture(seed := seed + 1), base / "test" / "good" / f"{i + 3:03d}.JPG", "JPEG")
            save(picture(seed := seed + 1), base / "test" / bad / f"{i:03d}.JPG", "JPEG")
            save(spot().convert("RGB"), base / "ground_truth" / bad / f"{i:03d}.png")
    return root


def real_iad(
    root: Path,
    categories: Sequence[str] = ("audiojack", "pcb"),
    *,
    lists: str = "realiad_jsons",
    nested_json: bool = False,
    nested_images: bool = False,
    resolution: str = "1024",
) -> Path:
    """Each category: one OK specimen of 5 views in train; one OK and one NG (5 views, one of them invisible) in test."""
    folder = root / lists / lists if nested_json else root / lists
    folder.mkdir(parents=True, exist_ok=True)
    seed = 300
    for name in categories:
        pictures = root / f"realiad_{resolution}" / name
        pictures = pictures / name if nested_images else pictures
        listed: dict[str, list[dict[str, str | None]]] = {"train": [], "test": []}
        for split, number in (("train", 1), ("test", 2)):
            for view in range(1, 6):
                path = f"OK/S{number:04d}/{name}_{number:04d}_OK_C{view}_20231020135742.jpg"
                save(picture(seed := seed + 1), pictures / path)
                listed[split].append({"category": name, "anomaly_class": "OK", "image_path": path, "mask_path": None})
        for view in range(1, 6):
            stem = f"NG/AK/S0001/{name}__0001_NG_AK_C{view}_20231020135742"
            save(picture(seed := seed + 1), pictures / f"{stem}.jpg")
            hidden = view == 5
            if not hidden:
                save(spot(), pictures / f"{stem}.png")
            listed["test"].append(
                {
                    "category": name,
                    "anomaly_class": "OK" if hidden else "AK",
                    "image_path": f"{stem}.jpg",
                    "mask_path": None if hidden else f"{stem}.png",
                }
            )
        meta = {"prefix": f"{name}/", "normal_class": "OK", "pre_transform": False}
        (folder / f"{name}.json").write_text(json.dumps({"meta": meta, **listed}))
    return root


def elpv(root: Path, normal: int = 9) -> Path:
    """`normal` cells of probability 0, one of 1/3, one mono and one poly of probability 1."""
    rows = [(0.0, "mono")] * normal + [(0.3333333333333333, "poly"), (1.0, "mono"), (1.0, "poly")]
    lines = []
    for i, (probability, kind) in enumerate(rows):
        save(picture(400 + i).convert("L"), root / "images" / f"cell{i:04d}.png")
        lines.append(f"images/cell{i:04d}.png  {probability}   {kind}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


# --- nasty files ----------------------------------------------------------------------------------------------------


def truncated(image: Image.Image, path: Path, form: str) -> Path:
    """The first 60 % of the file."""
    save(image, path, form)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    return path


def sixteen_bit(high: int = 65535, size: tuple[int, int] = SIZE) -> Image.Image:
    """A ramp from 0 to `high` as 16-bit grey."""
    width, height = size
    return Image.fromarray(np.linspace(0, high, width * height).reshape(height, width).astype(np.uint16))


def nasty(root: Path) -> Path:
    """One category `part` with some forty files of every bad habit, around a sound core; see `NASTY` for what must be found."""
    base = root / "part"
    good, test, hole, truth = base / "train/good", base / "test/good", base / "test/hole", base / "ground_truth/hole"
    for i in range(3):
        save(picture(500 + i), good / f"{i:03d}.png")
        save(picture(510 + i), test / f"{i:03d}.PNG", "PNG")
        save(picture(520 + i), hole / f"{i:03d}.Jpg", "JPEG")
        save(spot(), truth / f"{i:03d}_mask.PNG", "PNG")
    # images in unusual modes, all readable
    save(sixteen_bit(), good / "sixteen.png")
    save(picture(530).convert("CMYK"), good / "cmyk.jpg")
    save(picture(531).convert("P"), good / "palette.png")
    save(picture(532).convert("RGBA"), good / "alpha.png")
    save(picture(533).convert("LA"), good / "grey alpha.png")
    save(picture(534).convert("1"), good / "bits.png")
    save(picture(535), good / "ünïcode — name.jpeg")
    save(picture(536), good / "a jpeg called.png", "JPEG")
    save(picture(537, (900, 3)), good / "strip.bmp")
    save(picture(538, (1, 1)), good / "pixel.tiff")
    # not readable
    (good / "zero.png").write_bytes(b"")
    (good / "text.png").write_text("this is not an image")
    truncated(picture(540, (200, 200)), good / "cut.png", "PNG")
    truncated(picture(541, (200, 200)), test / "cut.jpg", "JPEG")
    (hole / "zero.jpg").write_bytes(b"")
    save(spot(), truth / "zero_mask.png")
    (good / "link.png").symlink_to("nowhere.png")
    # no images at all
    (good / "._000.png").write_bytes(b"\0\5\x16\7")
    (good / ".hidden.png").write_bytes(b"")
    (good / "Thumbs.db").write_bytes(b"x")
    (good / ".DS_Store").write_bytes(b"x")
    (good / "readme.txt").write_text("x")
    (good / "000.png:Zone.Identifier").write_text("x")
    (good / "folder.png").mkdir()
    (base / "test" / "x.png").mkdir()
    (base / "test" / "notes.txt").write_text("x")
    save(picture(550), base / "test" / "loose.png")
    save(picture(551), base / "train" / "loose.png")
    save(picture(552), base / "train" / "bad" / "000.png")
    # masks of every kind
    for name, mask in {
        "index": spot(value=3),
        "palette": spot(value=1).convert("P"),
        "bit": spot().convert("1"),
        "red": Image.merge("RGB", (spot(), Image.new("L", SIZE), Image.new("L", SIZE))),
        "opaque": Image.merge("RGBA", (*[spot()] * 3, Image.new("L", SIZE, 255))),
        "greyalpha": Image.merge("LA", (spot(), Image.new("L", SIZE, 255))),
        "wide": Image.fromarray(np.asarray(spot()).astype(np.uint16) * 257),
        "large": spot((SIZE[0] * 3, SIZE[1] * 5)),
        "empty": Image.new("L", SIZE),
    }.items():
        save(picture(1000 + len(name) * 100 + ord(name[0])), hole / f"{name}.png")
        save(mask, truth / f"{name}_mask.png")
    save(picture(560), hole / "unmasked.png")
    save(picture(561), hole / "brokenmask.png")
    (truth / "brokenmask_mask.png").write_bytes(b"")
    save(spot(), truth / "stray_mask.png")
    save(picture(562), hole / "plain name.bmp")
    save(spot(), truth / "plain name.png")  # without the suffix _mask
    (good / "copy.png").write_bytes((good / "000.png").read_bytes())
    (test / "leak.png").write_bytes((good / "001.png").read_bytes())
    (base / "test" / "nothing").mkdir()
    (root / "empty").mkdir()
    (root / "hollow" / "train" / "good").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "notes.txt").write_text("x")
    (root / "loop").symlink_to(root)
    return root


NASTY = {  # file below part/ -> status that the audit must give
    "train/good/sixteen.png": "mode",
    "train/good/cmyk.jpg": "mode",
    "train/good/palette.png": "mode",
    "train/good/alpha.png": "mode",
    "train/good/grey alpha.png": "mode",
    "train/good/bits.png": "mode",
    "train/good/zero.png": "unreadable",
    "train/good/text.png": "unreadable",
    "train/good/cut.png": "unreadable",
    "train/good/link.png": "unreadable",
    "train/good/folder.png": "ignored",
    "train/good/copy.png": "duplicate",
    "train/loose.png": "ignored",
    "train/bad": "ignored",
    "test/good/cut.jpg": "unreadable",
    "test/good/leak.png": "duplicate",
    "test/hole/zero.jpg": "unreadable",
    "test/hole/unmasked.png": "missing_mask",
    "test/loose.png": "ignored",
    "ground_truth/hole/large_mask.png": "size_mismatch",
    "ground_truth/hole/empty_mask.png": "empty_mask",
    "ground_truth/hole/brokenmask_mask.png": "unreadable_mask",
    "ground_truth/hole/stray_mask.png": "mask_without_image",
}
