"""Golden tables of InCTRL and WinCLIP (misc.json) and their input pipelines (preprocess.*)."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
from golden import Case
from golden_arrays import close
from golden_clip import Strided
from golden_images import normalised
from PIL import Image
from torch import Tensor

from inpbench.datasets.elpv import split_normals
from inpbench.harness.images import open_image
from inpbench.harness.metrics.image import ImageMetrics
from inpbench.methods.clip import tokenize
from inpbench.methods.clip_prompts import inctrl_prompts
from inpbench.methods.inctrl import InCtrlParams
from inpbench.methods.inctrl.model import Encoded, batch_residuals, focal_terms
from inpbench.methods.inctrl.sampler import balanced_batches
from inpbench.methods.winclip import WinClipParams
from inpbench.methods.winclip.official import grid_f1max, reference_choice, tile_boxes, trapezoid_aupr

EXACT = 1e-12
FLOAT32 = 1e-6  # the goldens are float32 values


# --- misc.json ------------------------------------------------------------------------------------------------------


def _sampler(entry: dict[str, Any]) -> None:
    normal = list(range(entry["n_normal"]))
    anomalous = list(range(entry["n_normal"], entry["n_normal"] + entry["n_outlier"]))
    stream = balanced_batches(normal, anomalous, entry["batch_size"], entry["np_seed"])
    for epoch in entry["batches"]:
        assert list(islice(stream, entry["steps_per_epoch"])) == epoch


def _focal(entry: dict[str, Any]) -> None:
    terms = focal_terms(torch.tensor(entry["logits"], dtype=torch.float64), torch.tensor(entry["targets"]), 2.0)
    close("focal terms", terms, entry["per_item"], EXACT)
    close("focal mean", terms.mean(), entry["mean"], EXACT)


def _metrics(entry: dict[str, Any]) -> None:
    scores, labels = np.asarray(entry["scores"]), np.asarray(entry["labels"])
    metrics = ImageMetrics()
    metrics.update(torch.from_numpy(scores), torch.from_numpy(labels))
    values = metrics.compute().values
    found = {
        "inctrl": {"auroc": values["i_auroc"], "aupr_average_precision": values["i_ap"]},
        "winclip": {
            "auroc": values["i_auroc"],
            "aupr_trapezoid": trapezoid_aupr(scores, labels),
            "f1_max_grid": grid_f1max(scores, labels),
        },
    }
    for which, expected in found.items():
        assert set(entry[which]) == set(expected)
        for name, value in expected.items():
            close(f"{which} {name}", value, entry[which][name], EXACT)


def _reference_choice(entry: dict[str, Any]) -> None:
    assert reference_choice(entry["n_files"], entry["shot"]) == entry["indices"]


def _split(entry: dict[str, Any]) -> None:
    train, test = split_normals([str(i) for i in range(entry["n"])])
    assert train == [str(i) for i in entry["train"]] and test == [str(i) for i in entry["test"]]


def _prompts(entry: dict[str, Any]) -> None:
    for kind, prompts in zip(("normal", "anomaly"), inctrl_prompts(entry["name"]), strict=True):
        assert len(prompts) == entry[f"n_{kind}"]
        assert (prompts[0], prompts[-1]) == (entry[f"first_{kind}"], entry[f"last_{kind}"])
        ids = tokenize(prompts, 77)
        for row, key in ((ids[0], f"first_{kind}_ids"), (ids[-1], f"last_{kind}_ids")):
            assert row[row != 0].tolist() == entry[key]
        assert int(ids.sum()) == entry[f"ids_sum_{kind}"]


def _scramble(entry: dict[str, Any]) -> None:
    """Which blocks meet, read off distances that are 0 for one block and 1/2 for all others."""
    batch, shots, depth = entry["batch"], entry["shot"], len(entry["query_block"][0])
    same, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])

    def blocks(count: int, which: int | None) -> Encoded:
        """`count` images of one token: all alike, or the block `which` alone."""
        layers = torch.empty(depth * count, 1, 2)
        layers[:] = same if which is None else other
        if which is not None:
            layers[which] = same
        return Encoded(layers.reshape(depth, count, 1, 2), torch.arange(count).float()[:, None])

    def slots(queries: Encoded, prompts: Encoded) -> Tensor:
        return batch_residuals(queries, prompts, official=True)[0].slots[:, :, 0] < 0.25

    query_block = torch.full((batch, depth), -1)
    for block in range(depth * batch):
        query_block[slots(blocks(batch, block), blocks(shots * batch, None))] = block
    assert query_block.tolist() == entry["query_block"]
    met: list[list[list[int]]] = [[[] for _ in range(depth)] for _ in range(batch)]
    for block in range(depth * shots * batch):
        for row, slot in slots(blocks(batch, None), blocks(shots * batch, block)).nonzero().tolist():
            met[row][slot].append(block)
    assert met == entry["prompt_blocks"]
    pooled = batch_residuals(blocks(batch, None), blocks(shots * batch, None), official=True)[1]
    assert pooled[:, :, 0].long().tolist() == entry["cls_prompt"]


TABLES: dict[str, Callable[[dict[str, Any]], None]] = {
    "sampler": _sampler,
    "focal": _focal,
    "metrics": _metrics,
    "winclip_reference_choice": _reference_choice,
    "train_test_split": _split,
    "prompts": _prompts,
    "scramble": _scramble,
}


def check_tables(case: Case) -> None:
    """misc: every entry of every table; an unknown table fails."""
    tables = {name: entries for name, entries in case.config.items() if isinstance(entries, list)}
    assert tables, f"{case.name} holds no table"
    unknown = set(tables) - set(TABLES)
    assert not unknown, f"{case.name}: tables that this runner does not know: {sorted(unknown)}"
    for name, entries in tables.items():
        for entry in entries:
            TABLES[name](entry)


# --- preprocess -----------------------------------------------------------------------------------------------------


def _picture(entry: dict[str, Any]) -> Image.Image:
    """The formula image of an entry in its mode (`image_rule`)."""
    state, shape = np.random.RandomState(7000 + entry["index"]), (entry["height"], entry["width"])
    mode = entry["mode"]
    channels = {"RGB": (3,), "RGBA": (4,), "L": (), "P": ()}
    assert mode in channels, f"golden image of unknown mode {mode}"
    values = state.randint(0, 256, (*shape, *channels[mode])).astype(np.uint8)
    if mode != "P":
        return Image.fromarray(values)
    image = Image.frombytes("P", shape[::-1], values.tobytes())
    image.putpalette(state.randint(0, 256, 768).astype(np.uint8).tobytes())
    return image


def _from_file(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return open_image("golden.png", "golden.png", buffer.getvalue())  # type: ignore[arg-type]


def check_preprocess(case: Case) -> None:
    """preprocess: InCTRL's pixels, and WinCLIP's of every tile; the tables of boxes."""
    compare = Strided(case)
    inctrl, winclip = InCtrlParams().preprocess, WinClipParams(variant="mala_lab").preprocess
    for entry in case.config["images"]:
        image, index = _picture(entry), entry["index"]
        compare.check(f"inctrl_{index}", normalised(image, inctrl), FLOAT32)
        boxes = tile_boxes((entry["height"], entry["width"]))
        assert len(boxes) == entry["n_tiles"] and entry["winclip_is_list"] == (entry["height"] != entry["width"])
        for number, box in enumerate(boxes):
            tile = _from_file(image)
            tile = tile.crop(box) if entry["winclip_is_list"] else tile
            compare.check(f"winclip_{index}_tile{number}", normalised(tile, winclip), FLOAT32)
    for entry in case.config["tile_boxes"]:
        boxes = [list(box) for box in tile_boxes((entry["height"], entry["width"]))]
        assert boxes == entry["boxes_left_top_right_bottom"], entry
    compare.finish()
