"""Image and mask files to arrays, in every mode, on the stored grid; and the originals' geometry.

Image: 8-bit RGB. Grey is copied to three channels, a palette is looked up, alpha is dropped (not composed), 16-bit grey is v >> 8
(PIL's own conversion clips at 255: a white picture). EXIF orientation is not applied, because masks lie on the stored grid.
`own_mode` keeps the stored mode (16-bit grey: 8-bit grey) until after the crop: PIL resizes a palette without interpolation, and
colours with alpha weighted by it.
Mask: each channel becomes 0/255 before any resize: values up to 15 are class numbers (defect: not 0), others are grey (defect:
above 127). Then, as the originals: resize (PIL, antialiased), centre crop with torchvision's rounding, division by 255.
Known deviation: a 16-bit mask whose largest value is below 256 holds 8-bit numbers and is not shifted, which would erase it.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from inpbench.harness.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inpbench.harness.api import Preprocess, Size

SIXTEEN_BIT = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
USUAL_MODES = frozenset({"L", "RGB"})
# Contents that are read, whatever the extension says; PIL knows others that run programs (EPS) or hold no pixels.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000")
READ_AS = {  # how an unusual mode is read, for the audit
    "1": "0 and 255, copied to three channels",
    "P": "its palette looked up",
    "PA": "its palette looked up, alpha dropped",
    "LA": "alpha dropped, copied to three channels",
    "La": "alpha dropped, copied to three channels",
    "RGBA": "alpha dropped, colours as stored",
    "RGBa": "alpha dropped",
    "RGBX": "fourth channel dropped",
    "CMYK": "converted to RGB by PIL",
    "YCbCr": "converted to RGB by PIL",
    "HSV": "converted to RGB by PIL",
    **dict.fromkeys(SIXTEEN_BIT, "16-bit value >> 8, copied to three channels"),
}


class UnreadableError(DataError):
    """An image or mask that cannot be decoded whole; `reason` is the message without the file name."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}.", "Fetch or export the file again, or run with --lenient to leave it out.")
        self.reason = reason


class Mask(NamedTuple):
    """Ground truth on the image's grid."""

    channels: NDArray[np.uint8]  # (C, H, W), 0 or 255; C is 3 where the channels of a colour mask differ
    nearest: bool  # 1-bit and palette masks: PIL resizes these modes without interpolation, and so do the originals
    stored: Size  # (height, width) of the file

    @property
    def empty(self) -> bool:
        """Whether no pixel is anomalous."""
        return not self.channels.any()


# --- files ----------------------------------------------------------------------------------------------------------


def open_image(file: Path, name: str = "", data: bytes | None = None) -> Image.Image:
    """A decoded image in its stored mode; `data` are the file's bytes where the caller has them.

    Raises `UnreadableError` for zero bytes, truncated or broken files, other formats and decompression bombs.
    """
    name = name or str(file)
    if data is None:
        _check_regular(file, name)
    try:
        image: Image.Image
        with Image.open(file if data is None else io.BytesIO(data), formats=FORMATS) as image:
            image.load()  # Image.open alone does not notice a truncated file
        return image
    except OSError as error:
        empty = len(data) == 0 if data is not None else _is_empty(file)
        reason = "zero bytes" if empty else error.strerror or str(error).replace(str(file), "").strip()
        if "cannot identify" in reason:
            reason = "not an image of a known format"
        raise UnreadableError(name, reason) from error
    except Exception as error:  # PIL's decoders raise nearly anything on broken bytes: SyntaxError, ValueError, struct.error, ...
        raise UnreadableError(name, f"{type(error).__name__}: {error}") from error


def _check_regular(file: Path, name: str) -> None:
    """Raise `UnreadableError` for a fifo, which would wait for ever, and for a device, which never ends."""
    try:
        mode = file.stat().st_mode
    except OSError:  # what is wrong with it, opening it will tell
        return
    if not stat.S_ISREG(mode):
        raise UnreadableError(name, "not a regular file")


def _is_empty(file: Path) -> bool:
    try:
        return file.stat().st_size == 0
    except OSError:
        return False


def to_rgb(image: Image.Image, name: str = "") -> Image.Image:
    """8-bit RGB of any mode; `UnreadableError` for modes without a defined scale (32-bit integers, floats, Lab)."""
    return image if image.mode == "RGB" else _eight_bit(image, name).convert("RGB")


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """The image in its own mode, 16-bit grey as 8-bit grey; `UnreadableError` as `to_rgb`."""
    if image.mode in SIXTEEN_BIT:
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise UnreadableError(name, f"32-bit values ({grey.min()} to {grey.max()}) have no defined scale")
        return Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode not in USUAL_MODES and image.mode not in READ_AS:
        raise UnreadableError(name, f"images of mode {image.mode} have no defined conversion to RGB")
    image.info.pop("transparency", None)  # otherwise PIL warns of, and may try to translate, a colour that stands for transparent
    return image


def read_image(file: Path, name: str = "") -> Image.Image:
    """An image file as 8-bit RGB, (H, W) as stored. Raises `UnreadableError` (a `DataError`) naming the file."""
    return to_rgb(open_image(file, name), name or str(file))


def read_for(file: Path, name: str, preprocess: Preprocess) -> Image.Image:
    """An image file as `image_at_crop` wants it: 8-bit RGB, or in its own mode. Raises `UnreadableError` naming the file."""
    image = open_image(file, name)
    return _eight_bit(image, name) if preprocess.own_mode else to_rgb(image, name)


def image_size(file: Path, name: str = "") -> Size:
    """(height, width) from the header alone."""
    _check_regular(file, name or str(file))
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.height, image.width
    except Exception as error:  # as in open_image
        raise UnreadableError(name or str(file), str(error)) from error


# --- masks ----------------------------------------------------------------------------------------------------------


def mask_of(image: Image.Image, size: Size | None = None, name: str = "") -> Mask:
    """Binarise a decoded mask, then bring it to the image's `size` (nearest) where its own differs.

    One threshold rule for the whole mask: the largest value of any channel decides whether it holds class numbers.
    """
    values = _mask_values(image, name)
    if not values.size:
        raise UnreadableError(name, "a mask without pixels")
    binary = values != 0 if values.max() <= 15 else values > 127
    channels = binary.astype(np.uint8) * 255
    if len(channels) > 1 and (channels == channels[:1]).all():
        channels = channels[:1]
    if size is not None and channels.shape[1:] != tuple(size):
        channels = np.stack([_resized(channel, size, Image.Resampling.NEAREST) for channel in channels])
    return Mask(channels, image.mode in ("1", "P"), (image.height, image.width))


def _numbers(image: Image.Image) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = np.asarray(image).astype(np.int64)
    return numbers


def _mask_values(image: Image.Image, name: str) -> NDArray[np.int64]:
    """(C, H, W) raw numbers of a mask; alpha is not one of them."""
    if image.mode == "1":
        return _numbers(image)[None] * 255
    if image.mode in ("L", "P"):
        return _numbers(image)[None]
    if image.mode in SIXTEEN_BIT:
        wide = _numbers(image)[None]
        if wide.size and wide.max() > 255:
            wide >>= 8
        return wide
    if image.mode in ("LA", "La"):
        return _numbers(image.getchannel(0))[None]
    channels: NDArray[np.int64] = _numbers(to_rgb(image, name)).transpose(2, 0, 1)
    return channels


def read_mask(file: Path, size: Size | None = None, name: str = "") -> Mask:
    """A mask file; `size` (height, width) is that of its image. Raises `UnreadableError` naming the file."""
    return mask_of(open_image(file, name), size, name or str(file))


def size_message(mask: Size, image: Size) -> str:
    """How a mask of another size than its image is treated."""
    return f"the mask is {mask[1]}x{mask[0]}, the image {image[1]}x{image[0]}: the binary mask is resized (nearest)"


# --- the originals' geometry ----------------------------------------------------------------------------------------


def check_preprocess(preprocess: Preprocess) -> None:
    """Raise `UsageError` where the crop does not fit into the resized image."""
    low = (preprocess.resize[0], preprocess.resize[0]) if preprocess.shorter_side else preprocess.resize
    if min(preprocess.crop) < 1 or preprocess.crop[0] > low[0] or preprocess.crop[1] > low[1]:
        raise UsageError(
            f"A crop of {preprocess.crop[0]}x{preprocess.crop[1]} does not fit into images resized to {low[0]}x{low[1]}.",
            "Type: --set METHOD.crop=SIZE with a size not above resize.",
        )


def resized_size(size: Size, preprocess: Preprocess) -> Size:
    """(height, width) after the resize; with `shorter_side` the longer one is int(side * long / short), as in torchvision."""
    if not preprocess.shorter_side:
        return preprocess.resize
    height, width = size
    side = preprocess.resize[0]
    return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)


def crop_box(size: Size, crop: Size) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) of the centre crop; halves round to even, as in torchvision."""
    top, left = round((size[0] - crop[0]) / 2.0), round((size[1] - crop[1]) / 2.0)
    return top, top + crop[0], left, left + crop[1]


def image_at_crop(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """An image of `read_for` -> (3, H, W) uint8 at crop size: the input of a method before it is scaled and normalised."""
    height, width = resized_size((image.height, image.width), preprocess)
    how = Image.Resampling[preprocess.interpolation.upper()]
    pixels = np.asarray(to_rgb(image.resize((width, height), how)))
    top, bottom, left, right = crop_box((height, width), preprocess.crop)
    return np.ascontiguousarray(pixels[top:bottom, left:right].transpose(2, 0, 1))


def mask_at_crop(mask: Mask, preprocess: Preprocess) -> NDArray[np.float32]:
    """(C, H, W) float32 in [0, 1] at crop size, grey at borders as the originals' bilinear resize makes it."""
    size = resized_size((mask.channels.shape[1], mask.channels.shape[2]), preprocess)
    how = Image.Resampling.NEAREST if mask.nearest else Image.Resampling.BILINEAR
    top, bottom, left, right = crop_box(size, preprocess.crop)
    resized = np.stack([_resized(channel, size, how)[top:bottom, left:right] for channel in mask.channels])
    unit: NDArray[np.float32] = resized.astype(np.float32) / np.float32(255)
    return unit


def _resized(channel: NDArray[np.uint8], size: Size, how: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(channel).resize((size[1], size[0]), how))
