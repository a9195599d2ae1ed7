"""An encoder that ships with the package: a filter bank in the shape of a ViT. For demos and tests, not for published numbers.

    descriptor = [log energies of oriented filters at four scales, moments and contrast of brightness and colour] of each patch
    layer i    = sqrt(2) cos(blur_i((descriptor - mean) @ projection) + phase), the later the wider; no prefix token
The cosines are random Fourier features: the cosine of two tokens is a Gaussian kernel of their descriptors, so that a token unlike
all training tokens has a direction that no decoder learned. Linear features leave a decoder free to extrapolate: measurably worse.
Energies are pooled by mean (texture) and maximum (thin defects). The constants were calibrated once, on procedural images that have
nothing to do with any data set, by scripts/calibrate_builtin_encoder.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness.api import IMAGENET_MEAN, IMAGENET_STD, Size
from inpbench.methods.checkpoint import load_strictly

PATCH = 14
DEPTH = 12
HEADS = 12  # INP-Former passes heads x prototypes numbers a token from block to block: few heads learn slowly
CONSTANTS = "builtin_encoder.safetensors"
ORIENTATIONS = 6
WAVELENGTH, ENVELOPE, SIDE = 4.0, 2.0, 9  # of the filters, in pixels of their scale
FLOOR = 0.02  # added to energies and deviations before the logarithm: the noise of a good camera
SURROUND = 7.0  # sigma of the neighbourhood of the contrast feature, in half-resolution pixels
# Blur of each layer in patches: shallow layers are sharp, deep ones look at their neighbours too.
LAYER_BLUR = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6)


def oriented_filters(orientations: int = ORIENTATIONS) -> Tensor:
    """Gabor pairs (2 * orientations, 1, SIDE, SIDE) float32: all even ones (without mean), then all odd ones; unit norm."""
    reach = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    y, x = torch.meshgrid(reach, reach, indexing="ij")
    window = torch.exp(-(x * x + y * y) / (2.0 * ENVELOPE**2))
    even, odd = [], []
    for index in range(orientations):
        angle = math.pi * index / orientations
        phase = (x * math.cos(angle) + y * math.sin(angle)) * (2.0 * math.pi / WAVELENGTH)
        wave = window * torch.cos(phase)
        even.append(wave - window * (wave.sum() / window.sum()))
        odd.append(window * torch.sin(phase))
    bank = torch.stack(even + odd)
    unit: Tensor = bank / bank.flatten(1).norm(dim=1)[:, None, None]
    return unit.unsqueeze(1).float()


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W) cut at 3 sigma, borders replicated; sigma 0 returns x."""
    if sigma <= 0.0:
        return x
    reach = max(1, math.ceil(3.0 * sigma))
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-at * at / (2.0 * sigma * sigma))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    x = F.conv2d(x, kernel[:, :, :, None], groups=x.shape[1])
    return F.conv2d(x, kernel[:, :, None, :], groups=x.shape[1])


@lru_cache(maxsize=1)
def _constants() -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(resources.files("inpbench.methods").joinpath(CONSTANTS).read_bytes())


class BuiltinEncoder(nn.Module):
    """The encoder's interface (see `methods.encoders`), without a learned part; every size that is a multiple of 14 works."""

    patch = PATCH
    depth = DEPTH
    heads = HEADS
    prefix = 0
    filters: Tensor  # (2 * ORIENTATIONS, 1, SIDE, SIDE)
    mean: Tensor  # (F,)
    projection: Tensor  # (F, D)
    phase: Tensor  # (D,)

    def __init__(self, image_size: Size, constants: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("filters", oriented_filters())
        for name, value in (_constants() if constants is None else constants).items():
            self.register_buffer(name, value.clone())
        self.dim = int(self.projection.shape[1])

    def grid(self, size: Size) -> Size:
        """(h, w) tokens of an image of `size` pixels."""
        assert size[0] % PATCH == 0 and size[1] % PATCH == 0, "the encoder table refuses other sizes"
        return size[0] // PATCH, size[1] // PATCH

    @torch.no_grad()
    def layers(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Tokens (B, h * w, D), row by row, of the layers `indices` (0 to 11) for ImageNet-normalised images (B, 3, H, W)."""
        assert all(0 <= index < DEPTH for index in indices), "the parameters' check refuses other layers"
        angles = (self.describe(images).permute(0, 2, 3, 1) - self.mean) @ self.projection  # (B, h, w, D)
        grid = angles.permute(0, 3, 1, 2).contiguous()
        found = {}
        for width in {LAYER_BLUR[index] for index in indices}:
            found[width] = torch.cos(blur(grid, width).flatten(2).transpose(1, 2) + self.phase).mul(math.sqrt(2.0))
        return [found[LAYER_BLUR[index]] for index in indices]

    @torch.no_grad()
    def describe(self, images: Tensor) -> Tensor:
        """Descriptors (B, F, h, w) of ImageNet-normalised images (B, 3, H, W), before standardisation."""
        full = self._opponent(images)
        half = F.avg_pool2d(full, 2)
        coarse = blur(half, 1.0)
        coarsest = blur(coarse, 2.0)
        parts = self._energies(full[:, :1], 1, PATCH) + self._energies(half[:, :1], 1, PATCH // 2)
        parts += self._energies(coarse[:, :1], 2, PATCH // 2)
        for channel in (1, 2):
            colour = slice(channel, channel + 1)
            parts += self._energies(half[:, colour], 1, PATCH // 2) + self._energies(coarse[:, colour], 2, PATCH // 2)
        parts += self._energies(coarsest[:, :1], 4, PATCH // 2)
        mean = F.avg_pool2d(half, PATCH // 2)
        variance = F.avg_pool2d(half * half, PATCH // 2) - mean * mean
        parts += [mean, torch.log(variance.clamp_min(0.0).sqrt() + FLOOR)]
        parts += [-F.max_pool2d(-half, PATCH // 2), F.max_pool2d(half, PATCH // 2)]
        parts += [F.avg_pool2d(half - blur(half, SURROUND), PATCH // 2)]
        return torch.cat(parts, dim=1)

    def _opponent(self, images: Tensor) -> Tensor:
        """Square roots of RGB as brightness, red - green and blue - yellow (B, 3, H, W)."""
        mean, std = images.new_tensor(IMAGENET_MEAN), images.new_tensor(IMAGENET_STD)
        light = (images * std[:, None, None] + mean[:, None, None]).clamp_min(0.0).add(1e-3).sqrt()
        red, green, blue = light.unbind(dim=1)
        return torch.stack([light.mean(dim=1), red - green, blue - (red + green) / 2], dim=1)

    def _energies(self, channel: Tensor, dilation: int, cell: int) -> list[Tensor]:
        """Log energies of the filters on (B, 1, H, W), pooled on cells of `cell` pixels by mean and maximum; each (B, K, h, w)."""
        reach = dilation * (SIDE // 2)
        padded = F.pad(channel, (reach, reach, reach, reach), mode="replicate")
        even, odd = F.conv2d(padded, self.filters, dilation=dilation).chunk(2, dim=1)
        energy = (even * even + odd * odd + 1e-12).sqrt()
        return [torch.log(F.avg_pool2d(energy, cell) + FLOOR), torch.log(F.max_pool2d(energy, cell) + FLOOR)]

    # --- tensors ------------------------------------------------------------------------------------------------------

    def official_state(self) -> dict[str, Tensor]:
        """The constants; there is no official file."""
        return dict(self.state_dict())

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `official_state`; raises `WeightsError` naming what differs."""
        load_strictly(self, state, "the built-in encoder")
