"""`bench run --save-maps`: the maps that the metrics saw, sheets of pictures, and what INP-Former explains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, bench
from methodkit import make_context
from PIL import Image

from inpbench.harness.errors import UsageError
from inpbench.harness.kept_maps import MapsOf, parse_maps_of
from inpbench.harness.scoring import image_scores


def test_choice_of_images() -> None:
    scores, labels = [0.9, 0.1, 0.5, 0.2, 0.8, 0.3], [1, 1, 0, 0, 1, 0]
    chosen = MapsOf(others=1).choose(scores, labels)
    assert list(chosen)[:4] == [1, 2, 0, 3], "lowest anomalous, highest normal, highest anomalous, lowest normal"
    assert len(chosen) == 5 and chosen[1].startswith("worst") and chosen[0].startswith("best")
    assert len(MapsOf(others=99).choose(scores, labels)) == 6
    assert MapsOf(others=0).choose([0.5], [1]) == {0: "worst: lowest anomalous"}


@pytest.mark.parametrize("text", ["", "best,best2", "3,4", "-1"])
def test_bad_choices(text: str) -> None:
    with pytest.raises(UsageError, match="--maps-of"):
        parse_maps_of(text)


def test_maps_are_what_was_scored_and_change_no_identity(tmp_path: Path) -> None:
    run = ["run", "-m", "raw_pixel", "--preset", "smoke", *TINY, "--display", "none"]
    assert bench(*run, "--results", tmp_path / "plain").code == 0
    outcome = bench(*run, "--results", tmp_path / "maps", "--save-maps", "--maps-of", "worst,2")
    assert outcome.code == 0, outcome.err
    plain, kept = (next((tmp_path / name).glob("*/*/*/*.json")) for name in ("plain", "maps"))
    assert plain.name == kept.name
    a, b = (json.loads(path.read_text()) for path in (plain, kept))
    assert a["metrics"] == b["metrics"] and a["identity"] == b["identity"]
    folder = kept.with_suffix(".maps")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{c}.{s}" for c in ("weave", "nut") for s in ("npy", "masks.npy", "inputs.npy", "json", "png")
    )
    maps, facts = np.load(folder / "nut.npy"), json.loads((folder / "nut.json").read_text())
    assert maps.shape == (len(facts["image"]), 256, 256) and maps.dtype == np.float32
    np.testing.assert_allclose(image_scores(torch.from_numpy(maps)).numpy(), facts["score"], rtol=1e-6)
    sheet = Image.open(folder / "nut.png")
    assert sheet.mode == "RGB" and sheet.width >= 640 and sheet.height > 4 * 168
    again = bench(*run[:-2], "--results", tmp_path / "plain", "--save-maps", "--display", "plain")
    assert again.code == 0 and "--force" in again.err and not plain.with_suffix(".maps").exists()


def test_inp_former_explains_its_prototypes() -> None:
    """The attention of the fourth block, computed apart from the hook; explaining changes no map."""
    from inpbench.harness.registry import METHODS, resolve

    info = METHODS.get("inp_former")
    params = info.params(encoder="builtin", input_size=(56, 84), crop_size=(56, 84), inp_num=3)
    method = resolve(info.target)(params, make_context(dtype=torch.float32))
    images = torch.randn(2, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    before = method.predict(images).amap
    parts = method.explain(images)
    assert torch.equal(before, method.predict(images).amap)
    h, w = before.shape[-2:]
    assert parts["prototype"].shape == (2, 3, h, w) and parts["distance"].shape == (2, 1, h, w)
    with torch.no_grad():
        features = method.encode(images)
        prototypes = method.network.extract(features.fused)
        hidden = method.network.bottleneck[0](features.fused)
        for block in method.network.decoder[:3]:
            hidden = block(hidden, prototypes)
        block = method.network.decoder[3]
        attention = block.attn.attend(block.norm1(hidden), block.norm1(prototypes))[1].mean(1)  # (B, N, M)
    for m in range(3):
        torch.testing.assert_close(parts["prototype"][:, m].flatten(1), attention[..., m])
    torch.testing.assert_close(parts["distance"][:, 0], method.zero_shot_map(images))


def test_pictures_of_maps_that_are_not_kept_are_refused(tmp_path: Path) -> None:
    refused = bench("run", "-m", "raw_pixel", *TINY, "--maps-of", "best,2", "--results", tmp_path)
    assert refused.code == 2 and "--save-maps --maps-of" in refused.err
