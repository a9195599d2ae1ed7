"""What the tests of the methods share: a tiny encoder, a context, images of stripes, and slow reference pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inpbench.harness.api import Context, Sample, WeightSpec
from inpbench.harness.weights import WeightStore
from inpbench.methods.encoder_table import EncoderEntry

TINY = EncoderEntry(
    name="tiny_vit_small_14",
    kind="vit",
    dim=24,
    depth=4,
    heads=2,
    patch=14,
    native=70,
    target_layers=(0, 1, 3),
    weights=WeightSpec(name="tiny_vit_small_14", file="tiny.pth"),
    registers=4,
    layer_scale=True,
    mask_token=True,
    position_float32=True,
)
GEOMETRY: dict[str, Any] = {  # of a reconstruction method on it
    "encoder": TINY.name,
    "input_size": (56, 70),
    "crop_size": (56, 70),
    "encoder_groups": ((0, 1), (2,)),
    "decoder_groups": ((0, 1), (2, 3)),
    "decoder_depth": 4,
}
SMALL_DECODER = {  # the same as a user types it
    "encoder": TINY.name,
    "input_size": "56x70",
    "crop_size": "56x70",
    "encoder_groups": "0,1;2",
    "decoder_groups": "0,1;2,3",
    "decoder_depth": "4",
}


class NoSnapshots:
    """Snapshots that are never due."""

    def due(self) -> bool:
        return False

    def save(self, state: object) -> None:
        raise AssertionError("never due")

    def load(self) -> None:
        return None


def make_context(
    seed: int = 1, dtype: torch.dtype = torch.float64, engine: Any = "fast", setting: str = "multi_class", snapshots: Any = None
) -> Context:
    """A CPU context with random weights."""
    return Context(
        device=torch.device("cpu"),
        dtype=dtype,
        seed=seed,
        setting=setting,
        weights=WeightStore("random"),
        snapshots=snapshots or NoSnapshots(),
        progress=lambda done, total, text="", **numbers: None,
        engine=engine,
    )


class Stripes:
    """A training set in memory; implements `harness.api.TrainingSet`."""

    categories: Sequence[str] = ("stripes",)

    def __init__(self, size: tuple[int, int], count: int) -> None:
        self.size, self.count = size, count
        self.samples = [Sample(f"{index:03d}.png", "stripes", "train", 0) for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int]) -> Tensor:
        rows = torch.arange(self.size[0])[:, None]
        columns = torch.arange(self.size[1])[None, :]
        return torch.stack([torch.sin((rows + 0.6 * columns + 2.0 * index) / 2.5).expand(3, -1, -1) for index in indices])

    def masks(self, indices: Sequence[int]) -> Tensor:
        return torch.zeros(len(indices), *self.size, dtype=torch.bool)

    def pixels(self, indices: Sequence[int]) -> Tensor:
        return self.batch(indices).mul(32).add(128).clamp(0, 255).to(torch.uint8)


def reference_linear(x: Tensor, state: dict[str, Tensor], key: str) -> Tensor:
    return x @ state[f"{key}.weight"].T + state[f"{key}.bias"]


def reference_norm(x: Tensor, state: dict[str, Tensor], key: str) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-8) * state[f"{key}.weight"] + state[f"{key}.bias"]


def reference_cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())
