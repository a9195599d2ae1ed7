"""Speed of training: the reference engine against the fast one, in one run on the same machine.

    python -P benchmarks/training.py [--device cuda] [--preset paper] [--size 392] [--batch 16] [--steps 60]

Both sides train from synthetic photographs of 1024 x 1024 pixels held as JPEG in memory. The reference decodes and resizes them for
every batch (four threads, one batch ahead, as the originals' loader), runs the encoder in float32 and waits for each loss. The fast
engine pays for its feature cache once: the table shows its rate with and without, for the epochs of a full training. Operations are
counted by torch's formulas; the limit is what they take at the matrix rate measured in the same run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inpbench.methods.features import FeatureSource
from inpbench.methods.fusion import is_partition
from inpbench.methods.training import BatchOrder, Trainer

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
from setting import Photographs, Setting, add_options, build, emit, matrix_rate, operations, peak_gb, sync

EPOCHS, IMAGES = 200, 3629  # MVTec AD


@dataclass
class Measured:
    """One engine's side."""

    rate: float  # images a second, in steps
    fill: float  # seconds an image that the cache costs, once
    flops: float  # operations of a step, an image
    memory: float  # GB at the peak; 0 where it is not known
    tier: str

    def whole(self, count: int, epochs: int) -> float:
        """Seconds of a training of so many images and epochs."""
        return count * (self.fill + epochs / self.rate)


def trainer_of(method: Any, train: Any, setting: Setting) -> tuple[Trainer, FeatureSource, float]:
    """The loop of `method.fit`, step by step, and the seconds an image of its cache."""
    params = method.params
    order = BatchOrder(len(train), params.batch_size, 1)
    sync(setting.device)
    start = setting.now()
    partition = is_partition(params.encoder_groups, len(params.layers))
    source = FeatureSource(train, method.encode, params.batch_size, method.ctx, partition)
    sync(setting.device)
    fill = (setting.now() - start) / len(train) if source.cached else 0.0
    trainer = Trainer(
        module=method.network,
        optimiser=method.optimiser(),
        schedule=method.schedule(10_000),
        loss=lambda indices, step: method.loss(method.decode(source.batch(indices, order.batch(step + 1))), step),
        order=order,
        steps=10_000,
        clip_norm=params.clip_norm,
        ctx=method.ctx,
    )
    method.network.train()
    return trainer, source, fill


def measure(name: str, engine: str, setting: Setting) -> Measured:
    """Train `setting.steps` steps after a warm-up."""
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setting.device)
    method = build(name, engine, setting)
    train = Photographs(setting, setting.batch * (4 if engine == "fast" else 2), decode_each_time=engine == "reference")
    trainer, source, fill = trainer_of(method, train, setting)
    reference = engine == "reference"
    warm = 10 if setting.device.type == "cuda" else 1
    for step in range(warm):
        train.expect(trainer.order.batch(step + 1))
        trainer.step(step)
    sync(setting.device)
    start = setting.now()
    for step in range(warm, warm + setting.steps):
        if reference:
            train.expect(trainer.order.batch(step + 1))
        result = trainer.step(step)
        if reference:
            result.loss.item()
    sync(setting.device)
    rate = setting.steps * setting.batch / (setting.now() - start)
    memory = peak_gb(setting.device)
    flops = operations(lambda: trainer.step(warm + setting.steps), setting) / setting.batch
    return Measured(rate, fill, flops, memory, source.tier)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    setting = add_options(parser, "training", steps_cpu=12, steps_cuda=60)
    peak = {kind: matrix_rate(setting, kind) for kind in setting.kinds}
    fast_kind = setting.kinds[-1]
    lines = [
        "| method | engine | cache | images/s | operations an image | of the matrix rate | 200 epochs of 3,629 images | peak GB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes = []
    for name in setting.methods:
        sides = {engine: measure(name, engine, setting) for engine in ("reference", "fast")}
        for engine, side in sides.items():
            kind = fast_kind if engine == "fast" else torch.float32
            share = side.rate * side.flops / peak[kind]
            lines.append(
                f"| {name} | {engine} | {side.tier} | {side.rate:.1f} | {side.flops / 1e9:.1f} G | {100 * share:.0f} % | "
                f"{side.whole(IMAGES, EPOCHS) / 60:.1f} min | {side.memory:.2f} |"
            )
        slow, fast = sides["reference"], sides["fast"]
        whole = slow.whole(IMAGES, EPOCHS) / fast.whole(IMAGES, EPOCHS)
        notes.append(
            f"* {name}: {fast.rate / slow.rate:.1f} x a step; {whole:.1f} x with the filling of the cache over 200 epochs."
        )
    rates = ", ".join(f"{str(kind).removeprefix('torch.')} {rate / 1e12:.2f} TFLOP/s" for kind, rate in peak.items())
    emit(setting, "Training, reference against fast engine", lines, [*notes, f"* Measured matrix rate: {rates}."])


if __name__ == "__main__":
    main()
