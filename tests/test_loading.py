"""Manifest, pixel cache, training set, test batches and support images on small trees, against a slow reference."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from interpreter import PYTHON
from PIL import Image

from inpbench.datasets.folder import FOLDER
from inpbench.datasets.mvtec import MVTEC_AD
from inpbench.datasets.visa import VISA
from inpbench.harness import loading, pixels
from inpbench.harness.api import DatasetInfo, Finding, Preprocess, Sample
from inpbench.harness.errors import DataError, PrerequisiteError, UsageError
from inpbench.harness.manifest import Manifest, open_manifest
from inpbench.harness.scoring import Scoring
from inpbench.harness.support import draw_support, support_samples

SMALL = Preprocess(resize=(32, 32), crop=(28, 28))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INPBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pixels"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.mvtec(tmp_path / "data")


def opened(info: DatasetInfo, root: Path, strict: bool = True, **params: object) -> Manifest:
    return open_manifest(info, info.params(**params), root, strict)


def training(manifest: Manifest, **more: object) -> loading.TrainingImages:
    return loading.TrainingImages(manifest, manifest.categories, SMALL, device=CPU, **more)  # type: ignore[arg-type]


def batches(manifest: Manifest, category: str, **more: object) -> list[loading.Batch]:
    settings = {"batch_size": 3, "device": CPU, **more}
    return list(loading.test_batches(manifest, category, SMALL, Scoring(), **settings))  # type: ignore[arg-type]


def reference(path: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The originals' transform, written down step by step."""
    image = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).to(dtype) / 255
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=dtype)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], dtype=dtype)[:, None, None]
    return (tensor[:, 2:30, 2:30] - mean) / std


# --- manifest -------------------------------------------------------------------------------------------------------


def test_hash_knows_the_data_and_not_its_place(root: Path, tmp_path: Path) -> None:
    first = opened(MVTEC_AD, root)
    shutil.copytree(root, tmp_path / "moved" / "mvtec_ad")
    assert opened(MVTEC_AD, tmp_path / "moved" / "mvtec_ad").identity == first.identity
    assert opened(MVTEC_AD, tmp_path / "moved").identity == first.identity
    assert opened(FOLDER, root).identity != first.identity
    assert opened(FOLDER, root, masks="none").identity != opened(FOLDER, root).identity
    with (root / "carpet/train/good/000.png").open("ab") as file:
        file.write(b"x")
    assert opened(MVTEC_AD, root).identity != first.identity and first.identity.startswith("content:")


def test_selection_keeps_the_official_order(root: Path) -> None:
    manifest = opened(MVTEC_AD, root)
    chosen = manifest.select(["bottle", "carpet"])
    assert chosen.categories == ("carpet", "bottle") and chosen.identity == manifest.identity
    only = manifest.select(["bottle"])
    assert only.categories == ("bottle",) and only.identity != manifest.identity
    with pytest.raises(UsageError, match="Did you mean: bottle"):
        manifest.select(["botle"])
    assert len(manifest.limit(1).samples) == 2 * 3


def test_errors_of_unselected_categories_stop_nothing(root: Path) -> None:
    (root / "carpet/ground_truth/hole/000_mask.png").unlink()
    with pytest.raises(DataError, match=r"carpet/test/hole/000\.png: missing mask") as caught:
        opened(MVTEC_AD, root)
    assert "bench data verify mvtec_ad" in caught.value.hint
    only = open_manifest(MVTEC_AD, MVTEC_AD.params(), root, True, ["bottle"])
    assert only.categories == ("bottle",) and only.findings == ()
    lenient = opened(MVTEC_AD, root, strict=False)
    assert [f.status for f in lenient.findings] == ["missing_mask"]


def test_a_thousand_faults_are_recorded_and_some_are_warned_of(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = opened(MVTEC_AD, root, strict=False)
    for i in range(1000):
        for _ in range(2):
            manifest.note(Finding(f"{i}.png", "unreadable", "zero bytes"))
    assert len(manifest.findings) == 1000
    assert len(caplog.records) == 50 and "only recorded" in caplog.records[-1].message
    assert opened(MVTEC_AD, root).findings == ()


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "mvtec.tar").write_bytes(b"x")
    for place in (tmp_path / "mvtec.tar", tmp_path / "none"):
        with pytest.raises(DataError):
            opened(MVTEC_AD, place)


# --- training and testing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_batches_equal_the_reference(root: Path, dtype: torch.dtype, cached: bool) -> None:
    train = training(opened(MVTEC_AD, root), dtype=dtype, cache=cached)
    assert len(train) == 8 and list(train.categories) == ["carpet", "bottle"]
    order = [7, 0, 3, 0]
    batch = train.batch(order)
    assert batch.dtype == dtype and batch.shape == (4, 3, 28, 28)
    expected = torch.stack([reference(root / train.samples[i].image, dtype) for i in order])
    torch.testing.assert_close(batch, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    assert not train.masks([0, 1]).any() and train.masks([0]).shape == (1, 28, 28)


@pytest.mark.parametrize("cached", [True, False])
def test_test_batches_equal_the_reference(root: Path, cached: bool) -> None:
    manifest = opened(MVTEC_AD, root)
    found = batches(manifest, "bottle", cache=cached)
    assert [len(b.images) for b in found] == [3, 1]
    indices = [i for b in found for i in b.indices]
    samples = [manifest.samples[i] for i in indices]
    assert [s.category for s in samples] == ["bottle"] * 4 and {s.split for s in samples} == {"test"}
    assert torch.cat([b.labels for b in found]).tolist() == [s.label for s in samples]
    assert all(b.has_pixels.all() for b in found)
    masks = torch.cat([b.masks for b in found])
    for sample, image, mask in zip(samples, torch.cat([b.images for b in found]), masks, strict=True):
        torch.testing.assert_close(image, reference(root / sample.image), rtol=0, atol=1e-6)
        expected = np.zeros((256, 256), bool)
        if sample.mask:
            grey = Image.open(root / sample.mask).resize((32, 32), Image.Resampling.BILINEAR)
            crop = np.asarray(grey)[2:30, 2:30] / 255
            rows = np.floor(np.arange(256) * 28 / 256).astype(int)
            expected = crop[rows][:, rows] > 0.5
        np.testing.assert_array_equal(mask.numpy(), expected)


def test_anomalous_training_images_are_not_trained_on(tmp_path: Path) -> None:
    base = tmp_path / "2cls_fewshot" / "candle"
    for split in ("train", "test"):
        for i, label in enumerate(("good", "bad")):
            trees.save(trees.picture(i), base / split / label / f"{split}{i}.JPG", "JPEG")
        trees.save(trees.spot(), base / "ground_truth" / split / "bad" / f"{split}1.png")
    manifest = opened(VISA, tmp_path, split="2cls_fewshot")
    assert [s.image for s in training(manifest).samples] == ["2cls_fewshot/candle/train/good/train0.JPG"]
    bad = [s for s in manifest.samples if s.split == "train" and s.label]
    assert training(manifest, samples=bad).masks([0]).any()


def test_which_images_take_part_in_pixel_metrics(root: Path) -> None:
    (root / "carpet/ground_truth/hole/000_mask.png").unlink()
    (root / "bottle/ground_truth/hole/001_mask.png").write_bytes(b"")
    manifest = opened(MVTEC_AD, root, strict=False)
    (carpet,), (bottle,) = batches(manifest, "carpet", batch_size=9), batches(manifest, "bottle", batch_size=9)
    assert carpet.labels.tolist() == [0, 0, 1, 1] and carpet.has_pixels.tolist() == [True, True, False, True]
    assert bottle.has_pixels.tolist() == [True, True, True, False] and not bottle.masks[3].any()
    assert {(f.file.rpartition("/")[2], f.status) for f in manifest.findings} == {
        ("000.png", "missing_mask"), ("001_mask.png", "unreadable_mask"),
    }  # fmt: skip
    shutil.rmtree(root / "carpet/ground_truth")
    (image_level,) = batches(opened(FOLDER, root, strict=False), "carpet", batch_size=9)
    assert not image_level.has_pixels.any()


def test_strict_stops_and_lenient_leaves_out(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "carpet/train/good/002.png").write_bytes(b"")
    (root / "carpet/test/hole/001.png").write_text("no image")
    with pytest.raises(DataError, match=r"carpet/train/good/002\.png: unreadable: zero bytes"):
        training(opened(MVTEC_AD, root))
    with pytest.raises(DataError, match=r"carpet/test/hole/001\.png"):
        batches(opened(MVTEC_AD, root), "carpet")
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        manifest = opened(MVTEC_AD, root, strict=False)
        train = training(manifest)
        assert len(train) == 7
        expected = torch.stack([reference(root / s.image) for s in train.samples])
        torch.testing.assert_close(train.batch(range(7)), expected, rtol=0, atol=1e-6)
        indices = [i for b in batches(manifest, "carpet") + batches(manifest, "carpet") for i in b.indices]
        assert len(indices) == 6
        assert [f.status for f in manifest.findings] == ["unreadable", "unreadable"]
        assert sum("002.png" in record.message for record in caplog.records) == 1
    with pytest.raises(DataError, match=r"002\.png"):  # what a lenient run cached still stops a strict one
        training(opened(MVTEC_AD, root))


@pytest.mark.parametrize("cached", [True, False])
def test_prepare_finds_broken_test_files_before_training(root: Path, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "carpet/test/hole/001.png").write_text("no image")
    (root / "carpet/ground_truth/hole/000_mask.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"carpet/test/hole/001\.png"):
        loading.prepare(opened(MVTEC_AD, root), ["bottle", "carpet"], SMALL, Scoring(), cache=cached)
    loading.prepare(opened(MVTEC_AD, root), ["bottle"], SMALL, Scoring(), cache=cached)
    for _ in range(2):  # the second time from the cache: a resumed run knows the findings of categories it tested before
        manifest = opened(MVTEC_AD, root, strict=False)
        loading.prepare(manifest, manifest.categories, SMALL, Scoring(), cache=cached)
        assert [f.status for f in manifest.findings] == ["unreadable", "unreadable_mask"]
    with monkeypatch.context() as patch:
        patch.setattr(loading, "read_mask", lambda *_: pytest.fail("decoded again"))
        loading.prepare(manifest, manifest.categories, SMALL, Scoring(), cache=cached)


def test_a_category_without_images_is_named(root: Path) -> None:
    for path in (root / "carpet/train/good").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="carpet has no readable normal training image"):
        training(opened(MVTEC_AD, root, strict=False))
    shutil.rmtree(root / "bottle/test")
    with pytest.raises(DataError, match="bottle has no readable test image"):
        batches(opened(MVTEC_AD, root), "bottle")


def test_nasty_tree_runs_to_the_end_in_lenient_mode(tmp_path: Path) -> None:
    root = trees.nasty(tmp_path / "nasty")
    manifest = opened(FOLDER, root, strict=False)
    train = training(manifest)
    assert len(train) == 14  # 3 sound ones, 10 in unusual forms, 1 copy
    assert torch.isfinite(train.batch(range(len(train)))).all()
    found = batches(manifest, "part")
    masks = {Path(manifest.samples[i].image).stem: m for b in found for i, m in zip(b.indices, b.masks, strict=True)}
    sound = masks["index"]
    for name in ("palette", "bit", "red", "opaque", "greyalpha", "wide", "plain name"):
        assert (masks[name] ^ sound).float().mean() < 0.02, name  # 1-bit and palette masks are resized without interpolation
    assert sound.any() and not masks["empty"].any() and masks["large"].any()
    decoded = {
        f"part/{file}" for file, status in trees.NASTY.items() if status in ("unreadable", "unreadable_mask", "size_mismatch")
    }
    assert decoded <= {f.file for f in manifest.findings}
    with pytest.raises(DataError):
        opened(FOLDER, root)


# --- the cache ------------------------------------------------------------------------------------------------------


def test_pixels_are_decoded_once(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = training(opened(MVTEC_AD, root)).batch([0, 5])
    files = sorted(cache.glob("*.u8"))
    assert len(files) == 2 and all(f.stat().st_size == 4 * 3 * 28 * 28 for f in files)
    monkeypatch.setattr(pixels, "read_for", lambda *_: pytest.fail("decoded again"))
    torch.testing.assert_close(training(opened(MVTEC_AD, root)).batch([0, 5]), first, rtol=0, atol=0)
    only = opened(MVTEC_AD, root).select(["carpet"])
    torch.testing.assert_close(training(only).batch([0]), first[:1], rtol=0, atol=0)


def test_pixels_in_their_own_mode_have_a_cache_of_their_own(root: Path, cache: Path) -> None:
    manifest = opened(MVTEC_AD, root)
    sample = manifest.samples[0]
    keys = []
    for own_mode in (False, True, False):
        preprocess = replace(SMALL, own_mode=own_mode)
        loading.open_pixels(opened(MVTEC_AD, root), [sample], preprocess, cache=True)
        keys.append({file.name for file in cache.glob("*.u8")})
    assert len(keys[0]) == 1 and len(keys[1]) == 2 and keys[2] == keys[1]


def test_a_changed_file_is_decoded_again(root: Path, cache: Path) -> None:
    path = root / "carpet/train/good/000.png"
    before = training(opened(MVTEC_AD, root)).batch([0])
    trees.save(trees.picture(999), path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    after = training(opened(MVTEC_AD, root)).batch([0])
    assert not torch.equal(before, after)
    torch.testing.assert_close(after[0], reference(path), rtol=0, atol=1e-6)


def test_a_broken_cache_is_made_again(root: Path, cache: Path) -> None:
    expected = training(opened(MVTEC_AD, root)).batch([0])
    for path in cache.glob("*.u8"):
        path.write_bytes(path.read_bytes()[:-1])
    torch.testing.assert_close(training(opened(MVTEC_AD, root)).batch([0]), expected, rtol=0, atol=0)
    for path in cache.glob("*.json"):
        path.write_text("{")
    torch.testing.assert_close(training(opened(MVTEC_AD, root)).batch([0]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["zeros", "one bit", "rows changed places", "another file"])
def test_a_damaged_cache_is_noticed(root: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = training(opened(MVTEC_AD, root)).batch(range(8))
    one, other = sorted(cache.glob("*.u8"))
    content, row = one.read_bytes(), 3 * 28 * 28
    assert len(content) == len(other.read_bytes()) == 4 * row
    if damage == "another file":
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        exchanged = content[row : 2 * row] + content[:row] + content[2 * row :]
        flipped = content[:777] + bytes([content[777] ^ 16]) + content[778:]
        one.write_bytes({"zeros": bytes(40) + content[40:], "one bit": flipped, "rows changed places": exchanged}[damage])
    assert torch.equal(training(opened(MVTEC_AD, root)).batch(range(8)), expected)
    assert "are damaged" in caplog.text
    caplog.clear()
    assert torch.equal(training(opened(MVTEC_AD, root)).batch(range(8)), expected)  # made again
    assert "are damaged" not in caplog.text and one.read_bytes() == content


def test_a_damaged_cached_mask_is_noticed(root: Path, cache: Path) -> None:
    expected = [batch.masks for batch in batches(opened(MVTEC_AD, root), "bottle")]
    for path in cache.glob("*.u8"):
        if path.stat().st_size % (3 * 28 * 28):
            path.write_bytes(bytes(path.stat().st_size))
    found = [batch.masks for batch in batches(opened(MVTEC_AD, root), "bottle")]
    assert any(masks.any() for masks in expected) and all(map(torch.equal, found, expected))


def test_a_cache_without_checksums_is_made_again(root: Path, cache: Path) -> None:
    expected = training(opened(MVTEC_AD, root)).batch([0])
    for path in cache.glob("*.json"):
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sums"}))
        path.with_suffix(".u8").write_bytes(bytes(path.with_suffix(".u8").stat().st_size))
    assert torch.equal(training(opened(MVTEC_AD, root)).batch([0]), expected)


def test_what_a_killed_writer_left_is_removed(root: Path, cache: Path) -> None:
    training(opened(MVTEC_AD, root))
    (complete,) = list(cache.glob("*.u8"))[:1]
    left = cache / f".{complete.stem}.0123456789ab.tmp"
    left.write_bytes(b"half")
    complete.unlink()
    training(opened(MVTEC_AD, root))
    assert complete.is_file() and not left.exists() and not list(cache.glob(".*.tmp"))


def test_a_full_disk_is_a_clear_error(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(PrerequisiteError, match="0 MiB are free") as caught:
        training(opened(MVTEC_AD, root))
    assert "--no-pixel-cache" in caught.value.hint and "INPBENCH_CACHE" in caught.value.hint
    assert not list(cache.glob("*.u8")) and not list(cache.glob(".*.tmp"))
    assert len(training(opened(MVTEC_AD, root), cache=False)) == 8


def test_a_disk_that_fills_up_while_writing_leaves_nothing(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pixels.os, "fsync", full)
    with pytest.raises(PrerequisiteError, match="No space left on device"):
        training(opened(MVTEC_AD, root))
    assert not list(cache.glob("*.u8")) and not list(cache.glob(".*.tmp"))


def test_a_cache_that_cannot_be_written_is_a_clear_error(root: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder belongs")
    with pytest.raises(PrerequisiteError, match="cannot be written") as caught:
        training(opened(MVTEC_AD, root))
    assert "--no-pixel-cache" in caught.value.hint


def test_two_processes_at_once(root: Path, tmp_path: Path) -> None:
    script = tmp_path / "both.py"
    script.write_text(
        "import sys, torch, hashlib\nfrom pathlib import Path\n"
        "from inpbench.datasets.mvtec import MVTEC_AD\nfrom inpbench.harness.api import NoParams, Preprocess\n"
        "from inpbench.harness.loading import TrainingImages\nfrom inpbench.harness.manifest import open_manifest\n"
        "m = open_manifest(MVTEC_AD, NoParams(), Path(sys.argv[1]))\n"
        "t = TrainingImages(m, m.categories, Preprocess(resize=(32, 32), crop=(28, 28)), device=torch.device('cpu'))\n"
        "print(hashlib.sha256(t.batch(range(len(t))).numpy().tobytes()).hexdigest())\n"
    )
    running = [subprocess.Popen([*PYTHON, str(script), str(root)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert outputs[0] == outputs[1] and len(outputs[0].strip()) == 64


def test_a_file_that_vanishes_during_the_run_is_named(root: Path) -> None:
    train = training(opened(MVTEC_AD, root), cache=False)
    (root / train.samples[0].image).unlink()
    with pytest.raises(DataError, match=r"carpet/train/good/000\.png.*was readable when the run began"):
        train.batch([0])


# --- support images -------------------------------------------------------------------------------------------------


def test_support_is_drawn_in_one_stream() -> None:
    import random

    generator = random.Random(7)
    expected = {"a": generator.sample(list(range(10)), 2), "b": generator.sample(list(range(5)), 2)}
    assert draw_support({"a": 10, "b": 5}, 2, 7) == expected
    assert draw_support({"a": 280}, 1, 1) == {"a": [68]}  # the published draw of carpet
    with pytest.raises(UsageError, match="b has 1 normal training images, 2 shots"):
        draw_support({"a": 10, "b": 1}, 2, 0)
    with pytest.raises(UsageError, match="at least one"):
        draw_support({"a": 10}, 0, 0)


def test_support_takes_normal_training_images_only(root: Path) -> None:
    manifest = opened(MVTEC_AD, root)
    extra = (Sample("carpet/train/bad/0.png", "carpet", "train", 1), *manifest.samples)
    drawn = support_samples(extra, 2, 3)
    assert [s.category for s in drawn] == ["carpet", "carpet", "bottle", "bottle"]
    assert all(s.split == "train" and s.label == 0 for s in drawn)
    train = training(manifest, samples=drawn)
    assert {s.image for s in train.samples} == {s.image for s in drawn} and len(train) == 4


def test_pixels_are_those_before_the_crop(root: Path) -> None:
    manifest = opened(MVTEC_AD, root)
    train = training(manifest)
    expected = Image.open(root / train.samples[1].image).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    whole = train.pixels([1, 0])
    assert whole.shape == (2, 3, 32, 32) and whole.dtype == torch.uint8
    assert torch.equal(whole[0], torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1))
    cropped = loading.Normaliser(SMALL, CPU, torch.float32)(whole[:, :, 2:30, 2:30].contiguous().numpy())
    assert torch.equal(cropped, train.batch([1, 0]))
