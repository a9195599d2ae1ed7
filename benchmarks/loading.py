"""Speed of loading: decoding every image for every batch against the pixel cache, in one run.

    python -P benchmarks/loading.py [--device cpu] [--size 392] [--batch 16] [--steps 20]

Images are 1024 x 1024 JPEG files of a data set folder; both sides end with normalised tensors on the device. The limit is the rate
at which memory is copied: a batch cannot be had faster than its bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from inpbench.harness.api import Preprocess
from inpbench.harness.loading import TrainingImages
from inpbench.harness.manifest import open_manifest
from inpbench.harness.registry import DATASETS

sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
from setting import Photographs, Setting, add_options, emit, sync


def pace(images: TrainingImages, setting: Setting, steps: int) -> float:
    """Images a second."""
    count = len(images)
    images.batch(range(min(setting.batch, count)))
    sync(setting.device)
    start = setting.now()
    for step in range(steps):
        images.batch([(step * setting.batch + i) % count for i in range(setting.batch)])
    sync(setting.device)
    return steps * setting.batch / (setting.now() - start)


def copy_rate(setting: Setting) -> float:
    """Bytes a second that one `copy_` moves."""
    source = torch.empty(1 << 27, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    times = []
    for _ in range(5):
        start = setting.now()
        target.copy_(source)
        times.append(setting.now() - start)
    return source.numel() / min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    setting = add_options(parser, "loading", steps_cpu=6, steps_cuda=20)
    count = 4 * setting.batch
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INPBENCH_CACHE"] = str(Path(folder) / "cache")
        root = Path(folder) / "data"
        normal = root / "noise" / "train" / "good"
        normal.mkdir(parents=True)
        (root / "noise" / "test" / "good").mkdir(parents=True)
        photographs = Photographs(setting, count, decode_each_time=True)
        for index, content in enumerate(photographs.files):
            (normal / f"{index:04d}.jpg").write_bytes(content)
        (root / "noise" / "test" / "good" / "0.jpg").write_bytes(photographs.files[0])
        info = DATASETS.get("folder")
        side = (setting.size, setting.size)
        paces = {}
        filling = 0.0
        for cache in (False, True):
            manifest = open_manifest(info, info.params(), root)
            begin = setting.now()
            images = TrainingImages(manifest, ["noise"], Preprocess(resize=side, crop=side), device=setting.device, cache=cache)
            filling = (setting.now() - begin) / count * 1e3
            paces[cache] = pace(images, setting, setting.steps)
    limit = copy_rate(setting) / (3 * setting.size**2 * 5)  # a byte read and four written for each value
    lines = [
        "| loading | images/s | of the copying rate |",
        "| --- | --- | --- |",
        f"| decoded for each batch | {paces[False]:.1f} | {100 * paces[False] / limit:.1f} % |",
        f"| pixel cache | {paces[True]:.1f} | {100 * paces[True] / limit:.1f} % |",
    ]
    notes = [f"* {paces[True] / paces[False]:.1f} x; the cache is filled once at {filling:.1f} ms an image."]
    emit(setting, "Loading, decoded for each batch against the pixel cache", lines, notes)


if __name__ == "__main__":
    main()
