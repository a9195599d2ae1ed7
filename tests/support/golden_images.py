"""Golden cases of images, masks and few-shot draws, run through the readers that `bench run` uses.

The golden runners of several families call these; each takes a `golden.Case` and fails by assertion.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from golden import Case
from PIL import Image

from inpbench.harness.api import Preprocess
from inpbench.harness.images import Mask, image_at_crop, mask_at_crop, mask_of, open_image, read_image, to_rgb
from inpbench.harness.loading import Normaliser
from inpbench.harness.scoring import Scoring, ground_truth
from inpbench.harness.support import draw_support


def as_file(image: Image.Image) -> Image.Image:
    """Through a PNG file and our decoder, so that the mode is what a file of it has."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return open_image("golden.png", "golden.png", buffer.getvalue())  # type: ignore[arg-type]


def normalised(image: Image.Image, preprocess: Preprocess, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """(3, H, W) as a method gets it."""
    pixels = image_at_crop(image if preprocess.own_mode else to_rgb(image), preprocess)[None]
    return Normaliser(preprocess, torch.device("cpu"), dtype)(pixels)[0].numpy()


def positives(mask: Mask, preprocess: Preprocess, rule: str, side: int = 256) -> np.ndarray:
    """(side, side) bool ground truth by a rule of `Scoring`."""
    grey = torch.from_numpy(mask_at_crop(mask, preprocess))[None]
    return ground_truth(grey, Scoring(mask_rule=rule, metric_size=(side, side)))[0].numpy()  # type: ignore[arg-type]


# --- inp_former: mask_pipeline_* ------------------------------------------------------------------------------------


def synthetic_mask(height: int, width: int, mode: str) -> Image.Image:
    """An ellipse, a thin line and a 3 x 3 spot (inp_former/GOLDEN.md, "Synthetic mask")."""
    yy, xx = np.mgrid[0:height, 0:width]
    inside = ((xx - 0.5 * width) / (0.22 * width)) ** 2 + ((yy - 0.43 * height) / (0.17 * height)) ** 2 <= 1
    line = np.abs((yy - 0.2 * height) - 0.7 * (xx - 0.1 * width)) <= 1.0
    inside |= line & (xx > 0.15 * width) & (xx < 0.85 * width)
    top, left = int(0.8 * height), int(0.3 * width)
    inside |= (yy >= top) & (yy < top + 3) & (xx >= left) & (xx < left + 3)
    grey = inside.astype(np.uint8) * 255
    if mode == "L":
        return Image.fromarray(grey)
    if mode == "1":
        return Image.fromarray(grey).convert("1", dither=Image.Dither.NONE)
    assert mode == "RGB", f"golden mask of unknown mode {mode}"
    return Image.fromarray(np.stack([grey, np.roll(grey, 9, axis=1), np.zeros_like(grey)], axis=-1))


def synthetic_image(height: int, width: int) -> Image.Image:
    """The image recipe of the same cases."""
    yy, xx = np.mgrid[0:height, 0:width]
    channels = ((3 * xx + 2 * yy) % 256, (xx * yy // 7) % 256, ((xx // 5) ^ (yy // 3)) % 256)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def check_mask_pipeline(case: Case) -> None:
    """The mask from file to the bits that the metrics see, by both rules, and the image beside it."""
    config, arrays = case.config, case.arrays
    preprocess = Preprocess(resize=(config["resize"],) * 2, crop=(config["crop"],) * 2)
    mask = mask_of(as_file(synthetic_mask(config["H"], config["W"], config["mode"])))
    crop = mask_at_crop(mask, preprocess)
    assert len(crop) in (1, config["channels"])  # equal channels of a colour mask are kept once
    official = np.broadcast_to(crop, (config["channels"], *crop.shape[1:]))
    np.testing.assert_allclose(official[None, :, ::14, ::14], arrays["gt_crop"], rtol=0, atol=1e-7)
    assert (official > 0).sum() == config["crop_n_gt0"]
    assert (official > 0.5).sum() == config["crop_n_gt05"]
    np.testing.assert_allclose(official.mean(dtype=np.float64), config["crop_mean"], rtol=1e-6)
    side, step = config["resize_mask"], 8
    nearest = official[:, (np.arange(side) * config["crop"] // side)[:, None], np.arange(side) * config["crop"] // side]
    np.testing.assert_allclose(nearest[None, :, ::step, ::step], arrays["gt_nearest"], rtol=0, atol=1e-7)
    for rule, bits, count in (("gt05", "mask_bits_gt05", "n_pos_gt05"), ("gt0", "mask_bits_bool", "n_pos_bool")):
        found = positives(mask, preprocess, rule, side)
        assert found.sum() == config[count], rule
        np.testing.assert_array_equal(np.packbits(found), arrays[bits])
    image = normalised(as_file(synthetic_image(config["H"], config["W"])), preprocess)
    np.testing.assert_allclose(image[:, ::14, ::14], arrays["image"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(image.mean(axis=(1, 2), dtype=np.float64), config["image_mean"], rtol=0, atol=1e-6)


# --- dinomaly_crr: transforms* --------------------------------------------------------------------------------------


def check_transforms(case: Case) -> None:
    """`get_data_transforms` of Dinomaly on a random image and a random blocky mask."""
    config, arrays = case.config["config"], case.arrays
    height, width = config["h"], config["w"]
    state = np.random.RandomState(config["seed"])
    picture = state.randint(0, 256, (height, width, 3)).astype(np.uint8)
    cells = (state.random_sample((height // 10 + 1, width // 10 + 1)) > 0.7) * 255
    blocks = cells.repeat(10, axis=0).repeat(10, axis=1)[:height, :width].astype(np.uint8)
    preprocess = Preprocess(resize=(config["size"],) * 2, crop=(config["crop"],) * 2)
    image = normalised(as_file(Image.fromarray(picture)), preprocess)
    mask = mask_at_crop(mask_of(as_file(Image.fromarray(blocks))), preprocess)
    for name, found in (("image", image), ("mask", mask)):
        step = int(case.config["arrays"][name]["what"].rpartition("[::")[2].partition("]")[0])
        np.testing.assert_allclose(found.reshape(-1)[::step], arrays[name], rtol=0, atol=1e-6)
        wide = found.astype(np.float64)
        stat = [wide.sum(), np.abs(wide).sum(), (wide**2).sum(), wide.min(), wide.max()]
        np.testing.assert_allclose(stat, arrays[f"{name}__stat"], rtol=1e-5, atol=1e-4)
    counts = [(mask > 0).sum(), (mask > 0.5).sum(), (mask >= 0.5).sum(), mask.size]
    assert counts == arrays["mask_counts"].tolist()


# --- few-shot draws -------------------------------------------------------------------------------------------------


def check_fewshot_sampling(case: Case) -> None:
    """Positions (and VisA names) of the support images of every data set and number of shots in the case."""
    counts = {"MVTec-AD": case.config["counts"]["mvtec"], "VisA": case.config["counts"]["visa"]}
    for title, expected in case.config["samples"].items():
        name, _, shots = title.rpartition(" shot=")
        drawn = draw_support({category: counts[name][category] for category in expected}, int(shots), case.config["seed"])
        for category, wanted in expected.items():
            assert drawn[category] == [w[0] if isinstance(w, list) else w for w in wanted], (title, category)


# --- data: data_pipeline --------------------------------------------------------------------------------------------

R448 = Preprocess(resize=(448, 448), crop=(392, 392))
CLIP = Preprocess(
    resize=(240, 240),
    crop=(240, 240),
    shorter_side=True,
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


def check_real_image(entry: dict[str, object], arrays: dict[str, np.ndarray], name: str, folder: object) -> None:
    """One given image through both input pipelines, and its mask through every rule of datasets.md, section 2."""
    from pathlib import Path

    base = Path(str(folder))
    path = base / str(entry["image"])
    tolerance = 0.02 if path.suffix.lower() in (".jpg", ".jpeg") else 1e-6
    image = read_image(path)
    assert [image.width, image.height] == entry["size"] or [image.height, image.width] == entry["size"]
    for key, preprocess, step in (("r448c392", R448, 49), ("clip240", CLIP, 30)):
        tensor = normalised(image, preprocess)
        np.testing.assert_allclose(tensor[:, ::step, ::step], arrays[f"{name}/{key}"], rtol=0, atol=tolerance)
        stats = entry[key]
        assert isinstance(stats, dict) and list(tensor.shape) == stats["shape"]
        assert abs(tensor.mean(dtype=np.float64) - stats["mean"]) < max(tolerance / 10, 1e-6)
        assert abs(tensor.std(dtype=np.float64) - stats["std"]) < max(tolerance / 10, 1e-5)
    if entry["mask_file"] is None:
        return
    expected = entry["mask"]
    assert isinstance(expected, dict)
    stored = open_image(base / str(entry["mask_file"]))
    mask = mask_of(stored, (image.height, image.width))
    grey = mask_at_crop(mask, R448)
    np.testing.assert_allclose(grey[:, ::14, ::14], arrays[f"{name}/m392"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.packbits(positives(mask, R448, "gt05")), arrays[f"{name}/m256_gt05"])
    square = Preprocess(resize=(256, 256), crop=(256, 256))
    nearest = Image.fromarray(mask.channels[0])
    short = 224 / min(nearest.size)
    shorter = nearest.resize(tuple(int(side * short) if side != min(nearest.size) else 224 for side in nearest.size), 0)
    left, top = round((shorter.width - 224) / 2.0), round((shorter.height - 224) / 2.0)
    found = {
        "native_nonzero": mask.channels.astype(bool).sum(),
        "m392_gt0": (grey > 0).sum(),
        "m392_gt05": (grey > 0.5).sum(),
        "inpformer_256_nearest_gt05": positives(mask, R448, "gt05").sum(),
        "dinomaly_256_nearest_gt0": positives(mask, R448, "gt0").sum(),
        "crr_392_ge05": (grey >= 0.5).sum(),
        "crr_256_bilinear_ge05": positives(mask, R448, "crr").sum(),
        "ader_256_gt05": (mask_at_crop(mask, square) > 0.5).sum(),  # ADer resizes to the metric size at once
        "pmad_224_nearest_nonzero": np.asarray(shorter.crop((left, top, left + 224, top + 224))).astype(bool).sum(),
    }
    assert {key: int(value) for key, value in found.items()} == {key: expected[key] for key in found}
    unknown = set(expected) - set(found) - {"mask_size", "m392_sum"}
    assert not unknown, f"rules that this runner does not know: {unknown}"
    np.testing.assert_allclose(grey.sum(dtype=np.float64), expected["m392_sum"], rtol=1e-6)
