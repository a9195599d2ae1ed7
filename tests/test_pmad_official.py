"""PMAD's official files: two in a folder, told apart by their tensors' names; what does not fit is refused in words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, bench
from methodkit import make_context
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness import params as parameters
from inpbench.harness.api import Sample
from inpbench.harness.errors import UsageError, WeightsError
from inpbench.harness.weights import WeightStore, read_tensors
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.pmad import INFO, extractor, method
from inpbench.methods.pmad.dvae import DvaeEncoder
from inpbench.methods.pmad.flow import ProtoFlow
from inpbench.methods.pmad.model import ReconstructionModel
from inpbench.methods.pmad.params import VQKD, PmadParams
from inpbench.methods.pmad.transformer import TrunkShape

CHANGES: dict[str, Any] = {
    "tokenizer": "vqkd",
    "start": "scratch",
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "epochs": 1,
    "warmup_epochs": 0,
    "dynamic_from": 5,
    "batch_size": 2,
    "flow_blocks": 2,
    "flow_epochs": 1,
    "flow_passes": 1,
    "flow_batch": 2,
    "flow_augment": False,
    "position_dim": 8,
}


class Cheap(nn.Module):
    """Feature maps of the right grids in a fraction of a real extractor's time, with tensors of its own."""

    channels = 6

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)), requires_grad=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        mixed = torch.einsum("bchw,dc->bdhw", images, self.mixing)
        return [F.avg_pool2d(mixed, 8), F.avg_pool2d(mixed * mixed, 16)]

    def official_state(self) -> dict[str, Tensor]:
        return dict(self.state_dict())

    def load_own(self, state: Mapping[str, Tensor]) -> None:
        load_strictly(self, state, "the extractor")


@pytest.fixture(autouse=True)
def _cheap_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenizer(params: PmadParams, ctx: Any) -> DvaeEncoder:
        ctx.weights.state(VQKD)  # looked for as the real one would be
        torch.manual_seed(3)
        return DvaeEncoder(width=4, blocks=1, vocabulary=16).eval()

    real = method.build_tokenizer
    monkeypatch.setattr(method, "build_tokenizer", lambda p, ctx: (real if p.tokens == "kmeans" else tokenizer)(p, ctx))
    monkeypatch.setattr(method, "build_extractor", lambda name, spec, fine, ctx: Cheap(ctx.seed).to(ctx.dtype).eval())


class Waves:
    """Four waves of one category; implements `harness.api.TrainingSet`."""

    def __init__(self) -> None:
        self.categories = ("mast",)
        self.samples = [Sample(f"mast/{index}.png", "mast", "train", 0) for index in range(4)]

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Sequence[int]) -> Tensor:
        at = torch.arange(224.0)
        return torch.stack([torch.sin((at[:, None] + 0.7 * at + 5.0 * i) / 3.0).expand(3, -1, -1) for i in indices])

    def masks(self, indices: Sequence[int]) -> Tensor:
        return torch.zeros(len(indices), 224, 224, dtype=torch.bool)

    def pixels(self, indices: Sequence[int]) -> Tensor:
        return self.batch(indices).mul(32).add(128).to(torch.uint8)


def made(seed: int = 1, **changes: Any) -> method.Pmad:
    params: PmadParams = parameters.build("pmad", PmadParams, {**CHANGES, **changes})
    return method.Pmad(params, make_context(seed, dtype=torch.float32))


def published(files: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """The files as their authors' scripts write them, with all that stands beside the tensors."""
    folder.mkdir()
    for name, content in files.items():
        beside = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-5}]}, "epoch": 299, "scaler": {"scale": 65536.0}}
        beside["args"] = argparse.Namespace(model="vit_base_patch16_224_8k_vocab", drop_path=0.1)
        torch.save({**content, **(beside if "model" in content else {})}, folder / name)
    return folder


def test_a_model_comes_back_from_its_official_files(tmp_path: Path) -> None:
    first, waves = made(), Waves()
    first.fit(waves)
    folder = published(first.official_files(), tmp_path / "files")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-0.pth", "weights_multi_class.pt"]
    second = made(seed=9)
    second.load_official(WeightStore(None).read_file(folder))
    for one in (first, second):
        one.enter("mast", waves)
    images = waves.batch(range(3)) + torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected, found = first.predict(images), second.predict(images)
    assert torch.equal(expected.amap, found.amap) and found.score is not None and float(found.amap.std()) > 0
    assert (
        first.official_state().keys()
        == read_tensors(folder / "checkpoint-0.pth").keys() | read_tensors(folder / "weights_multi_class.pt").keys()
    )
    with pytest.raises(UsageError, match="normal images of sail"):
        second.enter("sail", None)


def test_what_a_scoring_does_not_use_need_not_be_there() -> None:
    state = made().official_state()
    flow = {key: value for key, value in state.items() if key.startswith(("encoder_state_dict.", "decoder_state_dict."))}
    made(scoring="flow").load_official(flow)
    made(scoring="nearest", seed=4).load_official(state)
    with pytest.raises(WeightsError, match=r"without a reconstruction model"):
        made().load_official(flow)
    with pytest.raises(WeightsError, match=r"has no ProtoFlow"):
        made().load_official({key: value for key, value in state.items() if key not in flow})


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"flow_blocks": 4}, "has 2 blocks, this one 4", "--set pmad.flow_blocks=2"),
        ({"depth": 3}, "width 24, depth 2, 2 heads", "--set pmad.dim=24 --set pmad.depth=2 --set pmad.heads=2"),
        ({"tokenizer": "kmeans", "token_encoder": "builtin", "codes": 4}, "k-means", "--set pmad.tokenizer=vqkd"),
        ({"position_dim": 16}, "subnet.0.weight expected", "same architecture"),
        ({"layer_scale": 0.0}, "unexpected: blocks.0.gamma_1", "same architecture"),
    ],
)
def test_another_model_is_refused_in_words(changes: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(WeightsError, match=message) as refused:
        made(**changes).load_official(made().official_state())
    assert hint in (refused.value.hint or "")


def test_other_tensors_are_refused_in_words() -> None:
    state = made().official_state()
    for key in ("lm_head.bias", "decoder_state_dict.module_list.1.w_perm", "encoder_state_dict.mixing"):
        lacking = {name: value for name, value in state.items() if name != key}
        with pytest.raises(WeightsError, match="missing: " if "mixing" not in key else "no ProtoFlow"):
            made().load_official(lacking)
    with pytest.raises(WeightsError, match="unexpected: pos_embed"):
        made().load_official({**state, "pos_embed": torch.zeros(1, 197, 24)})
    with pytest.raises(WeightsError, match="holds a tokenizer"):
        made().load_official({**state, "quantize.embedding.initted": torch.ones(1)})
    with pytest.raises(UsageError, match="fitted tokens"):
        made(tokenizer="kmeans", token_encoder="builtin", codes=4).official_files()
    with pytest.raises(UsageError, match="learns no tensor"):
        made(scoring="nearest").official_files()


def test_names_are_the_published_ones() -> None:
    """`tests/data` of the specification: one block of each network, and the number of the extractor's entries."""
    model = ReconstructionModel(TrunkShape(dim=24, depth=1, heads=2), 10).state_dict()
    block = ("gamma_1", "gamma_2", "norm1.weight", "attn.q_bias", "attn.v_bias", "attn.qkv.weight", "mlp.fc2.bias")
    outside = ("mask_token", "rel_pos_bias.relative_position_bias_table", "rel_pos_bias.relative_position_index", "lm_head.bias")
    assert {*(f"blocks.0.{name}" for name in block), *outside} <= model.keys() and len(model) == 25
    flow = {key: tuple(value.shape) for key, value in ProtoFlow(272, 128, 1).state_dict().items()}
    assert flow["module_list.0.subnet.0.weight"] == (528, 264) and flow["module_list.0.w_perm_inv"] == (272, 272) and len(flow) == 8
    network = extractor.EfficientNet()
    own = network.official_state()
    assert len(own) == 978
    with pytest.raises(WeightsError, match=r"unexpected: classifier\.weight"):
        network.load_own({**own, "classifier.weight": torch.zeros(1)})


# --- from the command line --------------------------------------------------------------------------------------------


def cell(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*/*/*/*.json")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


SETS = [item for key, value in CHANGES.items() for item in ("--set", f"pmad.{key}={str(value).lower()}")]
RUN = ["run", "-m", "pmad", *SETS, *TINY]


def test_runs_export_test_and_predict(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench(*RUN, "--weights", "random", "--results", results).code == 0
    own = cell(results)
    exported = bench("export", own["id"], "--out", tmp_path / "files", "--results", results)
    assert exported.code == 0, exported.err
    monkeypatch.setattr(method.Pmad, "fit", lambda *_: pytest.fail("trained"))
    tokenizer = tmp_path / "vit_tokenizer.pth"
    torch.save({"w": torch.zeros(1)}, tokenizer)
    given = ["--checkpoint", tmp_path / "files", "--weights", tokenizer]
    tested = bench(*RUN, *given, "--results", tmp_path / "official")
    assert tested.code == 0, tested.err
    official = cell(tmp_path / "official")
    assert official["metrics"]["mean"] == own["metrics"]["mean"]
    assert official["identity"]["weights"]["tf_efficientnet_b6"] == "in the checkpoint"
    assert official["identity"]["weights"]["vqkd_clip"].startswith("sha256:"), "no checkpoint holds the tokenizer"
    assert official["marks"] == ["told the category of each test image", "a checkpoint: what it was trained on is its user's word"]

    photos = tmp_path / "photos"
    photos.mkdir()
    from PIL import Image

    for index in range(2):
        Image.effect_noise((64, 64), 40.0 + index).convert("RGB").save(photos / f"{index}.png")
    predict = ["predict", "-m", "pmad", *SETS, "--images", photos, "--category", "nut", "--out"]
    alone = bench(*predict, tmp_path / "out", *given)
    assert alone.code == 2 and "--normal DIR" in alone.err
    outcome = bench(*predict, tmp_path / "out", *given, "--normal", photos)
    assert outcome.code == 0, outcome.err
    nothing = bench(*predict, tmp_path / "other", "--checkpoint", tmp_path / "files", "--normal", photos)
    assert nothing.code == 3 and "vqkd_clip are missing" in nothing.err


def test_a_model_of_one_kind_is_tested_on_the_other(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crossed = [*RUN, "--weights", "random", "--setting", "cross_class", "--results"]
    assert bench(*crossed, results).code == 0
    own = cell(results)
    textures = own["identity"]["groups"]["textures"]
    exported = bench("export", own["id"], "--model", "objects", "--out", tmp_path / "files", "--results", results)
    assert exported.code == 0, exported.err
    monkeypatch.setattr(method.Pmad, "fit", lambda *_: pytest.fail("trained"))
    both = bench(*crossed, tmp_path / "both", "--checkpoint", tmp_path / "files")
    assert both.code == 2 and f"--categories {textures[0]}" in both.err
    tested = bench(*crossed, tmp_path / "one", "--checkpoint", tmp_path / "files", "--categories", ",".join(textures))
    assert tested.code == 0, tested.err
    official = cell(tmp_path / "one")
    assert official["identity"]["groups"] == {"objects": [], "textures": textures}
    assert all(official["metrics"]["categories"][name] == own["metrics"]["categories"][name] for name in textures)


def test_only_files_beside_a_checkpoint_are_looked_for(tmp_path: Path) -> None:
    from inpbench.harness.weights import BesideCheckpoint

    beside = BesideCheckpoint(WeightStore(None))
    specs = {spec.name: spec for spec in INFO.weights(PmadParams())}
    assert beside.identity(specs["beit_base_16_pt22k"]) == "in the checkpoint" and beside.state(specs["tf_efficientnet_b6"]) is None
    with pytest.raises(WeightsError, match="vqkd_clip are missing"):
        beside.identity(specs["vqkd_clip"])
    assert beside.identity(replace(VQKD, source="builtin")) == "builtin:v1"
