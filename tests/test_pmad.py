"""PMAD's parts against slow references, and the method through its contract: enter, resume, oracle, controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from methodkit import make_context
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness import params as parameters
from inpbench.harness.api import Sample
from inpbench.harness.errors import UsageError, WeightsError
from inpbench.harness.testing import MemorySnapshots, StoppedError
from inpbench.methods.pmad import INFO, banks, method, oracle
from inpbench.methods.pmad.flow import ProtoFlow
from inpbench.methods.pmad.flow_training import FlowSchedule, augmented
from inpbench.methods.pmad.mask_draws import Draws, blocks, single_patches
from inpbench.methods.pmad.masks import MaskPlan, frequency_weights, loss_weights
from inpbench.methods.pmad.model import ReconstructionModel, initialise
from inpbench.methods.pmad.params import PmadParams, weights
from inpbench.methods.pmad.proposal import best_threshold, calibrate, hidden_patches
from inpbench.methods.pmad.recon_training import ReconstructionTraining
from inpbench.methods.pmad.scoring import gaussian
from inpbench.methods.pmad.tokenizers import build_tokenizer, unit_pixels
from inpbench.methods.pmad.transformer import TrunkShape
from inpbench.methods.pmad.vq_tokenizer import VqTokenizer

TINY = TrunkShape(image=64, dim=24, depth=2, heads=2, mlp_ratio=2.0)


# --- parts against references ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 40, 56), (1, 9, 33), (2, 224, 224)])
def test_gaussian_is_scipys(shape: tuple[int, int, int]) -> None:
    maps = torch.from_numpy(np.random.RandomState(0).standard_normal(shape))
    expected = np.stack([scipy.ndimage.gaussian_filter(one, 4.0) for one in maps.numpy()])
    assert np.abs(gaussian(maps).numpy() - expected).max() < 1e-13


def test_auroc_is_sklearns_with_ties() -> None:
    from sklearn.metrics import roc_auc_score

    state = np.random.RandomState(0)
    scores, truth = state.randint(0, 12, 300).astype(float), state.randint(0, 2, 300)
    found = oracle.auroc(torch.from_numpy(scores), torch.from_numpy(truth))
    assert found == pytest.approx(roc_auc_score(truth, scores), abs=1e-15)
    assert np.isnan(oracle.auroc(torch.ones(3), torch.zeros(3)))


@pytest.mark.parametrize("seed", range(5))
def test_best_threshold_is_the_first_maximum_of_f1_on_sklearns_curve(seed: int) -> None:
    from sklearn.metrics import precision_recall_curve

    state = np.random.RandomState(seed)
    scores, truth = state.randint(0, 9, 40).astype(float), state.randint(0, 2, 40)
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    assert best_threshold(torch.from_numpy(scores), torch.from_numpy(truth)) == thresholds[np.argmax(f1[:-1])]


@pytest.mark.parametrize("dim", [6, 7])
def test_log_determinant_is_that_of_the_jacobian(dim: int) -> None:
    torch.manual_seed(0)
    flow = ProtoFlow(dim, 4, 3, seed=1).double()
    x, condition = torch.randn(1, dim, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda value: flow(value, condition)[0], x)[0, :, 0]
    assert float(flow(x, condition)[1].detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-6)
    for block in flow.module_list:
        assert torch.allclose(block.w_perm @ block.w_perm.T, torch.eye(dim, dtype=torch.float64), atol=1e-6)  # type: ignore[operator]


def test_flow_rate_joins_its_cosine() -> None:
    schedule = FlowSchedule(lr=2e-4, meta_epochs=25, per_epoch=8)
    assert schedule(0) == 2e-5
    assert schedule(15) < schedule.cosine(2) == schedule(16) == schedule(23)
    assert schedule(24 * 8) > 2e-7


def test_augmented_images_are_normalised_and_follow_the_generator() -> None:
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, again, other = (augmented(pixels, torch.float32, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    grey = augmented(torch.full((1, 3, 64, 64), 128, dtype=torch.uint8), torch.float64, torch.Generator().manual_seed(3))
    assert torch.allclose(grey[0, 0], torch.tensor((128 / 255 - 0.485) / 0.229, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"absolute": True, "shared_bias": False, "layer_scale": None, "mlp_ratio": 2.5},
        {"block_bias": True, "shared_bias": False, "qkv_bias": False},
    ],
)
def test_transformer_is_timms_beit(switches: dict[str, Any]) -> None:
    from timm.models.beit import Beit

    shape = TrunkShape(image=64, dim=24, depth=2, heads=2, **switches)
    model = ReconstructionModel(shape, 10).double().eval()
    torch.manual_seed(0)
    for value in model.parameters():
        nn.init.normal_(value, std=0.3)
    reference = (
        Beit(
            img_size=64,
            patch_size=16,
            embed_dim=24,
            depth=2,
            num_heads=2,
            num_classes=0,
            global_pool="",
            mlp_ratio=shape.mlp_ratio,
            qkv_bias=shape.qkv_bias,
            init_values=shape.layer_scale,
            use_abs_pos_emb=shape.absolute,
            use_rel_pos_bias=shape.block_bias,
            use_shared_rel_pos_bias=shape.shared_bias,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        .double()
        .eval()
    )
    reference.load_state_dict({key: value for key, value in model.state_dict().items() if key in reference.state_dict()})
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    assert torch.allclose(model.features(images, nothing), reference.forward_features(images), atol=1e-12)


def test_start_is_cut_at_one_sigma_and_shrinks_with_depth() -> None:
    model = ReconstructionModel(TINY, 10)
    torch.manual_seed(0)
    initialise(model)
    assert float(model.mask_token.detach().abs().max()) <= 0.02
    for index in range(2):
        block: Any = model.blocks[index]
        assert float(block.mlp.fc2.weight.abs().max()) <= 0.02 / (2 * (index + 1)) ** 0.5
        assert float(block.attn.qkv.weight.abs().max()) > 0.019


def test_blocks_and_patches_hide_what_they_say() -> None:
    for seed in range(20):
        assert int(single_patches(Draws(seed), 196, 58).sum()) == 58
        assert 0 < int(blocks(Draws(seed), 14, 58, 58).sum()) <= 58
        pool = torch.zeros(196, dtype=torch.bool)
        pool[:40] = True
        assert not bool((single_patches(Draws(seed), 196, 10, pool) & ~pool).any())
        assert int(single_patches(Draws(seed), 196, 50, pool).sum()) == 10  # n > P hides n - P


def test_patch_frequencies_prefer_the_busy_patch() -> None:
    image = torch.zeros(3, 64, 64)
    image[:, 16:32, 32:48] = torch.randn(3, 16, 16)
    assert int(frequency_weights(image, 16, "patch").argmax()) == 4 + 2
    assert frequency_weights(torch.zeros(3, 64, 64), 16).sum() == 0


def test_weights_of_the_loss_rise_with_the_rank() -> None:
    errors, mask = torch.tensor([5.0, 1.0, 3.0, 9.0]), torch.tensor([True, True, True, False])
    assert loss_weights(errors, mask).tolist() == [4.0, 1.0, 2.25]
    assert loss_weights(errors, torch.tensor([True, False, False, False])).tolist() == [1.0]


def test_a_batch_has_the_mean_gradient_of_its_images() -> None:
    torch.manual_seed(0)
    model = ReconstructionModel(TINY, 7).double()
    initialise(model)
    images, ids = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.randint(0, 7, (3, 16))
    masks = torch.stack([single_patches(Draws(seed), 16, 3 + seed) for seed in range(3)])

    def gradient(rows: Sequence[int]) -> Tensor:
        training = ReconstructionTraining(model, MaskPlan(4, 16, 8), [4, 4], 0, 0)
        training.errors.copy_(torch.arange(32.0).view(2, 16))
        training.start.copy_(training.errors)
        model.zero_grad()
        training.loss(images[list(rows)], ids[list(rows)], masks[list(rows)], [row % 2 for row in rows], 0).backward()
        return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])

    alone = torch.stack([gradient([row]) for row in range(3)]).mean(0)
    assert torch.allclose(gradient(range(3)), alone, atol=1e-12)


def test_masks_see_the_errors_of_the_epochs_start() -> None:
    training = ReconstructionTraining(ReconstructionModel(TINY, 7), MaskPlan(4, 16, 8), [4], 0, 0)
    image = torch.randn(3, 64, 64)
    training.begin(1)
    first = [training.mask(image, index, 0, 1) for index in range(12)]
    training.errors[0] = torch.arange(16.0)
    assert all(torch.equal(one, training.mask(image, index, 0, 1)) for index, one in enumerate(first))
    training.begin(2)
    assert torch.equal(training.start[0], training.errors[0])


def test_hidden_patches_and_constants() -> None:
    ranked = torch.tensor([[3.0, 1.0, 2.0, 2.0]])
    assert hidden_patches(ranked, 2).tolist() == [[True, False, True, True]]  # a tie with the last one is hidden, too
    assert not hidden_patches(ranked, 0).any()
    likelihood = torch.randn(10, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = calibrate(likelihood, (28, 28), 0.95)
    assert found.level == float(likelihood.max()) and 0.0 < found.peak <= 1.0


def test_tokenizer_files_are_checked() -> None:
    tokenizer = VqTokenizer(replace(TINY, absolute=True, shared_bias=False, layer_scale=None), 16, 4, 1, 8)
    state = tokenizer.official_state()
    tokenizer.load_official({**state, "teacher_model.x": torch.ones(1), "scaling_layer.scale": torch.ones(1)})
    with pytest.raises(WeightsError, match="never initialised"):
        tokenizer.load_official({**state, "quantize.embedding.initted": torch.zeros(1)})
    with pytest.raises(WeightsError, match="missing"):
        tokenizer.load_official({key: value for key, value in state.items() if not key.startswith("decoder")})


def test_tokens_are_of_the_same_pixels() -> None:
    images = (torch.rand(2, 3, 224, 224) - 0.45) / 0.225
    assert unit_pixels(images, 224).max() <= 1.0 and unit_pixels(images, 112).shape == (2, 3, 112, 112)
    tokenizer: Any = build_tokenizer(tiny(), make_context(dtype=torch.float32))
    train = Pictures(("a",), 2)
    tokenizer.fit(train, lambda batch: unit_pixels(batch, tokenizer.input_size))
    pixels = unit_pixels(train.batch([0]), tokenizer.input_size)
    tokens = tokenizer.tokens(pixels)[0]
    slow = [int((tokenizer.centres @ token).argmax()) for token in tokens]
    assert tokenizer(pixels)[0].tolist() == slow and len(set(slow)) > 1


# --- banks ----------------------------------------------------------------------------------------------------------


def test_held_out_images_give_no_prototypes() -> None:
    kept, aside = banks.split(range(100, 111), 0.2)
    assert aside == [104, 109] and sorted(kept + aside) == list(range(100, 111))
    assert banks.split(range(3), 0.2) == ([0, 1, 2], [0, 1, 2])
    assert banks.split(range(30), 0.0) == (list(range(30)), list(range(30)))


def test_banks_survive_any_category_name() -> None:
    known = {
        name: banks.Bank(torch.randn(4, 3), method.Calibration(1.5, 0.5, 0.1), (7, 99)) for name in ("mvtec/a.b", "constants/x y")
    }
    found = banks.from_state(dict(banks.to_state(known)), 3, torch.device("cpu"), torch.float32)
    assert all(torch.equal(found[name].prototypes, known[name].prototypes) for name in known)
    assert {name: found[name][1:] for name in known} == {name: known[name][1:] for name in known}
    with pytest.raises(WeightsError, match="prototypes of"):
        banks.from_state(dict(banks.to_state(known)), 5, torch.device("cpu"), torch.float32)


def test_pooled_constants_are_the_loosest() -> None:
    one = banks.Bank(torch.zeros(2, 3), method.Calibration(0.0, 0.5, 0.1), (1, 1))
    two = banks.Bank(torch.ones(3, 3), method.Calibration(-1.0, 0.9, 0.2), (1, 1))
    both = banks.pooled({"a": one, "b": two})
    assert len(both.prototypes) == 5 and both.constants == (0.0, 0.5, 0.2)  # 0.9 of level -1 is 0.33 of level 0


# --- the method -----------------------------------------------------------------------------------------------------


class Cheap(nn.Module):
    """Feature maps of the right grids from pooled pixels: a fraction of a real extractor's time."""

    channels = 12

    def forward(self, images: Tensor) -> list[Tensor]:
        both = torch.cat((images, images * images), dim=1)
        return [F.avg_pool2d(both, 8), F.avg_pool2d(both, 16)]


class Pictures:
    """Images of oblique waves in memory, a few of each category; every second image of `defects` has a square."""

    def __init__(self, categories: tuple[str, ...], each: int, defects: bool = False) -> None:
        self.categories = categories
        self.samples = [
            Sample(f"{c}/{i}.png", c, "test" if defects else "train", int(defects and i % 2))
            for c in categories
            for i in range(each)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def _image(self, index: int) -> Tensor:
        sample = self.samples[index]
        at, period = torch.arange(224.0), 9.0 + 8.0 * (sum(map(ord, sample.category)) % 3)
        number = float(sample.image.split("/")[-1].split(".")[0])
        image = torch.sin((at[:, None] + 0.7 * at + 3.0 * number) * (6.28 / period)).expand(3, -1, -1).clone()
        image += 0.1 * torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(index + 7 * sample.label))
        if sample.label:
            image[:, 60:110, 90:140] = 2.0
        return image

    def batch(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._image(index) for index in indices])

    def masks(self, indices: Sequence[int]) -> Tensor:
        masks = torch.zeros(len(indices), 224, 224, dtype=torch.bool)
        for row, index in enumerate(indices):
            masks[row, 60:110, 90:140] = bool(self.samples[index].label)
        return masks

    def pixels(self, indices: Sequence[int]) -> Tensor:
        return self.batch(indices).mul(32).add(128).clamp(0, 255).to(torch.uint8)


@pytest.fixture(autouse=True)
def _cheap_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "build_extractor", lambda name, spec, fine, ctx: Cheap().to(ctx.dtype).eval())


def tiny(**changes: Any) -> PmadParams:
    smoke = {**INFO.presets["smoke"], "encoder": "builtin", "flow_epochs": 2, **changes}
    params: PmadParams = parameters.build("pmad", PmadParams, smoke)
    return params


def made(snapshots: Any = None, engine: str = "fast", **changes: Any) -> method.Pmad:
    return method.Pmad(tiny(**changes), make_context(dtype=torch.float32, engine=engine, snapshots=snapshots))


SEEN = ("mast", "hull")


def test_an_unseen_category_is_entered_by_its_normal_images() -> None:
    pmad = made()
    pmad.fit(Pictures(SEEN, 6))
    assert set(pmad.banks) == set(SEEN)
    with pytest.raises(UsageError, match="normal images of sail"):
        pmad.enter("sail", None)
    pmad.enter("sail", Pictures(("sail",), 5))
    images = Pictures(("sail",), 4, defects=True).batch(range(4))
    as_sail = pmad.predict(images)
    pmad.enter("mast", None)
    as_mast = pmad.predict(images)
    assert not torch.allclose(as_sail.amap, as_mast.amap)
    alone = made()
    alone.load_state({key: value for key, value in pmad.state().items() if not key.startswith("bank/hull")})
    alone.enter("sail", None)
    assert torch.equal(alone.predict(images).amap, as_sail.amap)
    assert as_sail.score is not None and torch.allclose(as_sail.score[0], alone.predict(images[:1]).score[0], rtol=1e-4)  # type: ignore[index]


def test_a_category_is_made_again_only_from_other_images() -> None:
    pmad = made(scoring="flow")
    pmad.fit(Pictures(SEEN, 6))
    before = pmad.banks["hull"]
    whole, mine = Pictures(SEEN, 6), Pictures(("hull",), 6)
    pmad.enter("hull", mine)
    assert pmad.banks["hull"] is before
    pmad.enter("hull", Pictures(("hull",), 1))  # one shot: prototypes and constants from the same image
    assert pmad.banks["hull"] is not before and pmad.banks["hull"].images[0] == 1
    assert torch.isfinite(pmad.predict(whole.batch([0])).amap).all()


def test_defects_stand_out_in_every_scoring() -> None:
    test = Pictures(("mast",), 6, defects=True)
    for scoring, parts in (("full", {"flow", "tokenizer", "model"}), ("flow", {"flow"}), ("nearest", set())):
        pmad = made(scoring=scoring)
        pmad.fit(Pictures(("mast",), 8))
        assert set(pmad._parts()) == parts
        pmad.enter("mast", Pictures(("mast",), 8))
        found = pmad.predict(test.batch(range(6)))
        assert found.amap.shape == (6, 224, 224) and found.score is not None
        assert float(found.score[1::2].min()) > float(found.score[::2].max()), scoring
        rows, columns = np.unravel_index(found.amap.flatten(1).argmax(1).numpy(), (224, 224))
        assert all(40 <= rows[i] < 130 and 70 <= columns[i] < 160 for i in (1, 3, 5)), scoring


@pytest.mark.parametrize("stage", ["flow", "reconstruction"])
def test_a_fit_killed_in_either_training_ends_with_the_same_bits(stage: str) -> None:
    class KilledIn(MemorySnapshots):
        def save(self, state: Any) -> None:
            super().save(state)
            if state["stage"] == stage and not self.killed:
                self.killed = True
                raise StoppedError

        killed = False

    train = Pictures(SEEN, 6)
    whole, snapshots = made(), KilledIn(always=True)
    whole.fit(train)
    with pytest.raises(StoppedError):
        made(snapshots).fit(train)
    again = made(snapshots)
    again.fit(train)
    assert again.state().keys() == whole.state().keys()
    assert all(torch.equal(value, again.state()[key]) for key, value in whole.state().items())


def test_engines_agree() -> None:
    train = Pictures(("mast",), 6)
    fast, reference = made(scoring="flow"), made(engine="reference", scoring="flow")
    fast.fit(train)
    reference.fit(train)
    for key, value in fast.state().items():
        assert torch.allclose(value, reference.state()[key], rtol=1e-4, atol=1e-6), key


def test_augmented_flow_and_gate_run() -> None:
    pmad = made(scoring="flow", flow_augment=True)
    pmad.fit(Pictures(("mast",), 6))
    gated = made(gate=True, quantile=0.9, epochs=1)
    gated.fit(Pictures(("mast",), 6))
    gated.enter("mast", None)
    images = Pictures(("mast",), 2).batch([0, 1])
    assert torch.equal(gated.predict(images).amap, gated.predict(images).amap)
    shown = gated.explain(images)
    assert shown["hidden"].shape == (2, 1, 14, 14) and int(shown["hidden"][0].sum()) >= 58
    assert shown["abnormality"].shape == (2, 1, 28, 28)


def test_oracle_reports_the_best_ratios_of_the_test_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "RATIOS", oracle.RATIOS[2:22:6])
    pmad = made(oracle=True)
    assert pmad.params.selection == "oracle" and PmadParams().selection == "last"
    train, test = Pictures(("mast",), 6), Pictures(("mast",), 6, defects=True)
    pmad.fit(train)
    pmad.enter("mast", train)
    with pytest.raises(UsageError, match="looked at the test labels"):
        pmad.predict(test.batch([0]))
    seen: list[oracle.Ratio] = []
    original = oracle.Evaluation.at

    def spy(self: oracle.Evaluation, index: int, batch_size: int = 16) -> oracle.Ratio:
        seen.append(original(self, index, batch_size))
        return seen[-1]

    monkeypatch.setattr(oracle.Evaluation, "at", spy)
    pmad.consult(test)
    found = pmad.predict(test.batch(range(6)))
    labels = torch.tensor([sample.label for sample in test.samples])
    assert found.score is not None and len(seen) == 4
    assert oracle.auroc(found.score, labels) == max(one.image_auroc for one in seen)
    assert oracle.auroc(found.amap, test.masks(range(6))) == pytest.approx(max(one.pixel_auroc for one in seen), abs=1e-6)
    alone = torch.cat([pmad.predict(test.batch([index])).amap for index in range(6)])
    assert torch.allclose(alone, found.amap, rtol=1e-3, atol=1e-5)
    copy = made(oracle=True)
    copy.load_state(pmad.state())
    copy.enter("mast", None)
    assert torch.equal(copy.predict(test.batch([1])).amap, pmad.predict(test.batch([1])).amap)


# --- parameters -----------------------------------------------------------------------------------------------------


def test_files_of_the_presets() -> None:
    names = [[spec.name for spec in weights(parameters.build("pmad", PmadParams, preset))] for preset in INFO.presets.values()]
    assert names[0] == ["tf_efficientnet_b6", "vqkd_clip", "beit_base_16_pt22k"]
    assert names[list(INFO.presets).index("demo")] == ["tf_efficientnet_b6", "builtin"]
    assert [spec.source for spec in weights(tiny())] == ["builtin"]
    assert [spec.name for spec in weights(PmadParams(scoring="flow"))] == ["tf_efficientnet_b6"]
    assert [spec.name for spec in weights(PmadParams(encoder="builtin"))] == ["builtin"]
    assert weights(PmadParams(tokenizer="dalle"))[1].file == "dalle_encoder.pth"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"encoder": "dinov2reg_vit_base_14"}, "pmad.encoder"),
        ({"fine": "14"}, "pmad.fine"),
        ({"dim": "770"}, "pmad.dim"),
        ({"dim": "384", "heads": "6"}, "pmad.start"),
        ({"ratio": "0"}, "pmad.ratio"),
        ({"hide": "0.001"}, "pmad.hide"),
        ({"held_out": "1"}, "pmad.held_out"),
        ({"position_dim": "30"}, "pmad.position_dim"),
        ({"oracle": "true", "scoring": "flow"}, "pmad.oracle"),
        ({"epochs": "0"}, "pmad.epochs"),
        ({"token_encoder": "dino"}, "Unknown encoder"),
        ({"tokenizer": "vq"}, "pmad.tokenizer"),
    ],
)
def test_impossible_parameters_are_refused(changes: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parameters.build("pmad", PmadParams, changes)
