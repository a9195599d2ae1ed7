"""The built-in encoder: the interface of an encoder, determinism, and its descriptor against slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from inpbench.harness.api import IMAGENET_MEAN, IMAGENET_STD
from inpbench.harness.errors import WeightsError
from inpbench.methods import builtin_encoder
from inpbench.methods.builtin_encoder import DEPTH, FLOOR, LAYER_BLUR, BuiltinEncoder, blur, oriented_filters
from inpbench.methods.encoder_table import get_encoder


def _images(height: int, width: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _encoder(dtype: torch.dtype = torch.float32) -> BuiltinEncoder:
    return BuiltinEncoder((56, 56)).to(dtype).requires_grad_(False).eval()


# --- interface --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(14, 14), (56, 56), (28, 70), (70, 28)])
def test_layers_have_the_shape_of_an_encoder(size: tuple[int, int], dtype: torch.dtype) -> None:
    encoder = _encoder(dtype)
    indices = (2, 5, 6, 11)
    layers = encoder.layers(_images(*size).to(dtype), indices)
    height, width = encoder.grid(size)
    assert (height, width) == (size[0] // 14, size[1] // 14) and len(layers) == len(indices)
    for layer in layers:
        assert layer.shape == (2, encoder.prefix + height * width, encoder.dim)
        assert layer.dtype == dtype and layer.isfinite().all() and not layer.requires_grad
    assert encoder.dim % encoder.heads == 0 and len(LAYER_BLUR) == encoder.depth == DEPTH


def test_the_table_says_what_the_encoder_is() -> None:
    entry, encoder = get_encoder("builtin"), _encoder()
    for name in ("dim", "depth", "heads", "patch"):
        assert getattr(entry, name) == getattr(encoder, name), name


def test_two_builds_give_the_same_bits_and_touch_no_generator() -> None:
    before = torch.get_rng_state()
    first, second = (_encoder().layers(_images(56, 56), (3, 9)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_does_not_depend_on_its_batch() -> None:
    encoder, images = _encoder(torch.float64), _images(56, 42, count=5).double()
    together = encoder.layers(images, (2, 8))
    for index in range(5):
        alone = encoder.layers(images[index : index + 1], (2, 8))
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a[index], b[0], rtol=0, atol=1e-10)


def test_input_is_not_modified_and_order_is_that_of_the_indices() -> None:
    encoder, images = _encoder(), _images(28, 28)
    copy = images.clone()
    forward, backward = encoder.layers(images, (1, 7)), encoder.layers(images, (7, 1))
    assert torch.equal(images, copy)
    assert torch.equal(forward[0], backward[1]) and torch.equal(forward[1], backward[0])


def test_float64_agrees_with_float32() -> None:
    images = _images(56, 56)
    single, double = _encoder().layers(images, (4,))[0], _encoder(torch.float64).layers(images.double(), (4,))[0]
    assert torch.allclose(single.double(), double, atol=5e-3)


def test_tokens_are_row_major() -> None:
    """A patch that changes moves the tokens around it, and no others."""
    encoder, images = _encoder(), torch.zeros(1, 3, 140, 112)
    changed = images.clone()
    changed[:, :, 42:56, 70:84] = 1.5  # row 3, column 5
    difference = (encoder.layers(changed, (0,))[0] - encoder.layers(images, (0,))[0]).norm(dim=-1).reshape(10, 8)
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(8.0), indexing="ij")
    total = difference.sum()
    assert float((rows * difference).sum() / total) == pytest.approx(3.0, abs=0.5)
    assert float((columns * difference).sum() / total) == pytest.approx(5.0, abs=0.5)
    assert difference[3, 5] > 1.0 and difference[9, 0] < 1e-5


def test_state_round_trip_and_strictness() -> None:
    encoder, other = _encoder(), _encoder()
    state = encoder.official_state()
    other.mean.zero_()
    other.load_official(state)
    assert torch.equal(other.mean, encoder.mean)
    with pytest.raises(WeightsError, match="projection"):
        other.load_official({key: value for key, value in state.items() if key != "projection"})


# --- the descriptor against loops ---------------------------------------------------------------------------------------


def test_filters_are_gabor_pairs() -> None:
    filters = oriented_filters().double().numpy()[:, 0]
    half = len(filters) // 2
    assert filters.reshape(len(filters), -1).sum(axis=1) == pytest.approx(np.zeros(len(filters)), abs=1e-6)
    assert np.linalg.norm(filters.reshape(len(filters), -1), axis=1) == pytest.approx(np.ones(len(filters)), abs=1e-6)
    assert filters[:half] == pytest.approx(filters[:half, ::-1, ::-1], abs=1e-7), "even"
    assert filters[half:] == pytest.approx(-filters[half:, ::-1, ::-1], abs=1e-7), "odd"
    for index in range(half):  # answers most to a wave of its own direction
        y, x = np.mgrid[-4:5, -4:5]
        energy = []
        for other in range(half):
            angle = math.pi * other / half
            wave = np.exp(2j * np.pi / builtin_encoder.WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle)))
            energy.append(abs((filters[index] * wave.real).sum()))
        assert int(np.argmax(energy)) == index


def test_first_energies_against_loops() -> None:
    encoder, images = _encoder(torch.float64), _images(28, 28, count=1).double()
    light = images[0].numpy() * np.array(IMAGENET_STD)[:, None, None] + np.array(IMAGENET_MEAN)[:, None, None]
    brightness = np.sqrt(np.maximum(light, 0.0) + 1e-3).mean(axis=0)
    padded = np.pad(brightness, 4, mode="edge")
    filters = encoder.filters.numpy()[:, 0]
    half = len(filters) // 2
    energy = np.zeros((half, 28, 28))
    for row in range(28):
        for column in range(28):
            window = padded[row : row + 9, column : column + 9]
            answer = (filters * window).sum(axis=(1, 2))
            energy[:, row, column] = np.sqrt(answer[:half] ** 2 + answer[half:] ** 2 + 1e-12)
    found = encoder.describe(images)[0].numpy()
    for h in range(2):
        for w in range(2):
            cell = energy[:, 14 * h : 14 * h + 14, 14 * w : 14 * w + 14].reshape(half, -1)
            assert found[:half, h, w] == pytest.approx(np.log(cell.mean(axis=1) + FLOOR), rel=1e-9)
            assert found[half : 2 * half, h, w] == pytest.approx(np.log(cell.max(axis=1) + FLOOR), rel=1e-9)


def test_layers_are_cosines_of_the_blurred_projected_descriptor() -> None:
    encoder, images = _encoder(torch.float64), _images(56, 42).double()
    angles = torch.einsum("bfhw,fd->bdhw", encoder.describe(images) - encoder.mean[:, None, None], encoder.projection)
    for index in range(DEPTH):
        expected = (2.0**0.5 * torch.cos(blur(angles, LAYER_BLUR[index]) + encoder.phase[:, None, None])).flatten(2).transpose(1, 2)
        assert torch.allclose(encoder.layers(images, (index,))[0], expected, atol=1e-9)


def test_blur_against_loops() -> None:
    x, sigma = _images(5, 4, count=1).double(), 0.8
    reach = math.ceil(3 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(x[0].numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    expected = np.zeros((3, 5, 4))
    for row in range(5):
        for column in range(4):
            window = padded[:, row : row + 2 * reach + 1, column : column + 2 * reach + 1]
            expected[:, row, column] = (window * weights[:, None] * weights).sum(axis=(1, 2))
    assert blur(x, sigma)[0].numpy() == pytest.approx(expected, rel=1e-12)
    assert blur(x, 0.0) is x
