"""Make methods/builtin_encoder.safetensors: the constants of the built-in encoder, from procedural images of nothing in particular.

    python -P scripts/calibrate_builtin_encoder.py        # about a minute on one core

Calibration images are "dead leaves": overlapping ellipses and boxes of random colours, some with stripes or grain, in uneven light.
From the descriptors of their patches: mean; deviation; a weight for each family of features (so that a hundred texture features do
not drown a dozen of colour); principal axes, half whitened; random frequencies and phases. Nothing of the synthetic set enters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from safetensors.torch import save_file

from inpbench.harness.api import IMAGENET_MEAN, IMAGENET_STD
from inpbench.methods.builtin_encoder import CONSTANTS, ORIENTATIONS, BuiltinEncoder

SIDE = 224
IMAGES = 128
DIM = 96
ENERGIES = 2 * ORIENTATIONS * 8  # leading descriptors; those after them are colour and brightness
COLOUR_WEIGHT = 2.0
WHITENING = 1.0  # axes are divided by sqrt(variance + WHITENING * mean variance)
BANDWIDTH = (
    0.5  # of the Gaussian kernel, in deviations of the whitened descriptor: small enough for normal patches to be told apart
)


def dead_leaves(rng: Generator) -> NDArray[np.uint8]:
    """A calibration image (SIDE, SIDE, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    image = np.ones((SIDE, SIDE, 3)) * rng.uniform(0.1, 0.9, 3)
    for _ in range(int(rng.integers(3, 60))):
        radius, centre = rng.uniform(4, 80) * rng.uniform(0.3, 1.0), rng.uniform(-20, SIDE + 20, 2)
        angle, squeeze = rng.uniform(0, np.pi), rng.uniform(0.2, 1.0)
        dy, dx = y - centre[0], x - centre[1]
        along, across = np.cos(angle) * dx + np.sin(angle) * dy, (np.cos(angle) * dy - np.sin(angle) * dx) / squeeze
        round_ = rng.uniform() < 0.5
        distance = (np.hypot(along, across) if round_ else np.maximum(np.abs(along), np.abs(across))) - radius
        paint = rng.uniform(0, 1, 3) * np.ones((SIDE, SIDE, 1))
        if rng.uniform() < 0.5:
            frequency, heading = rng.uniform(0.02, 0.25), rng.uniform(0, np.pi)
            wave = np.sin(2 * np.pi * frequency * (x * np.cos(heading) + y * np.sin(heading)))
            paint = paint * (1.0 + rng.uniform(0.1, 0.6) * wave)[..., None]
        if rng.uniform() < 0.3:
            cell = int(rng.choice([1, 2, 4, 8]))
            grain = rng.standard_normal((SIDE // cell + 1, SIDE // cell + 1)).repeat(cell, 0).repeat(cell, 1)[:SIDE, :SIDE]
            paint = paint * (1.0 + 0.15 * grain[..., None])
        alpha = np.clip(0.5 - distance / rng.uniform(1, 4), 0.0, 1.0)[..., None]
        image = image * (1.0 - alpha) + alpha * paint
    ramp = np.linspace(-1.0, 1.0, SIDE)
    image = image * (1.0 + rng.normal(0, 0.15) * ramp[:, None] + rng.normal(0, 0.15) * ramp)[..., None]
    image = image + rng.uniform(0.003, 0.03) * rng.standard_normal(image.shape)
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def descriptors(images: int) -> torch.Tensor:
    """Descriptors (patches, F) float64 of the calibration images."""
    encoder = BuiltinEncoder((SIDE, SIDE), {"projection": torch.zeros(1, 1)})  # `describe` needs no constants
    rng = np.random.Generator(np.random.PCG64(0))
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    found = []
    for _ in range(images):
        pixels = torch.from_numpy(dead_leaves(rng)).permute(2, 0, 1).float() / 255.0
        found.append(encoder.describe(((pixels - mean) / std).unsqueeze(0))[0].flatten(1).T)
    return torch.cat(found).double()


def constants(found: torch.Tensor, dim: int) -> dict[str, torch.Tensor]:
    """`mean` (F,), `projection` (F, dim) and `phase` (dim,), float32, from descriptors (patches, F)."""
    mean = found.mean(dim=0)
    scale = 1.0 / found.std(dim=0)
    scale[ENERGIES:] *= COLOUR_WEIGHT
    weighted = (found - mean) * scale
    variance, axes = torch.linalg.eigh(weighted.T @ weighted / len(weighted))
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()  # an eigenvector's sign is arbitrary: fix it
    axes = axes / (variance + WHITENING * variance.mean()).sqrt()
    axes = axes / (weighted @ axes).std()
    rng = np.random.Generator(np.random.PCG64(1))
    frequencies = torch.from_numpy(rng.standard_normal((axes.shape[1], dim))) / (BANDWIDTH * axes.shape[1] ** 0.5)
    phase = torch.from_numpy(rng.uniform(0.0, 2.0 * np.pi, dim))
    projection = scale[:, None] * axes @ frequencies
    return {"mean": mean.float(), "projection": projection.float().contiguous(), "phase": phase.float()}


def main() -> None:
    """Calibrate and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "methods" / CONSTANTS)
    args = parser.parse_args()
    save_file(constants(descriptors(args.images), args.dim), args.out)
    print(f"wrote {args.out.name}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
