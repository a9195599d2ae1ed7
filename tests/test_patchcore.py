"""PatchCore against a slow reference, its encoders, its memory, and a run by the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from commands import TINY, bench
from methodkit import Stripes, make_context
from torch.nn import functional as F

from inpbench.harness.errors import PrerequisiteError, UsageError, WeightsError
from inpbench.harness.scratch import Scratch
from inpbench.methods.encoders import build_encoder
from inpbench.methods.memory_bank import as_vectors
from inpbench.methods.patchcore import INFO, PatchCoreParams, weights_of
from inpbench.methods.patchcore.backbone import ConvBackbone, VitBackbone
from inpbench.methods.patchcore.method import PatchCore

SMALL = {"encoder": "resnet18", "input_size": (64, 64), "crop_size": (64, 64)}


def make(**changes: Any) -> PatchCore:
    return PatchCore(PatchCoreParams(**SMALL | changes), make_context(seed=changes.pop("seed", 1)))


class Train(Stripes):
    """Stripes at 64 pixels in float64, the context's dtype."""

    def __init__(self, count: int) -> None:
        super().__init__((64, 64), count)

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        return super().batch(indices).double()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((count, 3, 64, 64)))


def reference_features(method: PatchCore, image: torch.Tensor) -> np.ndarray:
    """(h * w, D): each layer averaged over 3 x 3 patches, the second enlarged, concatenated."""
    network = method.backbone.network
    with torch.no_grad():
        first, second = network(image[None])
    pool = torch.full((1, 1, 3, 3), 1 / 9, dtype=first.dtype)
    parts = []
    for maps in (first, second):
        pooled = torch.cat([F.conv2d(maps[:, d : d + 1], pool, padding=1) for d in range(maps.shape[1])], dim=1)
        parts.append(F.interpolate(pooled, size=first.shape[-2:], mode="bilinear"))
    joined = torch.cat(parts, dim=1)[0]
    return np.stack([joined[:, i, j].numpy() for i in range(joined.shape[1]) for j in range(joined.shape[2])])


def test_map_and_score_are_those_of_the_paper() -> None:
    method, train, test = make(coreset=0.2, reweight=4), Train(3), images(2)
    train.batch = lambda indices: images(3, seed=9)[list(indices)]  # type: ignore[method-assign]
    method.fit(train)
    prediction = method.predict(test)
    bank = method.bank.numpy()
    assert bank.shape == (round(0.2 * 3 * 64), 128 + 256)
    for number, image in enumerate(test):
        patches = reference_features(method, image)
        table = np.sqrt(((patches[:, None] - bank[None]) ** 2).sum(2))
        np.testing.assert_allclose(prediction.amap[number].numpy().ravel(), table.min(1), rtol=1e-9)
        far = table.min(1).argmax()
        closest = table[far].argmin()
        around = np.sqrt(((bank - bank[closest]) ** 2).sum(1)).argsort()[:4]
        weight = 1 - np.exp(table[far, closest]) / np.exp(table[far, around]).sum()
        assert prediction.score is not None
        assert prediction.score[number].item() == pytest.approx(weight * table.min(1).max(), rel=1e-9)


def test_bank_is_the_greedy_coreset_of_all_patches() -> None:
    method, train = make(coreset=0.1, projection=0), Train(5)
    method.fit(train)
    patches = as_vectors(method.patches(train.batch(range(5)))).numpy()
    start = int(torch.randint(len(patches), (1,), generator=torch.Generator().manual_seed(1)))
    chosen = [start]
    while len(chosen) < 32:
        left = np.sqrt(((patches[:, None] - patches[chosen][None]) ** 2).sum(2)).min(1)
        left[chosen] = -1.0
        chosen.append(int(left.argmax()))
    np.testing.assert_allclose(method.bank.numpy(), patches[chosen], atol=1e-12)


def test_whole_bank_knows_its_training_images() -> None:
    method, train = make(coreset=1.0, reweight=0), Train(3)
    method.fit(train)
    prediction = method.predict(train.batch([1]))
    assert prediction.amap.abs().max() < 1e-6
    assert prediction.score is not None and prediction.score.item() == prediction.amap.max().item()


def test_projection_changes_the_choice_not_the_vectors() -> None:
    one, other, train = make(projection=0), make(projection=8), Train(5)
    one.fit(train)
    other.fit(train)
    assert one.bank.shape == other.bank.shape and not torch.equal(one.bank, other.bank)
    everything = as_vectors(one.patches(train.batch(range(5))))
    assert all((everything == vector).all(1).any() for vector in other.bank)


def test_vectors_in_a_file_give_the_same_bank(tmp_path: Path) -> None:
    train, memory, file = Train(5), make(), make()
    file.ctx.cache_bytes, file.ctx.array = 0, Scratch(tmp_path)
    memory.fit(train)
    file.fit(train)
    assert torch.equal(memory.bank, file.bank)
    file.ctx.array = None
    with pytest.raises(PrerequisiteError, match="320 patch vectors"):
        file.fit(train)


class Holds:
    """Weights that are the given tensors."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(tensors)

    def state(self, spec: object) -> dict[str, torch.Tensor]:
        return self.tensors


def test_published_file_of_the_whole_network_loads() -> None:
    """With its classifier and last stage, and without the counters that files of before 2019 lack."""
    torch.manual_seed(5)
    whole = timm.create_model("resnet18", pretrained=False).double().eval()
    ctx = make_context()
    ctx.weights = Holds({k: v for k, v in whole.state_dict().items() if "num_batches" not in k})  # type: ignore[assignment]
    method = PatchCore(PatchCoreParams(**SMALL), ctx)
    with torch.no_grad():
        expected = whole.forward_intermediates(images(1), indices=[2, 3], intermediates_only=True)
        for found, other in zip(method.backbone(images(1)), expected, strict=True):
            torch.testing.assert_close(found, other)
    ctx.weights = Holds(timm.create_model("resnet34", pretrained=False).state_dict())  # type: ignore[assignment]
    with pytest.raises(WeightsError, match=r"unexpected: layer1\.2"):
        PatchCore(PatchCoreParams(**SMALL), ctx)


def test_stages_come_in_the_order_asked_for() -> None:
    torch.manual_seed(0)
    backbone = ConvBackbone("resnet18", (3, 1)).eval()
    assert [tuple(one.shape[1:]) for one in backbone(images(1).float())] == [(256, 4, 4), (64, 16, 16)]


def test_blocks_of_a_vit_are_normalised() -> None:
    params = PatchCoreParams(encoder="builtin", input_size=(56, 56), crop_size=(56, 56), layers=(2, 9))
    ctx = make_context()
    maps = VitBackbone(params, ctx)(images(1)[:, :, :56, :56])
    tokens = build_encoder("builtin", ctx, (56, 56)).layers(images(1)[:, :, :56, :56], [9])[0][0]
    expected = (tokens - tokens.mean(1, keepdim=True)) / (tokens.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(maps[1][0].permute(1, 2, 0).reshape(16, -1), expected)


def test_state_of_another_encoder_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"expected bank \(M, 384\), found bank \(7, 10\)"):
        make().load_state({"bank": torch.zeros(7, 10)})
    with pytest.raises(WeightsError, match="found nothing"):
        make().load_state({})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "wide_resnet"}, "Did you mean: wide_resnet50_2"),
        ({"encoder": "builtin", "crop_size": (200, 200)}, "multiples of its patch 14"),
        ({"crop_size": (300, 300)}, "at most input_size 256x256"),
        ({"crop_size": (16, 16)}, "at least 32x32"),
        ({"layers": (0,)}, "different numbers from 1 to 4"),
        ({"encoder": "builtin", "layers": (12,)}, "different numbers from 0 to 11"),
        ({"neighbourhood": 2}, "an odd number"),
        ({"coreset": 0.0}, "a share above 0"),
        ({"projection": -1}, "at least 0"),
        ({"reweight": 1}, "at least 2"),
    ],
)
def test_values_that_do_not_go_together(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PatchCoreParams(**changes).check()


def test_each_encoder_names_its_file_and_layers() -> None:
    assert [spec.file for spec in weights_of(PatchCoreParams())] == ["wide_resnet50_2-95faca4d.pth"]
    assert PatchCoreParams().used_layers == (2, 3)
    large = PatchCoreParams(encoder="dinov2reg_vit_large_14")
    assert large.used_layers == (10, 18) and weights_of(large)[0].name == "dinov2reg_vit_large_14"
    assert INFO.presets["paper"] == {}


def test_run_beats_the_yardstick_and_pools_the_shots(tmp_path: Path) -> None:
    run = ["run", *TINY, "--results", tmp_path, "--encoder", "builtin"]
    assert bench(*run, "--methods", "patchcore,raw_pixel", "--preset", "demo").code == 0
    table = bench("leaderboard", "--results", tmp_path, "--json").json()
    found = {row["method"]: row["i_auroc"] for row in table[0]["rows"]}
    assert found["patchcore"] > 0.75 and found["patchcore"] > found["raw_pixel"] + 0.1
    assert bench(*run, "--methods", "patchcore", "--preset", "smoke", "--setting", "few_shot", "--shots", "2").code == 0
