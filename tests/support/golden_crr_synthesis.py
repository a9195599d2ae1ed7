"""Golden cases of CRR's synthetic anomalies, through the functions that training uses.

Noise and rotation 1e-12 in float64. Bytes are exact, but for Lab and Luv (3 grey levels on less than a tenth of the values).
Where a case does not store its sources they are made again here: within a grey level, but for the edge of the drawn ellipse.
"""

from __future__ import annotations

import math
import re
from functools import partial

import numpy as np
import torch
from golden import Case
from golden_arrays import Comparison, _part
from PIL import Image

from inpbench.harness.api import Preprocess
from inpbench.harness.images import image_at_crop
from inpbench.harness.loading import Normaliser
from inpbench.methods.crr import CrrParams, augmenters
from inpbench.methods.crr.perlin import perlin_noise, rotate, rotation_matrix
from inpbench.methods.crr.synthesis import Synthetic, anomaly_mask, augment, blend, resize_bilinear, shuffle_pieces
from inpbench.methods.crr.synthetic_images import at_crop

EXACT = 1e-12


def check_perlin(case: Case) -> None:
    """crr_perlin*: noise of several sizes and grids, the gradients' angles, the pixels above the threshold."""
    compare = Comparison(case)
    for height, width, rows, columns, seed in case.config["config"]["specs"]:
        turns = np.random.RandomState(seed).random_sample((rows + 1, columns + 1))
        noise = perlin_noise((height, width), turns)
        name = f"{height}x{width}_{rows}x{columns}_s{seed}"
        compare.check(f"noise_{name}", noise, EXACT)
        compare.check_if_present(f"count05_{name}", (noise > 0.5).sum(), 0.0)
        compare.check_if_present(f"row0_{name}", noise[0, :40], EXACT)
        compare.check_if_present(f"angles_{name}", 2.0 * math.pi * turns, EXACT)
    compare.finish()


def check_rotation(case: Case) -> None:
    """crr_rotate*: float64 noise and bytes turned, and the matrix."""
    compare = Comparison(case)
    for height, width, degrees, seed in case.config["config"]["specs"]:
        state = np.random.RandomState(seed)
        noise = state.standard_normal((height, width))
        pixels = state.randint(0, 256, (height, width, 3)).astype(np.uint8)
        name = f"{height}x{width}_{degrees}"
        compare.check_if_present(f"f_{name}_{seed}", rotate(noise, degrees), EXACT)
        compare.check_if_present(f"u_{name}_{seed}", rotate(pixels, degrees), 0.0)
        if f"matrix_{name}" in compare:
            matrix = np.vstack([rotation_matrix((height, width), degrees), [0.0, 0.0, 1.0]])
            # The originals' library scales by 1 + 1e-6 here and there.
            np.testing.assert_allclose(matrix, case.arrays[f"matrix_{name}"], atol=1e-4)
            compare.skip(f"matrix_{name}")
    compare.finish()


# --- augmenters -----------------------------------------------------------------------------------------------------

# Names of cases whose numbers are not in the name.
_PARTICULAR: dict[str, augmenters.Augmenter] = {
    "hs_h20_s40": partial(augmenters.hue_and_saturation, hue=20, saturation=-40),
    "rot_m17": partial(augmenters.turn, degrees=-17.5),
    "hs": partial(augmenters.hue_and_saturation, hue=30, saturation=30),
    "solarize": partial(augmenters.solarise, threshold=64),
}


def _signed(text: str) -> float:
    return float(text.replace("m", "-").replace("p", ""))


def named_augmenter(name: str) -> augmenters.Augmenter:
    """The augmenter of a case's name: `gamma_07`, `gamma07`, `hs_m45`, `bright_mul0.85_add25_Lab`, `rot20`, ..."""
    if name in _PARTICULAR:
        return _PARTICULAR[name]
    match = re.fullmatch(r"([a-z]+)_?(.*)", name)
    assert match, name
    kind, text = match.groups()
    if kind == "bright":
        *steps, space = text.split("_")
        changes = tuple(("multiply" if step.startswith("mul") else "add", float(step[3:])) for step in steps)
        return partial(augmenters.brightness, space=space, changes=changes)
    if kind == "hs":
        return partial(augmenters.hue_and_saturation, hue=int(_signed(text)), saturation=int(_signed(text)))
    if kind in ("rot", "rotate"):
        return partial(augmenters.turn, degrees=_signed(text))
    plain = {
        "identity": augmenters.unchanged,
        "invert": augmenters.invert,
        "equalize": augmenters.equalise,
    }
    if kind in plain:
        return plain[kind]
    number = float(text)
    tenths = number / 10 if "." not in text else number
    known: dict[str, augmenters.Augmenter] = {
        "gamma": partial(augmenters.gamma, exponents=(tenths, tenths, tenths)),
        "sharp": partial(augmenters.sharpness, factor=tenths),
        "solarize": partial(augmenters.solarise, threshold=number),
        "posterize": partial(augmenters.posterise, bits=int(number)),
        "autocontrast": partial(augmenters.autocontrast, cutoff=int(number)),
    }
    return known[kind]


def close_bytes(name: str, found: np.ndarray, expected: np.ndarray, most: int, share: float) -> None:
    """At most `most` levels apart, and apart at all on at most `share` of the values."""
    apart = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    assert apart.max(initial=0) <= most, f"{name}: {apart.max()} levels apart"
    assert np.mean(apart > 0) <= share, f"{name}: {np.mean(apart > 0):.1%} of the values differ"


def check_augmenters(case: Case) -> None:
    """crr_augmenters*: every augmenter with fixed parameters on one image."""
    compare, image = Comparison(case), case.arrays["image"]
    compare.skip("image")
    for name, expected in case.arrays.items():
        if name != "image":
            most, share = (3, 0.1) if name.endswith(("_Lab", "_Luv")) else (0, 0.0)
            close_bytes(name, named_augmenter(name)(image), expected, most, share)
            compare.skip(name)
    compare.finish()


# --- whole samples --------------------------------------------------------------------------------------------------


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """The 5 x 5 binomial blur of bytes (H, W, 3), mirrored without repeating the edge, rounded half up."""
    kernel = np.array([1, 4, 6, 4, 1])
    padded = np.pad(pixels.astype(np.int64), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    rows = sum(kernel[i] * padded[i : i + pixels.shape[0]] for i in range(5))
    both = sum(kernel[i] * rows[:, i : i + pixels.shape[1]] for i in range(5))
    return ((both + 128) >> 8).astype(np.uint8)


def _ellipse(height: int, width: int) -> np.ndarray:
    """The filled ellipse of the recipe: axes a third of the sides, turned by 20 degrees."""
    y, x = np.mgrid[0:height, 0:width]
    x, y = x - width // 2, y - height // 2
    cosine, sine = math.cos(math.radians(20)), math.sin(math.radians(20))
    along, across = (x * cosine + y * sine) / (width // 3), (y * cosine - x * sine) / (height // 3)
    return np.where(along**2 + across**2 <= 1.0, 255, 0).astype(np.uint8)


def _sources(case: Case, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image, the foreground and the texture of a case: stored, or made again by its recipe."""
    config, arrays = case.config["config"], case.arrays
    height, width = config["source_hw"]
    state = np.random.RandomState(config["image_seed"])
    image = _blurred(state.randint(0, 256, (height, width, 3)).astype(np.uint8))
    textures = [_blurred(state.randint(0, 256, (70, 90, 3)).astype(np.uint8)) for _ in range(3)]
    if "src_image" in arrays:
        assert np.array_equal(image, arrays["src_image"]), "the recipe of the source"
    full = config["foreground"] == "full"
    drawn = np.full((height, width), 255, np.uint8) if full else _ellipse(height, width)
    return image, arrays.get("src_fg", drawn), arrays.get("texture", textures[index])


def check_synthesis(case: Case) -> None:
    """crr_synth*: one sample from fixed draws to what the network takes."""
    config, arrays, compare = case.config["config"], case.arrays, Comparison(case)
    side = config["image_size"]
    index, _, rows, columns, chosen, share = (entry[-1] for entry in config["feed_log"])
    source, foreground, texture = _sources(case, index)
    image = resize_bilinear(source, (side, side))
    state = np.random.RandomState(config["numpy_seed"])
    allowed = resize_bilinear(foreground, (side, side)).astype(np.float32) / np.float32(255)
    mask = anomaly_mask(allowed, (1 << rows, 1 << columns), lambda grid: (state.random_sample(grid), config["rot_deg"]))
    changes = [named_augmenter(name) for name in config["augmenters"]]
    if chosen > 0.5:
        pasted = augment(resize_bilinear(texture, (side, side)), changes)
    else:
        pasted = shuffle_pieces(augment(image, changes), config["shuffle_permutations"]["perms"])
    made = blend(image, pasted, mask, 0.6 * share + 0.2)
    stored = "src_fg" in arrays or config["foreground"] == "full"
    _check_sample(
        compare, source, image, made, exact=stored and not any(name.endswith(("Lab", "Luv")) for name in config["augmenters"])
    )
    for name in ("src_image", "src_fg", "texture", "label"):
        compare.skip(name)
    compare.finish()


def _check_sample(compare: Comparison, source: np.ndarray, image: np.ndarray, made: Synthetic, exact: bool) -> None:
    arrays, side = compare.case.arrays, image.shape[0]
    crop = _crop_of(compare.case)
    preprocess = Preprocess(resize=(side, side), crop=(crop, crop))
    params = CrrParams(encoder="builtin", input_size=(side, side), crop_size=(crop, crop))
    batch = at_crop(
        torch.from_numpy(made.image)[None], torch.from_numpy(made.mask)[None], params, torch.device("cpu"), torch.float32
    )
    clean = Normaliser(preprocess, torch.device("cpu"), torch.float32)(image_at_crop(Image.fromarray(source), preprocess)[None])[0]
    changed, mask = batch.images[0].numpy(), batch.masks[0].numpy()
    outside = mask == 0
    difference = np.abs(changed - clean.numpy())[:, outside].mean()
    found = {name: part.astype(np.float64) for name, part in (("image_u8", image), ("aug_u8", made.image), ("mask_u8", made.mask))}
    found |= {"t_aug": changed, "t_mask": mask[None], "t_img": clean.numpy()}
    for name, full in found.items():
        if exact or name in ("image_u8", "t_img"):
            compare.check_if_present(name, full, 1e-6 if name.startswith("t_") else 0.0)
        elif name in arrays:  # within a grey level, but for the rim of the ellipse
            stored = arrays[name]
            part = _part(full, compare.case.config["arrays"][name]["what"]).reshape(stored.shape)
            level = 1.0 if name.endswith("u8") else 1.0 / (255 * min(preprocess.std))
            assert np.mean(np.abs(part - stored) > 1.01 * level) < 0.002, f"{name}: more than a rim differs"
            compare.skip(name, f"{name}__stat")
    if "normal_region_diff" in compare:
        assert abs(difference - float(arrays["normal_region_diff"])) < 1e-3 * (1 if exact else 10)
    if "mask_levels" in compare:
        levels = np.unique(made.mask)[:64]
        assert np.array_equal(levels, arrays["mask_levels"]) if exact else {0, 255} <= set(levels.tolist())
    compare.skip("normal_region_diff", "mask_levels")


def _crop_of(case: Case) -> int:
    """The side of the crop, from the stated shape of `t_mask`."""
    match = re.search(r"of shape \[1, (\d+), \d+\]", case.config["arrays"]["t_mask"]["what"])
    assert match
    return int(match.group(1))
