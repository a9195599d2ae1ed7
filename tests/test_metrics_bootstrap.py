"""The bootstrap against metrics computed anew for every draw, and its coverage where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from inpbench.harness.errors import MetricError
from inpbench.harness.metrics import IMAGE_METRICS, METRICS, PIXEL_METRICS
from inpbench.harness.metrics.bootstrap import (
    bootstrap,
    draw_metrics,
    draw_weights,
    image_draws,
    left_out_weights,
    pixel_counts,
    pixel_draws,
)
from inpbench.harness.metrics.category import CategoryMetrics


def category(seed: int, images: int = 14, side: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Maps, masks, scores and labels; every second image is anomalous, images differ by a shift of their own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    masks = ndimage.gaussian_filter(rng.standard_normal((images, side, side)), (0, 2, 2)) > 0.15
    masks[labels == 0] = False
    masks[labels == 1, 3, 4] = True
    maps = rng.standard_normal(masks.shape) + 1.2 * masks + 0.3 * rng.standard_normal((images, 1, 1))
    return maps.astype(np.float32), masks, maps.reshape(images, -1).max(1), labels


def by_repetition(maps: np.ndarray, masks: np.ndarray, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """METRICS (7, D): the images of each draw as often as they are drawn, through the metrics of the bench."""
    values = []
    for weight in weights:
        drawn = np.repeat(np.arange(labels.size), weight.astype(int))
        metrics = CategoryMetrics()
        metrics.update(*(torch.from_numpy(part[drawn]) for part in (maps, scores, masks, labels)))
        values.append([metrics.compute().values[name] for name in METRICS])
    return np.array(values).T


@pytest.mark.parametrize("levels", [None, 40])
def test_draws_are_the_metrics_of_the_drawn_images(levels: int | None) -> None:
    maps, masks, scores, labels = category(0)
    if levels:
        maps, scores = np.round(maps * levels / 8), np.round(scores)
    weights = draw_weights(labels, 12, seed=3)
    expected = by_repetition(maps, masks, scores, labels, weights)
    counts = pixel_counts(maps, masks, bins=1 << 14)  # every score is a bin
    found = image_draws(scores, labels, weights) | pixel_draws(counts, weights)
    assert list(found) == list(METRICS)
    assert counts.tied.all()
    assert np.allclose(np.array(list(found.values())), expected, atol=1e-11)


def test_quantile_bins_are_close_to_every_draw() -> None:
    maps, masks, scores, labels = category(1, images=20, side=48)
    weights = draw_weights(labels, 10, seed=0)
    expected = by_repetition(maps, masks, scores, labels, weights)[3:]
    counts = pixel_counts(maps, masks)
    assert counts.tied.size <= 1024 and not counts.tied.all()
    found = np.array(list(pixel_draws(counts, weights).values()))
    assert np.abs(found - expected).max() < 2e-3 < expected.std(axis=1).max()


def test_counts_of_every_image() -> None:
    maps, masks, _, _ = category(2)
    counts = pixel_counts(maps, masks, bins=64)
    assert np.array_equal(counts.anomalous.sum(1), masks.sum((1, 2)))
    assert np.array_equal(counts.normal.sum(1), (~masks).sum((1, 2)))
    regions = [ndimage.label(mask, structure=np.ones((3, 3)))[1] for mask in masks]
    assert counts.regions.tolist() == regions
    assert np.allclose(counts.share.sum(1), regions)


def test_intervals_enclose_the_value_and_repeat_with_their_seed() -> None:
    maps, masks, scores, labels = category(3, images=30)
    counts = pixel_counts(maps, masks)
    first, again = (bootstrap(scores, labels, counts, seed=5, draws=300) for _ in range(2))
    assert first == again != bootstrap(scores, labels, counts, seed=6, draws=300)
    assert set(first.values) == set(METRICS) and not first.undefined
    metrics = CategoryMetrics()
    metrics.update(*(torch.from_numpy(part) for part in (maps, scores, masks, labels)))
    for name, value in metrics.compute().values.items():
        low, high = first.values[name]
        assert low <= value <= high and 0 < high - low < 0.5, name
    narrow = bootstrap(scores, labels, counts, seed=5, draws=300, level=0.5)
    for name in PIXEL_METRICS:
        assert narrow.values[name].high - narrow.values[name].low < first.values[name].high - first.values[name].low


def test_a_draw_has_as_many_images_of_each_label() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 0, 1])
    weights = draw_weights(labels, 50, seed=1)
    assert (weights[:, labels == 0].sum(1) == 4).all() and (weights[:, labels == 1].sum(1) == 5).all()
    assert weights.std(axis=0).min() > 0


def test_the_jackknife_is_the_metrics_without_each_image() -> None:
    maps, masks, scores, labels = category(7, images=8)
    counts = pixel_counts(maps, masks, bins=1 << 14)
    drawn = draw_metrics(scores, labels, counts, seed=0, draws=2)
    # Integer weights in the ratio of those of the jackknife: 4 of a class, of which one is left out.
    weights = np.where(labels[None] == labels[:, None], 4, 3) * (1 - np.eye(8))
    expected = by_repetition(maps, masks, scores, labels, weights) - by_repetition(maps, masks, scores, labels, np.ones((1, 8)))
    for row, metric in enumerate(METRICS):
        tolerance = 2e-3 if metric == "p_ap" else 1e-11  # of a bin with weights of 4/3, the first anomalous pixel counts one
        assert np.allclose(drawn.changes[metric], expected[row], atol=tolerance), metric


def test_many_images_are_left_out_in_groups() -> None:
    labels = np.repeat((0, 1), (600, 3))
    weights, first = left_out_weights(labels)
    assert weights.shape == (203, 603) and len(set(first)) == 203
    assert ((weights == 0).sum(1)[:200] == 3).all() and np.allclose(weights.sum(1), 603)
    assert (weights[:200] == 0).sum(0)[:600].tolist() == [1] * 600


def test_metrics_without_interval_say_why() -> None:
    maps, masks, scores, labels = category(4)
    assert bootstrap(scores, labels, seed=0, draws=20).undefined == dict.fromkeys(PIXEL_METRICS, "no image has pixel ground truth")
    one = np.array([0, 1, *[0] * 12])
    reason = "1 anomalous image: nothing to draw from"
    assert bootstrap(scores, one, pixel_counts(maps, masks), seed=0, draws=20).undefined == dict.fromkeys(METRICS, reason)
    found = bootstrap(scores, np.ones(14, int), pixel_counts(maps, masks), seed=0, draws=20)
    assert found.undefined == dict.fromkeys(IMAGE_METRICS, "no normal image: nothing to draw from")
    assert set(found.values) == set(PIXEL_METRICS)
    masks[3:] = False
    found = bootstrap(scores, labels, pixel_counts(maps, masks), seed=0, draws=200)
    assert set(found.undefined) == set(PIXEL_METRICS) and "draws hold no anomalous" in found.undefined["aupro"]
    found = bootstrap(scores, labels, pixel_counts(maps, masks & False), seed=0, draws=20)
    assert found.undefined == dict.fromkeys(PIXEL_METRICS, "no anomalous pixel in the masks")


def test_images_without_pixels_count_for_image_metrics_alone() -> None:
    maps, masks, scores, labels = category(5)
    has = np.arange(14) != 3
    found = bootstrap(scores, labels, pixel_counts(maps[has], masks[has]), has, seed=2, draws=40)
    weights = draw_weights(labels, 40, 2)
    expected = pixel_draws(pixel_counts(maps[has], masks[has]), weights[:, has])["p_ap"]
    drawn = draw_metrics(scores, labels, pixel_counts(maps[has], masks[has]), has, seed=2, draws=40)
    assert np.array_equal(drawn.values["p_ap"], expected) and set(found.values) == set(METRICS)


def test_what_does_not_fit_is_refused() -> None:
    maps, masks, scores, labels = category(6)
    counts = pixel_counts(maps, masks)
    with pytest.raises(MetricError, match="14 images are counted"):
        bootstrap(scores, labels, counts, np.arange(14) > 0, seed=0)
    with pytest.raises(MetricError, match="one shape"):
        bootstrap(scores, labels[1:], counts, seed=0)
    with pytest.raises(MetricError, match="one shape"):
        pixel_counts(maps, masks[1:])
    with pytest.raises(MetricError, match="finite"):
        bootstrap(scores, labels, counts, seed=0, draws=1)
    maps[2, 1, 1] = np.nan
    with pytest.raises(MetricError, match="NaN"):
        pixel_counts(maps, masks)
