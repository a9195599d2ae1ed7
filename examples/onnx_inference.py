"""Inference with an exported model: onnxruntime, numpy and PIL, nothing else. Copy this file wherever you need it.

    bench export RECORD --format onnx --out model.onnx
    python onnx_inference.py model.onnx part1.png part2.png --out maps

Prints one JSON line an image: its score (higher is more anomalous) and the range of its map; with --out, writes the raw maps
(256 x 256 float32, `0000_<name>.npy`, ...). The model says how pictures are
resized, cropped and normalised; the scores are the bench's.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def prepare(image: Image.Image, how: dict) -> np.ndarray:
    """RGB picture -> (3, H, W) float32: resize (antialiased), centre crop, [0, 1], and normalise where the graph does not."""
    height, width = how["resize"]
    if how["shorter_side"]:
        side = height
        tall = image.height > image.width
        height, width = (int(side * image.height / image.width), side) if tall else (side, int(side * image.width / image.height))
    method = Image.Resampling.BICUBIC if how["interpolation"] == "bicubic" else Image.Resampling.BILINEAR
    pixels = np.asarray(image.resize((width, height), method))
    rows, columns = how["crop"]
    top, left = round((height - rows) / 2.0), round((width - columns) / 2.0)
    unit = pixels[top : top + rows, left : left + columns].transpose(2, 0, 1).astype(np.float32) / 255
    if how["pixels"] == "normalised":
        unit = (unit - np.float32(how["mean"])[:, None, None]) / np.float32(how["std"])[:, None, None]
    return np.ascontiguousarray(unit, dtype=np.float32)


def main() -> None:
    """Score the images that the command line names."""
    parser = argparse.ArgumentParser(description="Anomaly maps and scores from an exported ONNX file.")
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="folder for the raw maps")
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(str(options.model), providers=onnxruntime.get_available_providers())
    how = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(options.images), options.batch):
        files = options.images[start : start + options.batch]
        batch = np.stack([prepare(Image.open(file).convert("RGB"), how) for file in files])
        maps, scores = session.run(["anomaly_map", "score"], {"image": batch})
        for number, (file, amap, score) in enumerate(zip(files, maps, scores, strict=True), start):
            if options.out:
                np.save(options.out / f"{number:04d}_{file.stem}.npy", amap)
            row = {"image": str(file), "score": float(score), "map_min": float(amap.min()), "map_max": float(amap.max())}
            print(json.dumps(row))


if __name__ == "__main__":
    sys.exit(main())
