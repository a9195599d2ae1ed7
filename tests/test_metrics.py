"""The metrics against scikit-learn and against definitions written out pixel by pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from golden import COMMITTED, read_case
from golden_metrics import check_ader_eval, check_anomaly_map, check_crr_evaluation, check_eval_metrics
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics import IMAGE_METRICS, METRICS, PIXEL_METRICS, MetricValues, counting, loops, pixels, workers
from inpbench.harness.metrics.category import CategoryMetrics
from inpbench.harness.metrics.image import ImageMetrics
from inpbench.harness.metrics.pixel import PixelMetrics


def reference_curve(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """AUROC, AP and F1max of flat arrays by scikit-learn."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.where(precision + recall == 0, 1, precision + recall)
    return float(roc_auc_score(labels, scores)), float(average_precision_score(labels, scores)), float(f1.max())


def reference_aupro(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
    """Every distinct threshold in turn: covered share of every region, false positives over all normal pixels."""
    regions = []
    for number, mask in enumerate(masks):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(number, labelled == region) for region in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        found = maps >= threshold
        overlap = np.mean([found[number][region].mean() for number, region in regions])
        points.append(((found & ~masks).sum() / (~masks).sum(), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            y = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + y) / 2
    return area / limit


def reference(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    values = (*reference_curve(maps.ravel(), masks.ravel()), reference_aupro(maps, masks))
    return dict(zip(PIXEL_METRICS, values, strict=True))


def blobs(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Masks (count, height, width) of a few round and thin regions; the first image is normal."""
    noise = ndimage.gaussian_filter(rng.standard_normal((count, height, width)), (0, 2, 2))
    masks = noise > np.quantile(noise, 0.93)
    masks[:, 1, 2:9] = True
    masks[0] = False
    return masks


RNG = np.random.default_rng(7)
MASKS = blobs(RNG, 6, 16, 20)
NOISE = RNG.standard_normal(MASKS.shape)

SCORES = {
    "random": NOISE,
    "overlapping": NOISE + 1.5 * MASKS,
    "perfect": MASKS + 0.1 * np.abs(NOISE) / 10,
    "reversed": -(NOISE + 2 * MASKS),
    "negative": -np.exp(NOISE + MASKS),
    "heavy_tail": np.exp(6 * (NOISE + MASKS)),
    "narrow_band": 1 + 1e-5 * (NOISE + MASKS),
    "narrow_band_with_outliers": np.where(np.abs(NOISE) > 3, 1e30 * NOISE, 1 + 1e-5 * (NOISE + MASKS)),
    "tied_16_levels": np.round(np.clip(NOISE + MASKS, -3, 3) * 2.5),
    "two_levels": (NOISE + MASKS > 0.5).astype(float),
    "constant": np.full(MASKS.shape, 0.25),
    "zeros_of_both_signs": np.where(NOISE > 0, 0.0, -0.0),
    "tiny": NOISE * 1e-40,
}


def measure(maps: np.ndarray | torch.Tensor, masks: np.ndarray = MASKS, batch: int = 6, **options: object) -> MetricValues:
    """The metrics by the tables of NumPy and torch; where numba is installed, the compiled loops say the same."""
    by_tables = measure_once(maps, masks, batch, False, **options)
    if loops.COMPILED:
        assert measure_once(maps, masks, batch, True, **options) == by_tables
    return by_tables


def measure_once(maps: np.ndarray | torch.Tensor, masks: np.ndarray, batch: int, compiled: bool, **options: object) -> MetricValues:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "COMPILED", compiled)
        return measure_as_is(maps, masks, batch, **options)


def measure_as_is(maps: np.ndarray | torch.Tensor, masks: np.ndarray, batch: int, **options: object) -> MetricValues:
    metrics = PixelMetrics(**options)  # type: ignore[arg-type]
    maps, truth = torch.as_tensor(maps), torch.from_numpy(np.ascontiguousarray(masks))
    for start in range(0, len(maps), batch):
        metrics.update(maps[start : start + batch], truth[start : start + batch])
    return metrics.compute()


# --- exact --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(SCORES))
def test_exact_pixel_metrics(name: str, dtype: torch.dtype) -> None:
    scores = SCORES[name]
    if dtype == torch.float16 and np.abs(scores).max() > 6e4:
        scores = scores / np.abs(scores).max() * 6e4
    maps = torch.from_numpy(scores).to(dtype)
    found = measure(maps)
    expected = reference(maps.double().numpy(), MASKS)
    for metric in PIXEL_METRICS:
        assert found.values[metric] == pytest.approx(expected[metric], abs=1e-11), metric
        assert found.bounds[metric] <= 1e-11


@pytest.mark.parametrize("seed", range(8))
def test_exact_on_small_random_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 5)), int(rng.integers(2, 12)), int(rng.integers(2, 12)))
    masks = rng.random(shape) < rng.choice([0.1, 0.5, 0.9])
    masks[0, 0, 0], masks[-1, -1, -1] = True, False
    scores = rng.integers(-4, 5, shape) / 3 if seed % 2 else rng.standard_normal(shape)
    found, expected = measure(scores, masks), reference(scores, masks)
    for metric in PIXEL_METRICS:
        assert found.values[metric] == pytest.approx(expected[metric], abs=1e-11), metric


def test_constant_maps_have_the_right_values_not_a_reason() -> None:
    found = measure(np.full(MASKS.shape, 0.7)).values
    share = MASKS.mean()
    assert found["p_auroc"] == 0.5
    assert found["p_ap"] == pytest.approx(share)
    assert found["p_f1max"] == pytest.approx(2 * share / (1 + share))
    assert found["aupro"] == pytest.approx(0.15)  # the chord from (0, 0) to (1, 1), up to 0.3


@pytest.mark.parametrize(("scale", "shift"), [(20.0, 60.0), (1e-3, -5.0), (2.0**70, 0.0)])
def test_only_the_order_of_scores_matters(scale: float, shift: float) -> None:
    scores = SCORES["overlapping"]
    assert measure(scores * scale + shift) == measure(scores)


# --- streaming ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"exact_pixels": 0, "bins": 1 << 16}, {"exact_pixels": 1000, "bins": 1 << 20}])
@pytest.mark.parametrize("variant", ["exact", "paper", "dinomaly"])
def test_batches_and_order_change_nothing(variant: str, options: dict[str, int]) -> None:
    maps = SCORES["overlapping"].astype(np.float32)
    whole = measure(maps, variant=variant, **options)
    order = np.random.default_rng(1).permutation(len(maps))
    for other in (
        measure(maps, batch=1, variant=variant, **options),
        measure(maps[order], MASKS[order], 4, variant=variant, **options),
    ):
        for metric in ("p_auroc", "p_ap", "p_f1max"):
            assert other.values[metric] == whole.values[metric]
            assert other.bounds[metric] == whole.bounds[metric]
        assert other.values["aupro"] == pytest.approx(whole.values["aupro"], abs=1e-12 if options else 0)


def test_compute_can_be_asked_at_any_time() -> None:
    for exact_pixels in (0, 1 << 24):
        metrics = PixelMetrics(exact_pixels=exact_pixels, bins=1 << 18)
        maps, masks = torch.from_numpy(SCORES["overlapping"]), torch.from_numpy(MASKS)
        metrics.update(maps[:3], masks[:3])
        first = metrics.compute()
        assert metrics.compute() == first
        metrics.update(maps[3:], masks[3:])
        expected = measure(SCORES["overlapping"], exact_pixels=exact_pixels, bins=1 << 18)
        assert metrics.compute().values == pytest.approx(expected.values, abs=1e-12)


def test_maps_that_change_after_the_update_do_not_matter() -> None:
    maps, masks = torch.from_numpy(SCORES["overlapping"].copy()), torch.from_numpy(MASKS)
    metrics = PixelMetrics()
    metrics.update(maps, masks)
    expected = metrics.compute()
    maps.zero_()
    assert metrics.compute() == expected


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32), (torch.float64, torch.float16)])
def test_sizes_and_dtypes_may_differ_between_updates(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    metrics = PixelMetrics()
    scores = torch.from_numpy(SCORES["overlapping"])
    pieces = [(scores[:2].to(dtypes[0]), MASKS[:2]), (scores[2:, :, :15].to(dtypes[1]), MASKS[2:, :, :15])]
    for maps, masks in pieces:
        metrics.update(maps, torch.from_numpy(masks))
    flat = np.concatenate([maps.double().numpy().ravel() for maps, _ in pieces])
    truth = np.concatenate([masks.ravel() for _, masks in pieces])
    values = metrics.compute().values
    for metric, expected in zip(PIXEL_METRICS, reference_curve(flat, truth), strict=False):
        assert values[metric] == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["overlapping", "reversed", "tied_16_levels", "constant"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_and_sizes_of_pieces_change_nothing(name: str, threads: int, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = SCORES[name].astype(dtype)
    expected = [measure(maps, variant=variant) for variant in ("exact", "paper", "dinomaly")]
    monkeypatch.setattr(pixels, "CHUNK", 300)
    monkeypatch.setattr(workers, "THREAD_PIXELS", 500)
    for size, value in {"PIECE": 70, "GROUP": 650, "FEWEST_BINS": 16}.items():
        monkeypatch.setattr(counting, size, value)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert [measure(maps, variant=variant) for variant in ("exact", "paper", "dinomaly")] == expected
        assert torch.get_num_threads() == threads  # the threads that counted had one each
    finally:
        torch.set_num_threads(before)


# --- the histogram ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["perfect", "narrow_band", "tied_16_levels", "constant", "zeros_of_both_signs"])
def test_the_histogram_is_exact_while_its_pages_fit(name: str) -> None:
    scores = SCORES[name].astype(np.float32)
    found, kept = measure(scores, exact_pixels=0, bins=1 << 22), measure(scores)
    for metric in PIXEL_METRICS:
        assert found.values[metric] == pytest.approx(kept.values[metric], abs=1e-11)
        assert found.bounds[metric] <= 1e-11


@pytest.mark.parametrize("bins", [1 << 16, 1 << 18])
@pytest.mark.parametrize("name", list(SCORES))
def test_the_bound_of_a_coarse_histogram_holds(name: str, bins: int) -> None:
    scores = SCORES[name].astype(np.float32)
    for variant in ("exact", "paper", "dinomaly"):
        kept = measure(scores, variant=variant)
        found = measure(scores, exact_pixels=0, bins=bins, variant=variant)
        assert found.undefined == kept.undefined
        for metric in found.bounds:
            assert abs(found.values[metric] - kept.values[metric]) <= found.bounds[metric], (variant, metric)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_exact_in_a_coarse_histogram(dtype: torch.dtype) -> None:
    maps = torch.from_numpy(SCORES["overlapping"].clip(-2, 5) + 3).to(dtype)
    found, kept = measure(maps, exact_pixels=0, bins=1 << 18), measure(maps)
    for metric in PIXEL_METRICS:
        assert found.values[metric] == pytest.approx(kept.values[metric], abs=1e-11)
        assert found.bounds[metric] <= 1e-11


def test_many_pixels_in_the_histogram() -> None:
    rng = np.random.default_rng(3)
    masks = blobs(rng, 40, 128, 128)
    maps = (0.3 + 0.05 * rng.standard_normal(masks.shape) + 0.1 * masks).astype(np.float32)
    kept = measure(maps, masks, 8)
    found = measure(maps, masks, 8, exact_pixels=1 << 18)
    for metric in PIXEL_METRICS:
        assert found.bounds[metric] <= 1e-5
        assert abs(found.values[metric] - kept.values[metric]) <= min(1e-6, found.bounds[metric])
    expected = reference_curve(maps.ravel(), masks.ravel())
    for metric, value in zip(PIXEL_METRICS, expected, strict=False):
        assert kept.values[metric] == pytest.approx(value, abs=1e-11)


# --- what has no value ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["exact", "paper", "dinomaly"])
def test_pixel_metrics_without_value_say_why(variant: str) -> None:
    maps = SCORES["random"]
    cases = {
        "no anomalous pixel in the masks": measure(maps, np.zeros_like(MASKS), variant=variant),
        "no normal pixel in the masks": measure(maps, np.ones_like(MASKS), variant=variant),
        "no image has pixel ground truth": PixelMetrics(variant).compute(),
    }
    for reason, found in cases.items():
        assert found.values == dict.fromkeys(PIXEL_METRICS)
        assert found.undefined == dict.fromkeys(PIXEL_METRICS, reason)
        assert not found.bounds


@pytest.mark.parametrize("variant", ["paper", "dinomaly"])
def test_official_evaluations_have_no_value_for_constant_maps(variant: str) -> None:
    found = measure(SCORES["constant"], variant=variant)
    assert "same score" in found.undefined["aupro"] and found.values["aupro"] is None
    assert found.values["p_f1max"] is not None
    assert set(found.undefined) | set(found.bounds) == set(PIXEL_METRICS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("exact_pixels", [1 << 24, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_image_with_a_bad_score_is_named(bad: float, exact_pixels: int, dtype: torch.dtype) -> None:
    maps = torch.from_numpy(SCORES["overlapping"]).to(dtype).clone()
    maps[4, 3, 2] = bad
    with pytest.raises(MetricError, match="image 4 "):
        measure(maps, batch=4, exact_pixels=exact_pixels)


def test_images_of_one_class_have_no_image_metrics() -> None:
    for labels, reason in (([0, 0, 0], "no anomalous image"), ([1, 1, 1], "no normal image")):
        metrics = ImageMetrics()
        metrics.update(torch.rand(3), labels)
        assert metrics.compute().undefined == dict.fromkeys(IMAGE_METRICS, reason)
    assert ImageMetrics().compute().undefined == dict.fromkeys(IMAGE_METRICS, "no image")


# --- image metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_image_metrics(seed: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 83)
    scores = torch.from_numpy(np.round(rng.standard_normal(83) + labels, seed)).to(dtype)
    metrics = ImageMetrics()
    metrics.update(scores[:50], labels[:50].tolist())
    metrics.update(scores[50:], torch.from_numpy(labels[50:]))
    found, expected = metrics.compute(), reference_curve(scores.double().numpy(), labels)
    for metric, value in zip(IMAGE_METRICS, expected, strict=True):
        assert found.values[metric] == pytest.approx(value, abs=1e-12)


def test_papers_add_1e_7_to_the_denominator_of_f1() -> None:
    for variant, expected in (("exact", 1.0), ("paper", 2 / (2 + 1e-7)), ("dinomaly", 2 / (2 + 1e-7))):
        metrics = ImageMetrics(variant)  # type: ignore[arg-type]
        metrics.update(torch.tensor([0.1, 0.9]), [0, 1])
        assert metrics.compute().values["i_f1max"] == expected


def test_bad_image_scores_and_labels_are_named() -> None:
    metrics = ImageMetrics()
    metrics.update(torch.tensor([0.1, 0.2]), [0, 1])
    metrics.update(torch.tensor([0.1, float("nan")]), [0, 1])
    with pytest.raises(MetricError, match="score of image 3 "):
        metrics.compute()
    metrics = ImageMetrics()
    metrics.update(torch.tensor([0.1, 0.2]), [0, -1])
    with pytest.raises(MetricError, match="label of image 1 is -1"):
        metrics.compute()
    with pytest.raises(MetricError, match="one shape"):
        metrics.update(torch.rand(3), [0, 1])


# --- one category -----------------------------------------------------------------------------------------------------------


def test_an_anomalous_image_without_mask_counts_for_image_metrics_alone() -> None:
    maps, masks = torch.from_numpy(SCORES["overlapping"]), torch.from_numpy(MASKS)
    scores, labels = maps.flatten(1).amax(1), [0, 1, 1, 1, 0, 1]
    has_pixels = [True, True, False, True, True, True]
    metrics = CategoryMetrics()
    metrics.update(maps[:4], scores[:4], masks[:4], labels[:4], has_pixels[:4])
    metrics.update(maps[4:], scores[4:], masks[4:], labels[4:])
    found = metrics.compute()
    assert list(found.values) == list(METRICS)
    keep = np.array(has_pixels)
    expected = reference(maps.numpy()[keep], MASKS[keep])
    expected |= dict(zip(IMAGE_METRICS, reference_curve(scores.numpy(), np.array(labels)), strict=True))
    assert found.values == pytest.approx(expected, abs=1e-11)


def test_a_category_without_masks_or_maps_keeps_its_image_metrics() -> None:
    for maps in (torch.rand(4, 8, 8), None):
        metrics = CategoryMetrics()
        metrics.update(maps, torch.rand(4), None, [0, 1, 0, 1])
        found = metrics.compute()
        assert found.undefined == dict.fromkeys(PIXEL_METRICS, "no image has pixel ground truth")
        assert set(found.bounds) == set(IMAGE_METRICS)


def test_images_are_numbered_within_the_category() -> None:
    maps = torch.rand(4, 8, 8)
    maps[3, 0, 0] = float("nan")
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    metrics = CategoryMetrics()
    metrics.update(maps[:3], torch.rand(3), masks[:3], [0, 1, 1], [False, True, True])
    metrics.update(maps[2:], torch.rand(2), masks[2:], [0, 1], [False, True])
    with pytest.raises(MetricError, match="image 4 "):
        metrics.compute()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MetricError, match="one shape"):
        PixelMetrics().update(torch.rand(2, 8, 8), torch.zeros(2, 8, 7, dtype=torch.bool))
    with pytest.raises(MetricError, match="bool"):
        PixelMetrics().update(torch.rand(2, 8, 8), torch.zeros(2, 8, 8))
    with pytest.raises(MetricError, match="2 maps but 3 scores"):
        CategoryMetrics().update(torch.rand(2, 8, 8), torch.rand(3), torch.zeros(2, 8, 8, dtype=torch.bool), [0, 1, 0])
    with pytest.raises(MetricError, match="has_pixels"):
        CategoryMetrics().update(torch.rand(2, 8, 8), torch.rand(2), torch.zeros(2, 8, 8, dtype=torch.bool), [0, 1], [True])
    with pytest.raises(MetricError, match="Did you mean: exact"):
        PixelMetrics("exakt")  # type: ignore[arg-type]


# --- goldens ----------------------------------------------------------------------------------------------------------------


def test_goldens_of_the_official_evaluations() -> None:
    check_anomaly_map(read_case("inp_former", "anomaly_map_s9", COMMITTED))
    check_ader_eval(read_case("inp_former", "ader_eval_s10", COMMITTED))
    check_eval_metrics(read_case("dinomaly_crr", "eval_metrics", COMMITTED))
    check_crr_evaluation(read_case("dinomaly_crr", "crr_eval", COMMITTED))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("exact_pixels", [1 << 24, 0])
def test_cuda_gives_the_same_numbers(exact_pixels: int) -> None:
    for variant in ("exact", "paper", "dinomaly"):
        here = measure(SCORES["overlapping"].astype(np.float32), variant=variant, exact_pixels=exact_pixels)
        there = measure(
            torch.from_numpy(SCORES["overlapping"]).float().cuda(), variant=variant, exact_pixels=exact_pixels, device="cuda"
        )
        for metric in PIXEL_METRICS:
            assert there.values[metric] == pytest.approx(here.values[metric], abs=1e-12)
