"""The synthetic set: deterministic to the byte, every defect present, and masks that are exactly what changed."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpbench.datasets import drawing, drawing_categories, drawing_defects, synthetic
from inpbench.datasets.synthetic import CATEGORIES, DEFECTS, SYNTHETIC, SyntheticParams, draw, generate, scan
from inpbench.harness.api import Finding
from inpbench.harness.errors import DataError, UsageError
from inpbench.harness.params import build

SMALL = SyntheticParams(size=96, train=2, normal=1, defective=1)


def _never(finding: Finding) -> None:
    raise AssertionError(finding)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    generate(folder, SMALL)
    return folder


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.png"))
    }


def _defects() -> list[tuple[str, str]]:
    return [(category, kind) for category in CATEGORIES for kind in DEFECTS]


# --- determinism ------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_whatever_else_is_drawn(tree: Path, tmp_path: Path) -> None:
    generate(tmp_path, dataclasses.replace(SMALL, train=3, categories="nut"))
    more, first = _hashes(tmp_path), _hashes(tree)
    common = set(more) & set(first)
    assert "nut/train/good/0002.png" in more and len(common) == len([name for name in first if name.startswith("nut/")])
    assert all(more[name] == first[name] for name in common)


def test_a_version_is_one_way_of_drawing(tree: Path) -> None:
    """A set once drawn stays in the cache, and a record names its version: who changes the drawing raises the version.

    Mean grey of the test images and share of the masks, not bytes: other releases of the packages may round differently.
    """
    assert SYNTHETIC.version == 1
    known = {"weave": (96.32, 3.637), "wood": (129.21, 2.402), "tile": (116.7, 1.866), "nut": (70.58, 1.910)}
    known |= {"capsule": (184.11, 2.218), "board": (64.31, 1.589)}
    for category, (grey, share) in known.items():
        images = [np.asarray(Image.open(path).convert("L"), float).mean() for path in (tree / category / "test").rglob("*.png")]
        masks = [(np.asarray(Image.open(path)) > 127).mean() for path in (tree / category / "ground_truth").rglob("*.png")]
        assert np.mean(images) == pytest.approx(grey, abs=0.5), category
        assert 100 * np.mean(masks) == pytest.approx(share, abs=0.05), category


def test_no_two_images_are_equal(tree: Path) -> None:
    images = {name: value for name, value in _hashes(tree).items() if "ground_truth" not in name}
    assert len(set(images.values())) == len(images)


def test_another_seed_is_another_set() -> None:
    first = draw(SMALL, "tile", "test", "spot", 0)[0]
    assert not np.array_equal(first, draw(dataclasses.replace(SMALL, seed=1), "tile", "test", "spot", 0)[0])


def test_global_numpy_state_is_neither_read_nor_written() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = draw(SMALL, "wood", "train", "good", 0)[0]
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(6)
    assert np.array_equal(first, draw(SMALL, "wood", "train", "good", 0)[0])


@pytest.mark.parametrize("category", CATEGORIES)
def test_size_changes_the_resolution_not_the_picture(category: str) -> None:
    big = draw(SyntheticParams(size=256), category, "train", "good", 0)[0]
    small = draw(SyntheticParams(size=128), category, "train", "good", 0)[0]
    halved = big.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    correlation = np.corrcoef(halved.ravel(), small.ravel())[0, 1]
    assert correlation > 0.9  # the noise and the antialiasing are those of the pixels


# --- defects and masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("category", "kind"), _defects())
def test_mask_is_what_changed(category: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[np.ndarray, drawing_defects.Defective]] = []
    original = drawing_defects.make_defect

    def spy(kind_, where, rng, scene, redraw):  # type: ignore[no-untyped-def]
        seen.append((scene.image.copy(), original(kind_, where, rng, scene, redraw)))
        return seen[-1][1]

    monkeypatch.setattr(drawing_defects, "make_defect", spy)
    for index in range(2):
        image, mask = draw(SMALL, category, "test", kind, index)
        assert mask is not None and mask.shape == image.shape[:2] and mask.dtype == bool
        clean, defective = seen[index]
        change = np.abs(defective.image - clean).max(axis=2)
        assert change[~mask].max() == 0.0, "outside the mask nothing differs"
        assert (change[mask] > drawing_defects.VISIBLE).mean() > 0.35, "the mask is mostly change, the rest are filled gaps"
        assert drawing_defects.SMALLEST / drawing.UNITS**2 <= mask.mean() < 0.15
        assert mask[6:-6, 6:-6].any(), "visible inside the 6 % rim that protocols crop away"


def test_a_normal_image_has_no_mask() -> None:
    assert draw(SMALL, "weave", "test", "good", 0)[1] is None


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_missing_part_changes_nothing_else(category: str) -> None:
    """The random stream of a scene is the same with and without the part."""
    where = drawing.canvas(96)
    draw_scene = drawing_categories.DRAWINGS[category]
    whole = draw_scene(where, np.random.default_rng(3), None).image
    part = drawing_categories.Part(y=110.0, x=120.0, scale=1.0, choice=4)
    lacking = draw_scene(where, np.random.default_rng(3), part).image
    changed = np.abs(whole - lacking).max(axis=2) > 1e-9
    assert 0.0 < changed.mean() < 0.08


def test_impossible_defect_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drawing_defects.DEFECTS, "spot", lambda where, rng, scene, redraw: scene.image.copy())
    with pytest.raises(AssertionError, match="no visible spot"):
        draw(SMALL, "weave", "test", "spot", 0)


# --- primitives -------------------------------------------------------------------------------------------------------


def test_smooth_noise_has_unit_deviation_and_is_smooth() -> None:
    field = np.stack([drawing.smooth_noise(np.random.default_rng(seed), 64, 8, 8) for seed in range(60)])
    assert abs(field.mean()) < 0.05 and field.std() == pytest.approx(1.0, abs=0.05)
    assert np.abs(np.diff(field, axis=1)).max() < 1.0


def test_spline_against_scipy() -> None:
    """The upsampling weights are those of the cubic B-spline."""
    from scipy.interpolate import BSpline

    basis = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    cells, size = 5, 32
    first, weights = drawing._spline(cells, size)
    for pixel in range(size):
        at = (pixel + 0.5) * cells / size
        expected = np.nan_to_num([float(basis(at + 1 - node)) for node in range(cells + 3)])
        row = np.zeros(cells + 3)
        row[first[pixel] : first[pixel] + 4] = weights[:, pixel]
        assert row == pytest.approx(expected, abs=1e-12)


def test_shapes_are_distances() -> None:
    where = drawing.canvas(64)
    v, u = where.y - 128.0, where.x - 128.0
    assert drawing.disc(v, u, 30.0)[32, 32] == pytest.approx(np.hypot(2.0, 2.0) - 30.0)
    area = drawing.cover(drawing.box(v, u, 40.0, 60.0, 10.0), 4.0).sum() * where.pixel**2
    assert area == pytest.approx(80.0 * 120.0 - (4 - np.pi) * 100.0, rel=0.01)
    area = drawing.cover(drawing.hexagon(v, u, 80.0), 4.0).sum() * where.pixel**2
    assert area == pytest.approx(2.0 * np.sqrt(3.0) * 80.0**2, rel=0.01)
    line = drawing.polyline(where, np.array([[128.0, 28.0], [128.0, 228.0]]), reach=10.0)
    expected = np.hypot(v, np.maximum(np.abs(u) - 100.0, 0.0))
    assert np.isfinite(line)[expected < 10.0].all() and line[np.isfinite(line)] == pytest.approx(expected[np.isfinite(line)])


# --- the tree ---------------------------------------------------------------------------------------------------------


def test_scan_finds_what_generate_drew(tree: Path) -> None:
    samples = scan(tree, SMALL, _never)
    assert [sample.category for sample in samples] == sorted((s.category for s in samples), key=CATEGORIES.index)
    assert len(samples) == len(CATEGORIES) * (2 + 1 + len(DEFECTS))
    images = {path.relative_to(tree).as_posix() for path in tree.rglob("*.png")}
    assert images == {s.image for s in samples} | {s.mask for s in samples if s.mask}
    for category in CATEGORIES:
        mine = [s for s in samples if s.category == category]
        assert {s.defect for s in mine if s.label} == set(DEFECTS)
        for split in ("train", "test"):
            paths = [s.image for s in mine if s.split == split]
            assert paths == sorted(paths)
        assert all(s.label == 0 and s.mask is None for s in mine if s.split == "train")
    assert all((s.mask is not None) == (s.label == 1) for s in samples)


def test_files_are_what_was_drawn(tree: Path) -> None:
    for sample in scan(tree, SMALL, _never)[::7]:
        pixels, mask = draw(SMALL, sample.category, sample.split, sample.defect, 0 if "0000" in sample.image else 1)
        with Image.open(tree / sample.image) as image:
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)
        if sample.mask is not None:
            with Image.open(tree / sample.mask) as image:
                assert image.mode == "L" and np.array_equal(np.asarray(image), mask * np.uint8(255))


def test_scan_names_vanished_files(tmp_path: Path) -> None:
    params = dataclasses.replace(SMALL, categories="wood")
    generate(tmp_path, params)
    (tmp_path / "wood/train/good/0001.png").unlink()
    (tmp_path / "wood/ground_truth/spot/0000_mask.png").unlink()
    findings: list[Finding] = []
    samples = scan(tmp_path, params, findings.append)
    assert [(f.file, f.status) for f in findings] == [
        ("wood/train/good/0001.png", "missing_image"),
        ("wood/ground_truth/spot/0000_mask.png", "missing_mask"),
    ]
    assert len(samples) == 2 + 1 + len(DEFECTS) - 2


def test_scan_of_another_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no synthetic set"):
        scan(tmp_path, SMALL, _never)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_categories_are_chosen_by_name() -> None:
    params = build("synthetic", SyntheticParams, {"categories": "board, weave"})
    assert params.chosen == ("weave", "board") and SyntheticParams().chosen == CATEGORIES


@pytest.mark.parametrize(
    ("key", "value"), [("categories", "nuts"), ("size", "32"), ("train", "0"), ("seed", "-1"), ("defective", "0")]
)
def test_impossible_parameters_are_refused(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=r"synthetic(\.| has no category)"):
        build("synthetic", SyntheticParams, {key: value})


def test_info_names_what_exists() -> None:
    assert set(drawing_categories.DRAWINGS) == set(CATEGORIES) == set(SYNTHETIC.categories)
    assert SYNTHETIC.textures == drawing_categories.TEXTURES == synthetic.TEXTURES
    assert set(drawing_defects.DEFECTS) == set(DEFECTS)


def test_manifest_does_not_depend_on_how_pixels_are_packed(tmp_path: Path) -> None:
    """PNG files of the same picture differ in size between builds of zlib; the identity of a run must not."""
    from PIL import Image

    from inpbench.harness.manifest import open_manifest

    params = dataclasses.replace(SMALL, categories="nut")
    generate(tmp_path, params)
    before = open_manifest(SYNTHETIC, params, tmp_path)
    path = tmp_path / before.samples[0].image
    size = path.stat().st_size
    Image.open(path).save(path, compress_level=0)
    assert path.stat().st_size != size
    assert open_manifest(SYNTHETIC, params, tmp_path).identity == before.identity
