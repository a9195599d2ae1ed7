"""DALL-E's discrete VAE as a tokenizer: a convolutional encoder from 112 x 112 pixels to 14 x 14 logits; id = argmax.

    block(x) = identity path + gain * (ReLU, conv) x 4,   gain = 1 / (4 blocks a group)^2;  2 x 2 max pool after groups 1 to 3
The decoder is not used by PMAD; it is here so that both official halves can be read and checked.
The published `.pkl` files are pickled programs and are never loaded: they are converted once, by who trusts them (see `params`).
Known deviation: on CUDA the originals convolve in half precision, here in the run's own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.methods.checkpoint import load_strictly

GROUPS = 4
_OFFSET = 0.1  # pixels [0, 1] are squeezed into [0.1, 0.9]


def map_pixels(images: Tensor) -> Tensor:
    """[0, 1] -> [0.1, 0.9], what the encoder was trained on."""
    return (1.0 - 2.0 * _OFFSET) * images + _OFFSET


class _Conv(nn.Module):
    """Stride 1, zero padding that keeps the size; keys `w` and `b`."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(fan_out, fan_in, kernel, kernel) / (fan_in * kernel * kernel) ** 0.5)
        self.b = nn.Parameter(torch.zeros(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return F.conv2d(x, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


class _Block(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        hidden = fan_out // 4
        self.gain = gain
        self.id_path = _Conv(fan_in, fan_out, 1) if fan_in != fan_out else nn.Identity()
        widths = (fan_in, hidden, hidden, hidden, fan_out)
        self.res_path = nn.Sequential()
        for index, kernel in enumerate(kernels):
            self.res_path.add_module(f"relu_{index + 1}", nn.ReLU())
            self.res_path.add_module(f"conv_{index + 1}", _Conv(widths[index], widths[index + 1], kernel))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        output: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return output


def _network(
    first: nn.Module,
    start: int,
    widths: tuple[int, ...],
    blocks: int,
    kernels: tuple[int, ...],
    between: nn.Module,
    last: nn.Module,
) -> nn.Sequential:
    """Input convolution, groups with `between` after all but the last, ReLU and output convolution."""
    network = nn.Sequential()
    network.add_module("input", first)
    gain = 1.0 / (GROUPS * blocks) ** 2
    for number, width in enumerate(widths, start=1):
        group = nn.Sequential()
        for block in range(1, blocks + 1):
            group.add_module(f"block_{block}", _Block(start if block == 1 else width, width, kernels, gain))
        if number < GROUPS:
            group.add_module("resize", between)
        network.add_module(f"group_{number}", group)
        start = width
    output = nn.Sequential()
    output.add_module("relu", nn.ReLU())
    output.add_module("conv", last)
    network.add_module("output", output)
    return network


class DvaeEncoder(nn.Module):
    """Images to ids. width: channels of the first group; blocks: of a group."""

    def __init__(self, width: int = 256, blocks: int = 2, vocabulary: int = 8192) -> None:
        super().__init__()
        self.vocabulary, self.input_size = vocabulary, 112
        widths = (width, 2 * width, 4 * width, 8 * width)
        first, last = _Conv(3, width, 7), _Conv(8 * width, vocabulary, 1)
        self.blocks = _network(first, width, widths, blocks, (3, 3, 3, 1), nn.MaxPool2d(2), last)

    def logits(self, mapped: Tensor) -> Tensor:
        """Pixels after `map_pixels` (B, 3, H, W) -> logits (B, V, H / 8, W / 8)."""
        logits: Tensor = self.blocks(mapped)
        return logits

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 112, 112) in [0, 1] -> ids (B, 196) int64, row by row."""
        return self.logits(map_pixels(images)).argmax(dim=1).flatten(1)

    def official_state(self) -> dict[str, Tensor]:
        """The tensors under their official names."""
        return dict(self.state_dict())

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load the encoder's tensors; raises `WeightsError` naming what differs."""
        load_strictly(self, state, "the dVAE encoder")


class DvaeDecoder(nn.Module):
    """One-hot ids (B, V, h, w) to image statistics (B, 6, 8 h, 8 w)."""

    def __init__(self, width: int = 256, blocks: int = 2, vocabulary: int = 8192, start: int = 128) -> None:
        super().__init__()
        widths = (8 * width, 4 * width, 2 * width, width)
        between = nn.Upsample(scale_factor=2, mode="nearest")
        first, last = _Conv(vocabulary, start, 1), _Conv(width, 6, 1)
        self.blocks = _network(first, start, widths, blocks, (1, 3, 3, 3), between, last)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, V, h, w) -> (B, 6, 8 h, 8 w)."""
        output: Tensor = self.blocks(codes)
        return output

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load the decoder's tensors; raises `WeightsError` naming what differs."""
        load_strictly(self, state, "the dVAE decoder")
