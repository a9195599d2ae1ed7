"""Decoding in every mode, mask rules, and the geometry of the resize and crop against independent arithmetic."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from inpbench.harness.api import Preprocess
from inpbench.harness.errors import DataError, UsageError
from inpbench.harness.images import (
    UnreadableError,
    check_preprocess,
    crop_box,
    image_at_crop,
    image_size,
    mask_at_crop,
    read_for,
    read_image,
    read_mask,
    resized_size,
)

RAMP = np.arange(24 * 20, dtype=np.uint16).reshape(20, 24)


def stored(tmp_path: Path, image: Image.Image, name: str = "x.png", form: str | None = None) -> np.ndarray:
    read = read_image(trees.save(image, tmp_path / name, form))
    assert read.mode == "RGB"
    return np.asarray(read)


# --- images ---------------------------------------------------------------------------------------------------------


def test_grey_is_replicated_and_rgb_kept(tmp_path: Path) -> None:
    picture = trees.picture(1)
    np.testing.assert_array_equal(stored(tmp_path, picture), np.asarray(picture))
    grey = picture.convert("L")
    np.testing.assert_array_equal(stored(tmp_path, grey), np.repeat(np.asarray(grey)[..., None], 3, axis=2))


def test_palette_is_looked_up_before_any_resize(tmp_path: Path) -> None:
    palette = Image.fromarray((RAMP % 2).astype(np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    rgb = stored(tmp_path, palette)
    assert {tuple(p) for p in rgb.reshape(-1, 3).tolist()} == {(10, 20, 30), (200, 100, 50)}
    small = image_at_crop(read_image(tmp_path / "x.png"), Preprocess(resize=(5, 5), crop=(5, 5)))
    assert set(np.unique(small[0])) - {10, 200}, "interpolated: PIL resizes palette images with nearest"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_not_composed(tmp_path: Path, mode: str) -> None:
    opaque = trees.picture(2).convert("RGB" if mode == "RGBA" else "L")
    image = opaque.convert(mode)
    image.putalpha(Image.fromarray((RAMP % 3 * 100).astype(np.uint8)))
    np.testing.assert_array_equal(stored(tmp_path, image), np.asarray(opaque.convert("RGB")))


def test_transparent_palette_and_cmyk(tmp_path: Path) -> None:
    palette = trees.picture(3).convert("P")
    palette.info["transparency"] = bytes(range(256))
    expected = np.asarray(trees.picture(3).convert("P").convert("RGB"))
    np.testing.assert_array_equal(stored(tmp_path, palette), expected)
    cmyk = trees.picture(4).convert("CMYK")
    np.testing.assert_array_equal(stored(tmp_path, cmyk, "x.tif", "TIFF"), np.asarray(cmyk.convert("RGB")))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bit_is_shifted_not_clipped(tmp_path: Path, name: str) -> None:
    values = (RAMP.astype(np.uint32) * 65535 // RAMP.max()).astype(np.uint16)
    rgb = stored(tmp_path, Image.fromarray(values), name)
    np.testing.assert_array_equal(rgb[..., 0], values >> 8)
    np.testing.assert_array_equal(rgb[..., 0], rgb[..., 2])


def test_one_bit(tmp_path: Path) -> None:
    assert set(np.unique(stored(tmp_path, Image.fromarray(RAMP % 2 == 1)))) == {0, 255}


def test_modes_without_a_scale_are_refused(tmp_path: Path) -> None:
    trees.save(Image.fromarray(RAMP.astype(np.float32)), tmp_path / "f.tif")
    with pytest.raises(UnreadableError, match="mode F"):
        read_image(tmp_path / "f.tif")
    trees.save(Image.fromarray(RAMP.astype(np.int32) * 1000), tmp_path / "i.tif")
    with pytest.raises(UnreadableError, match="32-bit"):
        read_image(tmp_path / "i.tif")


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees
    trees.picture(5).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == trees.SIZE
    assert image_size(tmp_path / "x.jpg") == (20, 24)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated_files_are_refused_by_name(tmp_path: Path, form: str) -> None:
    path = trees.truncated(trees.picture(6, (200, 150)), tmp_path / "cut.png", form)
    with pytest.raises(DataError, match=r"cut\.png"):
        read_image(path)


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "zero.png").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"part/zero\.png: zero bytes"):
        read_image(tmp_path / "zero.png", "part/zero.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UnreadableError, match="not an image"):
        read_image(tmp_path / "text.png")
    with pytest.raises(UnreadableError, match="No such file"):
        read_image(tmp_path / "none.png")
    data = bytearray(trees.save(trees.picture(7), tmp_path / "crc.png").read_bytes())
    data[60:70] = b"\xff" * 10
    (tmp_path / "crc.png").write_bytes(data)
    with pytest.raises(UnreadableError):
        read_image(tmp_path / "crc.png")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0), b"IDAT" + zlib.compress(b"\0"))
    bomb = b"\x89PNG\r\n\x1a\n"
    for chunk in chunks:
        bomb += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(UnreadableError, match="DecompressionBomb"):
        read_image(tmp_path / "bomb.png")


def test_formats_that_run_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableError, match="not an image"):
        read_image(tmp_path / "script.png")


# --- masks ----------------------------------------------------------------------------------------------------------

EXPECTED = np.asarray(trees.spot()) > 0


def wide(high: int) -> Image.Image:
    return Image.fromarray(EXPECTED.astype(np.uint16) * high)


@pytest.mark.parametrize(
    "mask",
    [
        trees.spot(),
        trees.spot(value=1),
        trees.spot(value=9),
        trees.spot(value=15),
        trees.spot(value=128),
        trees.spot().convert("1"),
        trees.spot(value=3).convert("P"),
        trees.spot().convert("RGB"),
        Image.merge("RGB", (trees.spot(), Image.new("L", trees.SIZE), Image.new("L", trees.SIZE))),
        Image.merge("RGBA", (*[trees.spot()] * 3, Image.new("L", trees.SIZE, 255))),
        Image.merge("LA", (trees.spot(), Image.new("L", trees.SIZE, 255))),
        wide(65535),
        wide(255),
        wide(1),
    ],
    ids=lambda image: f"{image.mode}-{np.asarray(image).max()}",
)
def test_masks_of_every_mode_mean_the_same(tmp_path: Path, mask: Image.Image) -> None:
    read = read_mask(trees.save(mask, tmp_path / "m.png"))
    assert set(np.unique(read.channels)) <= {0, 255}
    np.testing.assert_array_equal(read.channels.max(axis=0) > 0, EXPECTED)
    assert read.stored == (20, 24) and not read.empty


def test_grey_masks_are_cut_above_127(tmp_path: Path) -> None:
    grey = np.zeros((20, 24), np.uint8)
    grey[0, :4] = (16, 127, 128, 255)
    read = read_mask(trees.save(Image.fromarray(grey), tmp_path / "m.png"))
    assert read.channels[0, 0, :4].tolist() == [0, 0, 255, 255]


def test_an_empty_mask_is_empty(tmp_path: Path) -> None:
    assert read_mask(trees.save(Image.new("L", (5, 4)), tmp_path / "m.png")).empty


def test_a_mask_of_another_size_is_brought_to_the_image(tmp_path: Path) -> None:
    path = trees.save(trees.spot((48, 40)), tmp_path / "m.png")
    read = read_mask(path, (20, 24))
    assert read.stored == (40, 48) and read.channels.shape == (1, 20, 24)
    big = np.asarray(trees.spot((48, 40)))
    np.testing.assert_array_equal(read.channels[0], big[1::2, 1::2])  # nearest: the centre of each 2 x 2 block, rounded up


def test_mask_rules_equal_the_originals_on_official_masks(tmp_path: Path) -> None:
    """For 8-bit 0/255 masks the chain is that of the originals: PIL's bilinear resize of the file as opened."""
    mask = trees.spot((90, 70))
    path = trees.save(mask, tmp_path / "m.png")
    preprocess = Preprocess(resize=(32, 32), crop=(28, 28))
    expected = np.asarray(mask.resize((32, 32), Image.Resampling.BILINEAR))[2:30, 2:30] / 255.0
    np.testing.assert_allclose(mask_at_crop(read_mask(path), preprocess)[0], expected, atol=1e-7)


def test_colour_masks_keep_their_channels(tmp_path: Path) -> None:
    shifted = Image.fromarray(np.roll(np.asarray(trees.spot()), 3, axis=1))
    image = Image.merge("RGB", (trees.spot(), shifted, Image.new("L", trees.SIZE)))
    grey = mask_at_crop(read_mask(trees.save(image, tmp_path / "m.png")), Preprocess(resize=(16, 16), crop=(14, 14)))
    assert grey.shape == (3, 14, 14) and not grey[2].any() and (grey[0] != grey[1]).any()


# --- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "crop", "first"), [(448, 392, 28), (9, 4, 2), (7, 4, 2), (240, 240, 0), (313, 240, 36)])
def test_crop_offset_rounds_halves_to_even(size: int, crop: int, first: int) -> None:
    assert crop_box((size, size), (crop, crop)) == (first, first + crop, first, first + crop)


def test_shorter_side() -> None:
    clip = Preprocess(resize=(240, 240), crop=(240, 240), shorter_side=True)
    assert resized_size((300, 300), clip) == (240, 240)
    assert resized_size((448, 193), clip) == (557, 240)
    assert resized_size((193, 448), clip) == (240, 557)
    pixels = image_at_crop(trees.picture(1, (448, 193)), clip)
    assert pixels.shape == (3, 240, 240)
    enlarged = np.asarray(trees.picture(1, (448, 193)).resize((557, 240), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels, enlarged[:, 158:398].transpose(2, 0, 1))


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        check_preprocess(Preprocess(resize=(224, 224), crop=(240, 240)))
    check_preprocess(Preprocess(resize=(240, 1), crop=(240, 240), shorter_side=True))


def test_image_bytes_are_read_from_memory_too() -> None:
    from inpbench.harness.images import open_image

    buffer = io.BytesIO()
    trees.picture(8).save(buffer, "PNG")
    assert open_image(Path("x.png"), "x.png", buffer.getvalue()).size == trees.SIZE
    with pytest.raises(UnreadableError, match="zero bytes"):
        open_image(Path("x.png"), "x.png", b"")


# --- resized in the file's own mode -----------------------------------------------------------------------------------

CLIP = Preprocess(resize=(24, 24), crop=(24, 24), shorter_side=True, interpolation="bicubic", own_mode=True)


def noise(mode: str, seed: int, size: tuple[int, int] = (40, 31)) -> Image.Image:
    """Noise of a mode; RGBA with alpha that varies, P with a random palette."""
    state = np.random.RandomState(seed)
    channels = {"RGB": (3,), "RGBA": (4,), "LA": (2,), "CMYK": (4,)}.get(mode, ())
    if mode == "1":
        return Image.fromarray(state.randint(0, 2, size[::-1]).astype(np.uint8) * 255).convert("1")
    values = state.randint(0, 256, (*size[::-1], *channels)).astype(np.uint8)
    image = Image.frombytes(mode, size, values.tobytes())
    if mode == "P":
        image.putpalette(state.randint(0, 256, 768).astype(np.uint8).tobytes())
    return image


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_own_mode_is_clips_order(mode: str, tmp_path: Path) -> None:
    """Against open_clip's own transform: resize, crop, and only then RGB."""
    from open_clip import image_transform

    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    noise(mode, 3).save(file)
    found = image_at_crop(read_for(file, file.name, CLIP), CLIP)
    transform = image_transform(24, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    expected = np.rint(transform(Image.open(file)).numpy() * 255)
    np.testing.assert_array_equal(found, expected)
    if mode in ("P", "RGBA"):
        other = replace(CLIP, own_mode=False)
        assert (image_at_crop(read_for(file, file.name, other), other) != found).any(), "the order makes no difference here"


def test_own_mode_reads_16_bit_as_everywhere(tmp_path: Path) -> None:
    wide = (np.random.RandomState(4).randint(0, 65536, (31, 40))).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray((wide >> 8).astype(np.uint8)).save(tmp_path / "grey.png")
    wide_pixels, grey_pixels = (image_at_crop(read_for(tmp_path / n, n, CLIP), CLIP) for n in ("wide.png", "grey.png"))
    np.testing.assert_array_equal(wide_pixels, grey_pixels)


def test_own_mode_refuses_modes_without_a_scale(tmp_path: Path) -> None:
    Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UnreadableError, match=r"f\.tif: .*mode F"):
        read_for(tmp_path / "f.tif", "f.tif", CLIP)
