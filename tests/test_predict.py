"""`bench predict`: geometry, tiles, thresholds, colours, and the command on a model trained in a second."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY, bench
from PIL import Image

from inpbench.harness.api import Prediction, Preprocess
from inpbench.harness.colours import NOT_SCORED, make_scale, overlay, paint
from inpbench.harness.errors import DataError, UsageError
from inpbench.harness.geometry import map_on_image
from inpbench.harness.image_files import find_images, output_names
from inpbench.harness.overlays import LEGEND_PX, overlay_picture
from inpbench.harness.predictions import Row, Run, write_scores
from inpbench.harness.predictor import Predictor, scoring_of
from inpbench.harness.thresholds import f1_threshold, parse_rule, quantile_threshold
from inpbench.harness.tiles import Blend, tile_boxes

# --- geometry -------------------------------------------------------------------------------------------------------


def reference_map_on_image(amap: np.ndarray, size: tuple[int, int], preprocess: Preprocess) -> np.ndarray:
    """Pixel by pixel: where its centre lies in the resized image, in the crop, in the map."""
    out = np.full(size, np.nan, np.float32)
    top, left = (round((r - c) / 2) for r, c in zip(preprocess.resize, preprocess.crop, strict=True))
    for y in range(size[0]):
        for x in range(size[1]):
            v = ((y + 0.5) * preprocess.resize[0] / size[0] - top) / preprocess.crop[0]
            u = ((x + 0.5) * preprocess.resize[1] / size[1] - left) / preprocess.crop[1]
            if 0 <= v <= 1 and 0 <= u <= 1:
                row = min(max(v * amap.shape[0] - 0.5, 0), amap.shape[0] - 1)
                column = min(max(u * amap.shape[1] - 0.5, 0), amap.shape[1] - 1)
                y0, x0 = int(row), int(column)
                y1, x1 = min(y0 + 1, amap.shape[0] - 1), min(x0 + 1, amap.shape[1] - 1)
                a, b = row - y0, column - x0
                above = amap[y0, x0] * (1 - b) + amap[y0, x1] * b
                below = amap[y1, x0] * (1 - b) + amap[y1, x1] * b
                out[y, x] = above * (1 - a) + below * a
    return out


@pytest.mark.parametrize("size", [(40, 30), (17, 61), (448, 10)])
def test_map_on_image_against_pixel_by_pixel(size: tuple[int, int]) -> None:
    preprocess = Preprocess(resize=(32, 48), crop=(28, 36))
    amap = np.random.default_rng(0).random((7, 9)).astype(np.float32)
    found = map_on_image(amap, size, preprocess)
    np.testing.assert_allclose(found, reference_map_on_image(amap, size, preprocess), atol=1e-6)
    assert np.isnan(found).any() and not np.isnan(found).all(), "the crop leaves a rim"


def test_map_on_image_undoes_resize_and_crop_of_the_picture() -> None:
    """A bright spot of an image is found at the same place of the image again, with the aspect ratio undone."""
    from inpbench.harness.images import image_at_crop

    preprocess = Preprocess(resize=(64, 64), crop=(56, 56))
    pixels = np.zeros((50, 200, 3), np.uint8)
    pixels[30:36, 120:140] = 255
    amap = image_at_crop(Image.fromarray(pixels), preprocess)[0].astype(np.float32)
    found = np.nan_to_num(map_on_image(amap, (50, 200), preprocess))
    rows, columns = np.nonzero(found > 128)
    assert abs(rows.mean() - 32.5) < 1 and abs(columns.mean() - 129.5) < 2


# --- tiles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((100, 130), (40, 40), 10), ((30, 200), (64, 48), 8), ((40, 40), (40, 40), 0)]
)
def test_tiles_cover_and_blend(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> None:
    boxes, blend = tile_boxes(size, tile, overlap), Blend(size, overlap)
    truth = np.add.outer(np.arange(size[0]) * 3.0, np.arange(size[1])).astype(np.float32)
    for box in boxes:
        assert box.size == (min(tile[0], size[0]), min(tile[1], size[1]))
        blend.add(box, truth[box.top : box.bottom, box.left : box.right])
    np.testing.assert_allclose(blend.result(), truth, rtol=1e-6)
    assert len(set(boxes)) == len(boxes)


class Brightness:
    """A method whose map is the first channel, 4 x 4 pixels a cell."""

    def predict(self, images: torch.Tensor) -> Prediction:
        return Prediction(torch.nn.functional.avg_pool2d(images[:, :1], 4)[:, 0])


def brightness(**others: Any) -> Predictor:
    preprocess = Preprocess(resize=(32, 32), crop=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Predictor(Brightness(), preprocess, torch.device("cpu"), **others)  # type: ignore[arg-type]


def test_a_small_defect_of_a_large_image_is_seen_in_tiles() -> None:
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[100:108, 300:308] = 255
    (whole,), (tiled,) = brightness()([Image.fromarray(pixels)]), brightness(tile=(32, 32), overlap=8)([Image.fromarray(pixels)])
    assert tiled.score > 4 * whole.score
    assert tiled.amap.shape == (256, 512) and not np.isnan(tiled.amap).any()
    y, x = np.unravel_index(tiled.amap.argmax(), tiled.amap.shape)
    assert 96 <= y < 112 and 296 <= x < 312


def test_tiles_refuse_an_overlap_as_large_as_the_tile() -> None:
    with pytest.raises(UsageError, match="do not cover"):
        brightness(tile=(32, 32), overlap=32)


# --- thresholds and colours -----------------------------------------------------------------------------------------


def test_quantile_leaves_at_most_the_asked_share_above() -> None:
    scores = np.random.default_rng(1).random(200)
    for share in (0.5, 0.9, 0.995, 1.0):
        value = quantile_threshold(scores, share)
        assert (scores > value).sum() <= (1 - share) * 200 + 1e-9
        assert value in scores
    assert quantile_threshold(scores, 0.995) == np.sort(scores)[198]


def test_f1_threshold_against_every_cut() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        labels = rng.integers(0, 2, 30)
        labels[:2] = 0, 1
        scores = np.round(rng.random(30) + 0.4 * labels, 1)  # many ties

        def f1(value: float, scores: np.ndarray = scores, labels: np.ndarray = labels) -> float:
            hits = ((scores > value) & (labels == 1)).sum()
            return float(2 * hits / ((scores > value).sum() + labels.sum()))

        best = max(f1(cut) for cut in [*scores, scores.min() - 1])
        assert f1(f1_threshold(scores, labels)) == pytest.approx(best, abs=0)


@pytest.mark.parametrize("text", ["quantile=0", "quantile=1.5", "quantile", "f2", "nan", "f1=3", ""])
def test_bad_threshold_rules(text: str) -> None:
    with pytest.raises(UsageError, match="--threshold"):
        parse_rule(text)


def test_colours_rise_in_lightness_and_mark_what_was_not_scored() -> None:
    scale = make_scale(1.0, 3.0)
    ramp = paint(np.linspace(0.0, 4.0, 400)[None], scale)[0].astype(float)
    lightness = ramp @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) >= -1e-9).all() and lightness[-1] - lightness[0] > 230
    assert (paint(np.array([[np.nan]]), scale)[0, 0] == NOT_SCORED).all()
    image = np.full((1, 2, 3), (200, 10, 30), np.uint8)
    drawn = overlay(image, np.array([[1.0, 3.0]]), scale)
    assert (drawn[0, 0] == (200, 10, 30)).all(), "a cold pixel keeps its colour: RGB stays RGB"
    assert (drawn[0, 1] != image[0, 1]).all()
    with pytest.raises(UsageError):
        make_scale(2.0, 1.0)


# --- files ----------------------------------------------------------------------------------------------------------


def test_video_frames_are_sorted_as_people_count(tmp_path: Path) -> None:
    for name in ("frame_10.png", "frame_2.PNG", "b/frame_1.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert find_images(tmp_path) == (tmp_path, ["b/frame_1.jpg", "frame_2.PNG", "frame_10.png"])


def test_output_names_never_collide() -> None:
    assert output_names(["a/1.png", "a/1.jpg", "a/2.png"]) == {"a/1.png": "a/1.png", "a/1.jpg": "a/1.jpg", "a/2.png": "a/2"}


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Results folder and record of a yardstick on two categories, trained in a second."""
    results = tmp_path_factory.mktemp("results")
    outcome = bench("run", "-m", "raw_pixel", "--preset", "smoke", *TINY, "--results", results, "--display", "none")
    assert outcome.code == 0, outcome.err
    (record,) = results.glob("*/*/*/*.json")
    return results, json.loads(record.read_text())["id"]


def samples_of(results: Path, record: str) -> tuple[Path, dict[str, tuple[float, int]]]:
    """Root of the drawn data, and score and label of each test image."""
    from inpbench.harness.records import RecordStore
    from inpbench.harness.roots import locate

    store = RecordStore(results)
    found = store.find(record)
    assert found is not None
    from inpbench.harness import params
    from inpbench.harness.registry import DATASETS

    info = DATASETS.get("synthetic")
    root = locate(info, params.build("synthetic", info.params, params.from_plain(found.identity["dataset_params"])), None)
    tables = store.read_samples(found).values()
    rows = [zip(t["image"], t["score"], t["label"], strict=True) for t in tables]
    return root, {str(i): (float(s), int(n)) for table in rows for i, s, n in table}


def test_predict_gives_the_scores_of_the_record(trained: tuple[Path, str], tmp_path: Path) -> None:
    results, record = trained
    root, known = samples_of(results, record)
    outcome = bench("predict", record[:12], "--images", root / "weave" / "test", "--out", tmp_path, "--results", results, "--json")
    assert outcome.code == 0, outcome.err
    content = outcome.json()
    assert content == json.loads((tmp_path / "scores.json").read_text())
    assert len(content["images"]) > 4
    for row in content["images"]:
        assert row["score"] == pytest.approx(known[f"weave/test/{row['image']}"][0], rel=1e-6)
        amap, drawn = np.load(tmp_path / row["map"]), Image.open(tmp_path / row["overlay"])
        assert amap.shape == (row["height"], row["width"]) == (64, 64) and amap.dtype == np.float32
        assert drawn.mode == "RGB" and drawn.height > 64
    normal = [score for score, label in known.values() if label == 0]
    assert content["threshold"]["value"] == max(normal) and content["threshold"]["false_alarms"] == 0
    assert {row["verdict"] for row in content["images"] if row["image"].startswith("good/")} == {"normal"}
    scores = [score for score, _ in known.values()]
    assert (content["colour_scale"]["low"], content["colour_scale"]["high"]) == (min(scores), max(scores))
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [float(row["score"]) for row in rows] == [row["score"] for row in content["images"]]
    hostile = Run(rows=[Row(image="=cmd().png", status="skipped", score=-1.5)])
    write_scores(tmp_path, {}, hostile)
    assert "'=cmd().png,skipped,-1.5" in (tmp_path / "scores.csv").read_text("utf-8"), "a spreadsheet would run it"


def test_predict_one_file_as_tiff_with_f1(trained: tuple[Path, str], tmp_path: Path) -> None:
    results, record = trained
    root, known = samples_of(results, record)
    name = next(name for name, (_, label) in known.items() if label == 1)
    arguments = ["--images", root / name, "--out", tmp_path, "--results", results, "--maps", "tiff", "--threshold", "f1"]
    outcome = bench("predict", record, *arguments, "--category", name.split("/")[0], "--no-overlays")
    assert outcome.code == 0, outcome.err
    assert name.rsplit("/", 1)[1] in outcome.out
    (tiff,) = tmp_path.rglob("*.tiff")
    assert np.asarray(Image.open(tiff)).shape == (64, 64) and not list(tmp_path.rglob("*.png"))


def test_bad_files_stop_a_strict_run_and_get_a_row_in_a_lenient_one(trained: tuple[Path, str], tmp_path: Path) -> None:
    results, record = trained
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.full((50, 90), 128, np.uint8)).save(images / "grey.png")
    (images / "broken.png").write_bytes((images / "grey.png").read_bytes()[:40])
    arguments = ["predict", record, "--images", images, "--results", results, "--threshold", "0.5"]
    strict = bench(*arguments, "--out", tmp_path / "strict")
    assert strict.code == 3 and "broken.png" in strict.err and not (tmp_path / "strict" / "scores.csv").exists()
    lenient = bench(*arguments, "--out", tmp_path / "lenient", "--lenient", "--maps", "none")
    assert lenient.code == 0, lenient.err
    broken, grey = csv.DictReader((tmp_path / "lenient" / "scores.csv").open())
    assert (broken["status"], broken["score"], grey["status"]) == ("skipped", "", "ok") and broken["reason"]
    assert (tmp_path / "lenient" / "overlays" / "grey.png").is_file() and not list((tmp_path / "lenient").rglob("*.npy"))
    (images / "grey.png").unlink()
    assert bench(*arguments, "--out", tmp_path / "none", "--lenient").code == 4


def test_tiles_need_thresholds_of_their_own(trained: tuple[Path, str], tmp_path: Path) -> None:
    results, record = trained
    root, _ = samples_of(results, record)
    arguments = ["predict", record, "--images", root / "weave/test/good", "--results", results, "--tile", "48", "--overlap", "16"]
    refused = bench(*arguments, "--out", tmp_path / "a", "--threshold", "quantile=0.9")
    assert refused.code == 2 and "--normal" in refused.err
    without = bench(*arguments, "--out", tmp_path / "c", "--no-overlays", "--maps", "none")
    assert without.code == 0 and "--normal DIR chooses one" in without.err
    outcome = bench(*arguments, "--out", tmp_path / "b", "--normal", root / "weave/train/good", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["threshold"]["normal_images"] == 6 and outcome.json()["model"]["tile"] == [48, 48]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--images", ".", "--out", "/nonexistent/x"], 2, "a RECORD, --checkpoint, or a method"),
        (["abcdef123456", "--images", "tests/nowhere", "--out", "x"], 4, "No record"),
        (["abcdef", "--images", "x", "--out", "y", "--threshold", "high"], 2, "no rule"),
        (["abcdef", "--images", "x", "--out", "y", "--tile", "big"], 2, "--tile"),
        (["abcdef", "--images", "x", "--out", "y", "--scale", "1"], 2, "--scale"),
        (["--checkpoint", "m.pth", "--images", "x", "--out", "y"], 2, "needs its method"),
        (["--checkpoint", "m.pth", "-m", "inp_former", "--encoder", "builtin", "--images", "x", "--out", "y"], 3, "m.pth"),
    ],
)
def test_predict_errors(arguments: list[str], code: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INPBENCH_RESULTS", str(tmp_path))
    outcome = bench("predict", *arguments)
    assert outcome.code == code and text in outcome.err, outcome.err


def test_a_method_that_is_not_trained_needs_no_record(tmp_path: Path) -> None:
    photos, good = tmp_path / "photos", tmp_path / "good"
    for folder, count in ((photos, 2), (good, 3)):
        folder.mkdir()
        for index in range(count):
            Image.effect_noise((96, 80), 30.0 + index).convert("RGB").save(folder / f"{index}.png")
    winclip = ["predict", "-m", "winclip", "--preset", "smoke", "--images", photos]
    told = [*winclip, "--weights", "random", "--category", "metal nut"]

    def model_of(name: str, *more: object) -> dict[str, Any]:
        outcome = bench(*told, "--out", tmp_path / name, *more, "--json")
        assert outcome.code == 0, outcome.err
        content = outcome.json()
        assert all(np.isfinite(row["score"]) for row in content["images"]) and len(content["images"]) == 2
        facts: dict[str, Any] = content["model"]
        return facts

    alone, shown = model_of("alone"), model_of("shown", "--normal", good)
    assert (alone["setting"], alone["references"]) == ("zero_shot", "none")
    assert (shown["setting"], shown["shots"], shown["references"]) == ("few_shot", 3, str(good))
    assert alone["marks"] == ["random weights"] and alone["category"] == "metal nut"
    assert "--category NAME" in bench(*winclip, "--weights", "random", "--out", tmp_path / "x").err
    trained = bench("predict", "-m", "dinomaly", "--images", photos, "--out", tmp_path / "x")
    assert trained.code == 2 and "has to be trained" in trained.err and "--methods dinomaly" in trained.err
    assert not (tmp_path / "x").exists()


def test_out_inside_images_is_refused(tmp_path: Path) -> None:
    outcome = bench("predict", "abcdef", "--images", tmp_path, "--out", tmp_path / "out")
    assert outcome.code == 2 and "lies inside" in outcome.err


def test_a_video_file_says_how_to_get_its_frames(tmp_path: Path) -> None:
    (tmp_path / "belt.MP4").write_bytes(b"x")
    with pytest.raises(DataError, match="is a video") as error:
        find_images(tmp_path / "belt.MP4")
    assert "ffmpeg -i belt.MP4 belt/%06d.png" in error.value.hint


def test_the_legend_grows_with_the_picture() -> None:
    for width, factor in ((500, 1), (2100, 2)):
        amap = np.zeros((60, width), np.float32)
        picture = overlay_picture(np.full((60, width, 3), 99, np.uint8), amap, make_scale(0, 1), 0.3, 0.5)
        assert picture.size == (width, 60 + factor * LEGEND_PX)


def test_constants_of_newer_scoring_are_not_guessed() -> None:
    from inpbench.harness.errors import MetricError

    assert scoring_of({"metric_size": [64, 64]}).metric_size == (64, 64)
    with pytest.raises(MetricError, match="wavelets"):
        scoring_of({"wavelets": 3})


def test_a_scale_of_flat_maps_is_a_hair_wide() -> None:
    for low, high in ((0.795856, 0.795856 - 1e-8), (0.5, 0.5), (0.0, 0.0)):
        scale = make_scale(low, high)
        assert scale.low < scale.high < scale.low + 1e-5
    with pytest.raises(UsageError, match="low < high"):
        make_scale(0.6, 0.5)
