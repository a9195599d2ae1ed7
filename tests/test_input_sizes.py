"""Rectangles and high resolution: the official code scrambles or refuses them, here every step keeps (height, width) apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, bench
from methodkit import make_context
from PIL import Image

from inpbench.harness.registry import METHODS, resolve
from inpbench.harness.scoring import smooth_maps


@pytest.mark.parametrize("name", ["inp_former", "dinomaly"])
@pytest.mark.parametrize("size", [(252, 756), (756, 252), (560, 560)], ids=str)
def test_a_change_of_the_image_appears_where_it_was_made(name: str, size: tuple[int, int]) -> None:
    info = METHODS.get(name)
    params = info.params(encoder="builtin", input_size=size, crop_size=size)
    method = resolve(info.target)(params, make_context(dtype=torch.float32))
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 0.1
    changed = images.clone()
    top, left = size[0] // 4, 5 * size[1] // 8
    changed[..., top : top + 56, left : left + 56] += 2.0
    before, after = (method.predict(batch).amap for batch in (images, changed))
    assert tuple(before.shape[-2:]) == params.grid and params.grid[0] * size[1] == params.grid[1] * size[0]
    difference = (smooth_maps(after, size) - smooth_maps(before, size)).abs()[0]
    y, x = divmod(int(difference.argmax()), 256)
    assert abs((y + 0.5) / 256 * size[0] - top - 28) < 56 and abs((x + 0.5) / 256 * size[1] - left - 28) < 56


@pytest.mark.parametrize("name", ["inp_former", "dinomaly"])
def test_a_rectangle_from_the_command_line_to_predictions(name: str, tmp_path: Path) -> None:
    sets = {"input_size": "252x756", "crop_size": "252x756", "steps": 2, "batch_size": 2, "warmup": 1}
    changes = [word for key, value in sets.items() for word in ("--set", f"{name}.{key}={value}")]
    one = [word if word != "weave,nut" else "weave" for word in TINY]
    run = bench("run", "-m", name, "--encoder", "builtin", *one, *changes, "--limit", 1, "--results", tmp_path, "--display", "none")
    assert run.code == 0, run.err
    (path,) = tmp_path.glob("*/*/*/*.json")
    record = json.loads(path.read_text())
    assert record["identity"]["input"]["crop"] == [252, 756] and record["metrics"]["mean"]["p_auroc"] is not None
    picture = Image.new("RGB", (300, 100), (90, 120, 60))
    picture.save(tmp_path / "wide.png")
    predicted = bench(
        "predict", record["id"], "--images", tmp_path / "wide.png", "--out", tmp_path / "out", "--results", tmp_path, "--json"
    )
    assert predicted.code == 0, predicted.err
    (row,) = predicted.json()["images"]
    assert (row["height"], row["width"]) == np.load(tmp_path / "out" / row["map"]).shape == (100, 300)
