"""WinCLIP: the harmonic map by brute force, the category's state, variants, and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY, bench
from golden_clip import References
from methodkit import make_context
from sklearn.metrics import auc, f1_score, precision_recall_curve
from torch import Tensor

from inpbench.harness.errors import UsageError, WeightsError
from inpbench.methods.winclip import WinClipParams
from inpbench.methods.winclip.method import WinClip
from inpbench.methods.winclip.official import grid_f1max, tile_boxes, trapezoid_aupr
from inpbench.methods.winclip.windows import harmonic_map, window_index

SMALL = WinClipParams(model="tiny")


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 96, 96, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def method(setting: str, params: WinClipParams = SMALL, **entered: Any) -> WinClip:
    made = WinClip(params, make_context(setting=setting))
    for category, references in entered.items():
        made.enter(category, None if references is None else References(references))  # type: ignore[arg-type]
    return made


# --- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "scale"), [(4, 2), (5, 3), (3, 3)])
def test_harmonic_map_by_brute_force(side: int, scale: int) -> None:
    index = window_index(side, scale)
    assert index.shape == ((side - scale + 1) ** 2, scale**2)
    assert index[0].tolist() == [1 + row * side + column for row in range(scale) for column in range(scale)]
    scores = torch.rand(2, len(index), generator=torch.Generator().manual_seed(side), dtype=torch.float64) + 0.1
    found = harmonic_map(scores, side, scale)
    for image in range(2):
        for patch in range(side * side):
            inside = [1 / float(scores[image, j]) for j, places in enumerate(index.tolist()) if patch + 1 in places]
            assert float(found[image].flatten()[patch]) == pytest.approx(len(inside) / sum(inside), rel=1e-12)


def test_a_window_that_is_a_reference_makes_its_patches_zero() -> None:
    scores = torch.full((1, 9), 0.5)
    scores[0, 4] = 0.0
    amap = harmonic_map(scores, 4, 2)[0]
    assert (amap[1:3, 1:3] == 0).all() and amap[0, 0] == 0.5 and torch.isfinite(amap).all()


# --- the category ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["anomalib", "mala_lab"])
def test_a_reference_itself_has_no_distance(variant: Any) -> None:
    shown = pictures(2)
    few = method("few_shot", WinClipParams(model="tiny", variant=variant), nut=shown)
    zero = method("zero_shot", WinClipParams(model="tiny", variant=variant), nut=None)
    seen, unseen = few.predict(shown[1:]), few.predict(pictures(1, seed=5))
    baseline = zero.predict(torch.cat((shown[1:], pictures(1, seed=5))))
    assert baseline.score is not None and seen.score is not None and unseen.score is not None
    assert float(seen.score) == pytest.approx(float(baseline.score[0]) / 2, abs=1e-9)  # only the words are left
    assert float(unseen.score) > float(baseline.score[1]) / 2 + 1e-4


@pytest.mark.parametrize(("variant", "scale"), [("anomalib", 1 / 0.07), ("mala_lab", 100.0)])
@pytest.mark.parametrize("count", [1, 4])
def test_maps_and_scores_by_brute_force(variant: Any, scale: float, count: int) -> None:
    """From the embeddings on, window by window and reference by reference, as the formulas have it."""
    shown, query = pictures(count), pictures(1, seed=8)
    found = method("few_shot", WinClipParams(model="tiny", variant=variant), nut=shown)
    own, kept = found.features(query), [found.features(image[None]) for image in shown]
    side, text = found.side, found.prototypes("nut").numpy()

    def cosine(a: Any, b: Any) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    def anomalous(embedding: Any) -> float:
        normal, other = (np.exp(scale * cosine(embedding, word)) for word in text)
        return float(other / (normal + other))

    def nearest(one: Any, others: list[Any]) -> float:
        return min((1 - cosine(one, other)) / 2 for other in others)

    def spread(values: list[float], size: int) -> Any:
        corners, amap = side - size + 1, np.zeros((side, side))
        for row, column in np.ndindex(side, side):
            covering = [
                r * corners + c for r, c in np.ndindex(corners, corners) if row - r in range(size) and column - c in range(size)
            ]
            amap[row, column] = len(covering) / sum(1 / values[window] for window in covering)
        return amap

    word = anomalous(own.pooled[0].numpy())
    few, zero = np.zeros((side, side)), np.full((side, side), 1 / word)
    for i, size in enumerate((2, 3)):
        windows = own.windows[i][0].numpy()
        few += spread([nearest(one, [other for part in kept for other in part.windows[i][0].numpy()]) for one in windows], size)
        zero += 1 / spread([anomalous(one) for one in windows], size)
    patches = [nearest(one, [other for part in kept for other in part.patches[0].numpy()]) for one in own.patches[0].numpy()]
    few = (few + np.reshape(patches, (side, side))) / 3
    prediction = found.predict(query)
    assert prediction.score is not None
    assert float(prediction.score) == pytest.approx((word + few.max()) / 2, rel=1e-9)
    expected = few if variant == "mala_lab" else (3 / zero + few) / 2
    if variant == "anomalib":  # enlarged to the input
        small = torch.from_numpy(expected)[None, None]
        expected = torch.nn.functional.interpolate(small, size=query.shape[-2:], mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(prediction.amap[0].numpy(), expected, rtol=1e-9)


def test_every_number_of_references_works() -> None:
    for count in (1, 3, 5):
        made = method("few_shot", nut=pictures(count))
        assert made._references is not None and len(made._references.patches) == count * 36
        assert torch.isfinite(made.predict(pictures(2, seed=3)).amap).all()


def test_zero_shot_of_mala_lab_has_no_map() -> None:
    prediction = method("zero_shot", WinClipParams(model="tiny", variant="mala_lab"), nut=None).predict(pictures(2))
    assert prediction.score is not None
    assert torch.equal(prediction.amap, prediction.score[:, None, None].expand(2, 6, 6))


def test_the_words_matter_and_the_last_category_counts() -> None:
    made = method("zero_shot", nut=None)
    nut = made.predict(pictures(2)).amap
    made.enter("candle", None)
    candle = made.predict(pictures(2)).amap
    made.enter("nut", None)
    assert not torch.equal(nut, candle) and torch.equal(made.predict(pictures(2)).amap, nut)


def test_a_kept_model_knows_the_categories_it_entered() -> None:
    made = method("few_shot", nut=pictures(2), candle=pictures(1, seed=8))
    state = made.state()
    assert {key: len(value) for key, value in state.items()} == {"references/nut": 2, "references/candle": 1}
    again = method("few_shot")
    again.load_state(state)
    again.enter("candle", None)
    expected, found = made.predict(pictures(3, seed=4)), again.predict(pictures(3, seed=4))
    assert expected.score is not None and found.score is not None
    assert torch.equal(expected.amap, found.amap) and torch.equal(expected.score, found.score)
    with pytest.raises(UsageError, match=r"winclip needs normal images of screw, .* it kept those of: nut, candle"):
        again.enter("screw", None)
    with pytest.raises(WeightsError, match="unexpected mean"):
        again.load_state({"mean": torch.zeros(3)})


def test_nothing_is_predicted_before_a_category_is_entered() -> None:
    with pytest.raises(UsageError, match="does not know what it looks at"):
        method("zero_shot").predict(pictures(1))


# --- what the repository does around it ---------------------------------------------------------------------------------


def test_metrics_of_the_repository_against_sklearn() -> None:
    state = np.random.RandomState(2)
    labels = (state.rand(60) < 0.4).astype(np.int64)
    scores = np.round(0.3 * labels + 0.7 * state.rand(60), 2)  # with ties
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert trapezoid_aupr(scores, labels) == pytest.approx(auc(recall, precision), rel=1e-12)
    best = max(f1_score(labels, scores > step / 100, zero_division=0.0) for step in range(100))
    assert grid_f1max(scores, labels) == pytest.approx(best, rel=1e-12)


def test_tiles_of_a_square_and_of_a_portrait() -> None:
    assert tile_boxes((300, 300)) == [(0, 0, 300, 300)]
    assert tile_boxes((200, 100)) == [(0, 0, 100, 100), (80, 0, 180, 100), (100, 0, 200, 100)]  # to the right, as the repository


# --- as a user ------------------------------------------------------------------------------------------------------


def test_from_the_command_line(tmp_path: Path) -> None:
    common = [*TINY, "--methods", "winclip", "--preset", "smoke", "--weights", "random", "--results", tmp_path, "--json"]
    zero = bench("run", *common, "--setting", "zero_shot")
    few = bench("run", *common, "--setting", "few_shot", "--shots", "1")
    assert zero.code == 0 and few.code == 0, zero.err + few.err
    files = sorted(path for path in tmp_path.rglob("*.models/*.safetensors"))
    assert len(files) == 2
    again = bench("run", *common, "--setting", "zero_shot")
    assert again.code == 0 and "1 done" in again.err + again.out


def test_without_weights_the_command_line_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INPBENCH_WEIGHTS", raising=False)
    done = bench("run", *TINY, "--methods", "winclip", "--setting", "zero_shot", "--results", tmp_path)
    assert done.code == 3 and "vit_b_16_plus_240-laion400m_e31" in done.err + done.out and "--weights random" in done.err + done.out
