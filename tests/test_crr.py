"""CRR: masks, synthesis, the segmentation network, both stages of training killed and resumed, folders, two-file checkpoints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY, bench
from methodkit import GEOMETRY, Stripes, make_context
from PIL import Image
from torch import Tensor

from inpbench.harness.errors import DataError, UsageError, WeightsError
from inpbench.harness.image_folder import FolderImages
from inpbench.harness.scoring import Scoring, smooth_maps
from inpbench.harness.testing import MemorySnapshots, StoppedError
from inpbench.harness.weights import WeightStore
from inpbench.methods.crr import INFO, CrrParams
from inpbench.methods.crr.augmenters import DRAWS, draw_augmenters
from inpbench.methods.crr.masking import MaskedMlp
from inpbench.methods.crr.method import Crr
from inpbench.methods.crr.perlin import perlin_noise, rotate
from inpbench.methods.crr.segmentation import SegmentationNetwork, disagreement, focal_loss
from inpbench.methods.crr.synthesis import (
    TRIES,
    anomaly_mask,
    blend,
    procedural_texture,
    resize_bilinear,
    shuffle_pieces,
    synthesise,
)
from inpbench.methods.crr.synthetic_images import SyntheticImages, segmentation_target

pytestmark = pytest.mark.usefixtures("tiny_in_table")

PARAMS = CrrParams(
    **GEOMETRY,
    steps=4,
    batch_size=4,
    warmup=1,
    mining_ramp=4,
    segmentation_steps=4,
    segmentation_batch=3,
    segmentation_width=1,
    segmentation_size=(32, 32),
)
TRAIN = Stripes((56, 70), 7)


def crr(snapshots: Any = None, seed: int = 1, **changes: Any) -> Crr:
    return Crr(dataclasses.replace(PARAMS, **changes), make_context(seed, torch.float32, snapshots=snapshots))


# --- the mask -------------------------------------------------------------------------------------------------------


def test_a_mask_keeps_its_share_of_single_elements_and_scales_nothing() -> None:
    mask = MaskedMlp(8, 0.0, 0.4)
    mask.fc1 = torch.nn.Identity()  # type: ignore[assignment]
    mask.act = mask.fc2 = torch.nn.Identity()  # type: ignore[assignment]
    kept = mask(torch.full((50, 20, 8), 3.0))
    assert set(kept.unique().tolist()) == {0.0, 3.0}
    assert abs(float((kept > 0).float().mean()) - 0.6) < 0.02
    assert not torch.equal(mask.eval()(torch.ones(1, 20, 8)), mask(torch.ones(1, 20, 8))), "drawn anew, in eval mode, too"


@pytest.mark.parametrize(("policy", "values"), [("official", {0.0, 1.0}), ("expected", {0.6}), ("off", {1.0})])
def test_test_masks_do_not_depend_on_the_batch(policy: Any, values: set[float]) -> None:
    method, images = crr(mask_at_test=policy), torch.randn(3, 3, 56, 70)
    assert {round(float(value), 6) for value in method.mask.frozen.unique()} == values  # type: ignore[union-attr]
    together = method.predict(images).amap
    assert torch.equal(together, method.predict(images).amap)
    torch.testing.assert_close(together[2:], method.predict(images[2:]).amap)
    other = crr(mask_at_test=policy, mask_seed=2)
    other.load_state(method.state())
    assert torch.equal(other.predict(images).amap, together) == (policy != "official")


# --- synthesis ------------------------------------------------------------------------------------------------------


def test_perlin_noise_is_zero_at_the_corners_of_its_cells() -> None:
    noise = perlin_noise((64, 32), np.random.default_rng(0).random((5, 3)))
    assert np.abs(noise[::16, ::16]).max() < 1e-12 and np.abs(noise).max() > 0.3


def test_quarter_turns_are_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    assert np.array_equal(rotate(image, 90.0), np.rot90(image, -1)), "clockwise"
    assert np.array_equal(rotate(image.astype(np.float64)[..., 0], 180.0), image[::-1, ::-1, 0])
    assert np.array_equal(rotate(image, 0.0), image)


def test_the_anomaly_stays_in_the_foreground_and_the_rest_is_untouched() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)  # no multiples of 32
    foreground = np.zeros((70, 90), np.float32)
    foreground[:, 30:] = 1.0
    changed = 0
    for _ in range(12):
        made = synthesise(image, foreground, procedural_texture, rng)
        assert made.image.shape == image.shape and made.mask.shape == (70, 90)
        outside = made.mask == 0
        assert outside[:, :30].all()
        assert np.abs(made.image[outside].astype(int) - image[outside]).max() <= 1, "truncation of float32 alone"
        changed += int(np.abs(made.image[~outside].astype(int) - image[~outside]).mean() > 5)
    assert changed >= 9


def test_an_empty_foreground_gives_up_after_fifty_draws() -> None:
    draws = []

    def draw(grid: tuple[int, int]) -> tuple[Any, float]:
        draws.append(grid)
        return np.zeros(grid), 0.0

    assert not anomaly_mask(np.zeros((64, 64), np.float32), (2, 4), draw).any()
    assert draws == [(3, 5)] * TRIES


def test_the_blend_against_its_formula() -> None:
    rng = np.random.default_rng(2)
    image, source = rng.integers(0, 256, (2, 9, 7, 3)).astype(np.uint8)
    mask = rng.random((9, 7)).astype(np.float32)
    made = blend(image, source, mask, 0.3)
    weight = mask[..., None].astype(np.float64)
    expected = image * (1 - weight) + 0.7 * source * weight + 0.3 * image * weight
    assert np.abs(made.image - np.floor(expected)).max() <= 1 and np.mean(made.image != np.floor(expected)) < 0.02


def test_shuffled_pieces_are_the_same_pixels() -> None:
    image = np.random.default_rng(3).integers(0, 256, (43, 50, 3)).astype(np.uint8)
    orders: Sequence[Sequence[int]] = [[3, 2, 1, 0], [1, 0, 3, 2], [7, 6, 5, 4, 3, 2, 1, 0], [2, 0, 1, 3], [0, 1, 3, 2]]
    shuffled = shuffle_pieces(image, orders)
    assert shuffled.shape == image.shape and not np.array_equal(shuffled, image)
    assert np.array_equal(np.sort(shuffled.reshape(-1, 3), axis=0), np.sort(image.reshape(-1, 3), axis=0))


def test_every_augmenter_is_drawn_and_keeps_shape_and_type() -> None:
    rng, image = np.random.default_rng(4), np.random.default_rng(5).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    for draw in DRAWS:
        for _ in range(4):
            out = draw(rng)(image)
            assert out.shape == image.shape and out.dtype == np.uint8
    assert len(draw_augmenters(rng)) == 3


def test_resizing_keeps_flat_images_and_the_same_size() -> None:
    flat = np.full((13, 17, 3), 200, np.uint8)
    assert (resize_bilinear(flat, (30, 11)) == 200).all()
    assert resize_bilinear(flat, (13, 17)) is flat


# --- the segmentation network ---------------------------------------------------------------------------------------


def test_the_official_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = SegmentationNetwork(1536, 192, (256, 256))
    assert sum(parameter.numel() for parameter in network.parameters()) == 70_441_778
    assert CrrParams().segmentation_width is None and 2 * 768 // 8 == 192


def test_disagreement_sums_to_minus_the_cosine() -> None:
    a, b = torch.randn(2, 5, 3, 3, dtype=torch.float64), torch.randn(2, 5, 3, 3, dtype=torch.float64)
    found = disagreement((a, b), (b, a))
    assert found.shape == (2, 10, 3, 3)
    torch.testing.assert_close(found[:, :5].sum(1), -torch.nn.functional.cosine_similarity(a, b, dim=1))


def test_focal_loss_against_a_slow_reference() -> None:
    logits, target = torch.randn(2, 2, 3, 4, dtype=torch.float64), torch.randint(0, 2, (2, 3, 4))
    probabilities = logits.softmax(1)
    total = 0.0
    for b, i, j in np.ndindex(2, 3, 4):
        true = int(target[b, i, j])
        p = (1 - 1e-5) * probabilities[b, true, i, j] + 1e-5 * probabilities[b, 1 - true, i, j] + 1e-5
        total += float(-((1 - p) ** 2) * p.log())
    assert float(focal_loss(probabilities, target)) == pytest.approx(total / 24, rel=1e-6)


def test_the_target_is_half_covered_pixels() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1.0
    assert segmentation_target(mask, (4, 4))[0].tolist() == [[False, False, True, True]] * 4


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [2, 5], ids=["in stage I", "in stage II"])
def test_a_killed_run_ends_with_the_same_bits(stop_after: int) -> None:
    whole = crr()
    whole.fit(TRAIN)
    snapshots = MemorySnapshots(always=True, stop_after=stop_after)
    with pytest.raises(StoppedError):
        crr(snapshots).fit(TRAIN)
    kind = (snapshots.load() or {})["kind"]
    assert kind == ("training" if stop_after == 2 else "segmentation")
    snapshots.stop_after = None
    resumed = crr(snapshots)
    resumed.fit(TRAIN)
    for key, value in whole.state().items():
        assert torch.equal(value, resumed.state()[key]), key


def test_samples_are_a_function_of_seed_stage_and_step() -> None:
    def images(seed: int, stage: int, step: int) -> Tensor:
        source = SyntheticImages(TRAIN, PARAMS, make_context(seed, torch.float32), stage, 9)
        try:
            if step == 3:  # as prefetched
                source.batch([5, 6], 2, [0, 1, 2])
            return source.batch([0, 1, 2], step).images
        finally:
            source.close()

    first = images(1, 1, 3)
    assert torch.equal(first, images(1, 1, 3)) and first.shape == (3, 3, 56, 70)
    assert not any(torch.equal(first, images(*other)) for other in ((2, 1, 3), (1, 2, 3), (1, 1, 4)))


def test_stage_one_alone_trains_no_segmentation() -> None:
    method = crr(fusion="cosine")
    method.fit(TRAIN)
    assert method.segmentation is None and not [key for key in method.state() if key.startswith("segmentation")]
    assert method.predict(TRAIN.batch([0])).amap.shape == (1, 4, 5), "the token grid: the bench enlarges it as in stage I"


def test_fused_maps_reach_the_metrics_unresized() -> None:
    amap = crr().predict(torch.randn(1, 3, 56, 70)).amap
    assert amap.shape == (1, 256, 256)
    plain = smooth_maps(amap, (56, 70), Scoring(kernel=1))
    torch.testing.assert_close(plain, amap)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"mask_share": 1.0}, "mask_share"), ({"cosine_weight": 1.5}, "cosine_weight"), ({"map_size": (0, 9)}, "map_size")],
)
def test_impossible_parameters_are_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"crr.{name}"):
        dataclasses.replace(PARAMS, **changes).check()


# --- folders --------------------------------------------------------------------------------------------------------


def _folder(path: Path, names: Sequence[str], level: int = 0, step: int = 1) -> Path:
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (level + step * number,) * 3).save(path / name)
    return path


def test_textures_and_foregrounds_come_from_folders(tmp_path: Path) -> None:
    textures = _folder(tmp_path / "textures", ["dots/a.png", "lines/b.png"], 100)
    foregrounds = _folder(tmp_path / "fg", [f"{i:03d}.jpg" for i in range(7)], step=0)  # black: no anomaly anywhere
    params = dataclasses.replace(PARAMS, texture_folder=str(textures), foreground_folder=str(foregrounds))
    context = make_context(1, torch.float32)
    context.images = FolderImages
    source = SyntheticImages(TRAIN, params, context, 1, 9)
    assert not source.batch([0, 1, 6], 0).masks.any()
    assert source._texture(np.random.default_rng(0)).shape == (20, 30, 3)
    source.close()
    (foregrounds / "003.jpg").unlink()
    source = SyntheticImages(TRAIN, params, context, 1, 9)
    with pytest.raises(DataError, match=r"no foreground map for 003\.png"):
        source.batch([3], 0)
    source.close()


def test_identities_hold_a_folders_content_and_not_its_place(tmp_path: Path) -> None:
    first, second = _folder(tmp_path / "a", ["x.png", "y.png"]), _folder(tmp_path / "b", ["x.png", "y.png"])
    other = _folder(tmp_path / "c", ["x.png", "y.png"], 5)

    def identity(folder: Path) -> Any:
        options = ("--methods", "crr", "--encoder", "builtin", "--preset", "smoke", *TINY, "--dry-run", "--json")
        cells = bench("run", *options, "--set", f"crr.texture_folder={folder}", "--results", tmp_path / "r")
        assert cells.code == 0, cells.err
        return json.loads(cells.out)["cells"][0]["id"]

    assert identity(first) == identity(second) != identity(other)
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = bench("run", "-m", "crr", "--encoder", "builtin", "--preset", "smoke", *TINY, "--set", f"crr.texture_folder={empty}")
    assert refused.code == 3 and "crr.texture_folder" in refused.err and "holds no image" in refused.err


# --- official checkpoints -------------------------------------------------------------------------------------------


def test_official_files_are_read_from_a_folder(tmp_path: Path) -> None:
    method, images = crr(), torch.randn(2, 3, 56, 70)
    for name, state in method.official_files().items():
        torch.save(state, tmp_path / name)
    torch.save(method.official_files()["Seg_model_last.pth"], tmp_path / "Seg_model_7999.pth")  # the same weights, as published
    store = WeightStore("random")
    copy = crr(seed=7)
    copy.load_official(store.read_file(tmp_path))
    assert torch.equal(copy.predict(images).amap, method.predict(images).amap)
    before = store.hash_file(tmp_path)
    torch.save(crr(seed=5).official_files()["Seg_model_last.pth"], tmp_path / "Seg_model_3999.pth")
    assert store.hash_file(tmp_path) != before
    with pytest.raises(WeightsError, match=r"Seg_model_3999.pth and Seg_model_7999.pth .* both hold"):
        store.read_file(tmp_path)


def test_half_a_checkpoint_says_which_half_is_missing() -> None:
    files = crr().official_files()
    with pytest.raises(WeightsError, match="without a segmentation network"):
        crr().load_official(files["model.pth"])
    with pytest.raises(WeightsError, match="not CRR's stage I"):
        crr().load_official(files["Seg_model_last.pth"])
    crr(fusion="cosine").load_official(files["model.pth"])
    crr().load_official(crr().official_state())


def test_official_keys_are_the_published_ones() -> None:
    keys = crr().official_files()["Seg_model_last.pth"]
    assert {"up1.1.weight", "up1.2.running_var", "db4.3.weight", "db4.4.bias", "fin_out.0.bias"} <= set(keys)
    assert INFO.presets["paper"] == {}


@pytest.mark.slow
def test_run_export_and_test_the_exported_files(tmp_path: Path) -> None:
    results, options = tmp_path / "results", ("--encoder", "builtin", "--preset", "smoke", *TINY)
    run = bench("run", "--methods", "crr", *options, "--results", results, "--json", "--display", "none")
    assert run.code == 0, run.err
    record = json.loads(next(results.rglob("crr/*.json")).read_text(encoding="utf-8"))
    exported = bench("export", record["id"], "--out", tmp_path / "official", "--results", results)
    assert exported.code == 0, exported.err
    assert {file.name for file in (tmp_path / "official").iterdir()} == {"model.pth", "Seg_model_last.pth"}
    again = bench(
        "run", "-m", "crr", *options, "--checkpoint", tmp_path / "official", "--results", tmp_path / "other", "--display", "none"
    )
    assert again.code == 0, again.err
    copied = json.loads(next((tmp_path / "other").rglob("crr/*.json")).read_text(encoding="utf-8"))
    assert copied["metrics"]["mean"] == pytest.approx(record["metrics"]["mean"], abs=1e-6)
