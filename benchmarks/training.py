"""Speed of training: the reference engine against the fast one, in one run on the same machine.

    python -P benchmarks/training.py [--device cuda] [--preset paper] [--size 392] [--batch 16] [--steps 60]

Both sides train from synthetic photographs of 1024 x 1024 pixels held as JPEG in memory. The reference decodes and resizes them for
every batch (four threads, one batch ahead, as the originals' loader), runs the encoder in float32 and waits for each loss. The fast
engine pays for its feature cache once: the table shows its rate with and without, for the epochs of a full training. On a CPU,
which others may use too, the sides take turns and the best round of each counts. Operations are counted by torch's formulas; the
limit is what they take at the matrix rate measured in the same run. First steps (on CUDA they compile) are shown beside the rates.
"""

from __future__ import annotations

import argparse
import math
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from inpbench.methods.features import FeatureSource
from inpbench.methods.fusion import is_partition
from inpbench.methods.training import BatchOrder, Trainer

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
from setting import Photographs, Setting, add_options, build, emit, matrix_rates, operations, peak_gb, rates_note, sync

EPOCHS, IMAGES = 200, 3629  # MVTec AD


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


class Side:
    """One engine's training, warmed up, measured round by round."""

    def __init__(self, name: str, engine: Literal["reference", "fast"], setting: Setting) -> None:
        self.engine, self.setting = engine, setting
        cuda = setting.device.type == "cuda"
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(setting.device)
        before = setting.now()
        method = build(name, engine, setting)
        self.train = Photographs(setting, setting.batch * (4 if engine == "fast" else 2), decode_each_time=engine == "reference")
        self.trainer, source, self.fill = trainer_of(method, self.train, setting)  # fill: seconds an image of the cache, once
        self.tier = source.tier
        self.seconds = math.inf  # of a step, the best round
        self.next = 0  # step
        self._steps(1)
        self.first = setting.now() - before  # seconds until the first step is done: building, encoding, compiling
        self._steps(9 if cuda else 1)
        self.memory = 0.0
        self.flops = math.nan  # operations of a step, an image

    def _steps(self, count: int) -> float:
        """Seconds of a step, over so many."""
        reference = self.engine == "reference"
        self.train.expect(self.trainer.order.batch(self.next))
        sync(self.setting.device)
        start = self.setting.now()
        for step in range(self.next, self.next + count):
            if reference:
                self.train.expect(self.trainer.order.batch(step + 1))
            result = self.trainer.step(step)
            if reference:
                result.loss.item()
        sync(self.setting.device)
        self.next += count
        return (self.setting.now() - start) / count

    def round(self) -> None:
        """Train on for a round's steps."""
        self.seconds = min(self.seconds, self._steps(max(1, self.setting.steps // self.setting.rounds)))

    def finish(self) -> None:
        """Peak memory, and operations of one step more."""
        self.memory = peak_gb(self.setting.device)
        self.flops = operations(lambda: self.trainer.step(self.next), self.setting) / self.setting.batch

    @property
    def rate(self) -> float:
        """Images a second, in steps."""
        return self.setting.batch / self.seconds

    def whole(self, count: int, epochs: int) -> float:
        """Seconds of a training of so many images and epochs, the filling of the cache included."""
        return count * (self.fill + epochs / self.rate)


@dataclass
class Table:
    """What was measured so far; printed at the end, written after each side, so that a later failure costs nothing earlier."""

    setting: Setting
    peak: dict[torch.dtype, float]
    rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def limit(self, side: Side) -> float:
        """Images a second if every counted operation ran at the measured matrix rate."""
        return self.peak[self.setting.kinds[-1] if side.engine == "fast" else torch.float32] / side.flops

    def add(self, name: str, side: Side) -> None:
        """A row."""
        limit, minutes = self.limit(side), side.whole(IMAGES, EPOCHS) / 60
        self.rows.append(
            f"| {name} | {side.engine} | {side.tier} | {side.rate:.1f} | {side.flops / 1e9:.1f} G | {limit:.1f} | "
            f"{100 * side.rate / limit:.0f} % | {minutes:.1f} min | {side.first:.1f} s | {side.memory:.2f} |"
        )

    def compare(self, name: str, slow: Side, fast: Side) -> None:
        """The ratio, and the highest that is possible."""
        whole = slow.whole(IMAGES, EPOCHS) / fast.whole(IMAGES, EPOCHS)
        alone, both = self.limit(fast) / slow.rate, self.limit(fast) / self.limit(slow)
        self.notes.append(
            f"* {name}: {fast.rate / slow.rate:.2f} x a step; {whole:.2f} x with the filling of the cache over 200 epochs. "
            f"Limits: {alone:.2f} x with the fast engine at the matrix rate, {both:.2f} x with both at it."
        )

    def write(self, show: bool) -> None:
        """To the file of `--out`, and to the terminal."""
        lines = [
            "| method | engine | cache | images/s | operations an image | limit, images/s | of the limit | "
            "200 epochs of 3,629 images | first step after | peak GB |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *self.rows,
        ]
        emit(self.setting, "Training, reference against fast engine", lines, [*self.notes, rates_note(self.peak)], show)


def measure(name: str, setting: Setting, table: Table) -> bool:
    """Both engines of a method; returns whether all went well."""
    sides: dict[str, Side] = {}
    # On a GPU one after the other, each with the whole memory; elsewhere in turns.
    groups = [(engine,) for engine in setting.engines] if setting.device.type == "cuda" else [setting.engines]
    try:
        for engines in groups:
            begun = [Side(name, engine, setting) for engine in engines]
            for _ in range(setting.rounds):
                for side in begun:
                    side.round()
            for side in begun:
                side.finish()
                sides[side.engine] = side
                table.add(name, side)
                del side.trainer
            del begun
            table.write(show=False)
        if len(sides) == 2:
            table.compare(name, sides["reference"], sides["fast"])
    except Exception as error:
        traceback.print_exc()
        table.notes.append(f"* {name}: FAILED with {type(error).__name__}: {str(error).splitlines()[:1]}")
        return False
    return True


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    setting = add_options(parser, "training", steps_cpu=24, steps_cuda=60)
    table = Table(setting, matrix_rates(setting))
    passed = [measure(name, setting, table) for name in setting.methods]
    table.write(show=True)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
