"""InCTRL: batches and prompts, the training (cached or not, stopped or not), official checkpoints, and the command line."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import trees
from commands import bench
from golden_clip import References
from golden_inctrl import official
from methodkit import make_context
from torch import Tensor

from inpbench.harness.api import Context, Sample
from inpbench.harness.errors import DataError, UsageError, WeightsError
from inpbench.harness.testing import MemorySnapshots, StoppedError
from inpbench.harness.weights import WeightStore
from inpbench.methods.inctrl import InCtrlParams
from inpbench.methods.inctrl.method import InCtrl
from inpbench.methods.inctrl.model import Encoded, batch_residuals, focal_terms, repeated, residuals
from inpbench.methods.inctrl.sampler import BalancedOrder, PromptDraw, balanced_batches

TINY_PARAMS: dict[str, Any] = {"model": "tiny", "epochs": 2, "steps_per_epoch": 3, "batch_size": 4}


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 96, 96, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Source:
    """Two categories of noise, every third image anomalous. Implements `harness.api.TrainingSet`."""

    categories = ("nut", "set/metal_nut")

    def __init__(self, count: int = 18, labels: tuple[int, ...] = (0, 0, 1)) -> None:
        self.samples = [Sample(f"{i}.png", self.categories[i % 2], "train", labels[i % len(labels)]) for i in range(count)]
        self.images = pictures(count, seed=7)
        self.read = 0

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Any) -> Tensor:
        self.read += len(list(indices))
        return self.images[list(indices)]


def made(engine: str = "fast", shots: int = 2, snapshots: Any = None, **changes: Any) -> InCtrl:
    context: Context = make_context(engine=engine, setting="generalist", snapshots=snapshots)
    context.shots = shots
    return InCtrl(InCtrlParams(**{**TINY_PARAMS, **changes}), context)


def enter(method: InCtrl, category: str = "nut") -> None:
    method.enter(category, References(pictures(2, seed=3)))  # type: ignore[arg-type]


# --- batches and prompts ----------------------------------------------------------------------------------------------


def test_batches_are_balanced_and_use_everything_before_anything_twice() -> None:
    rows = list(islice(balanced_batches(range(6), range(6, 11), 5, seed=1), 15))
    assert all([index < 6 for index in row] == [True, True, False, False, False] for row in rows)
    normal = [index for row in rows for index in row[:2]]
    assert all(sorted(normal[i : i + 6]) == list(range(6)) for i in range(0, 30, 6))
    anomalous = [index for row in rows for index in row[2:]]
    assert all(sorted(anomalous[i : i + 5]) == list(range(6, 11)) for i in range(0, 45, 5))


def test_the_evaluation_after_an_epoch_advances_the_walk() -> None:
    stream = list(islice(balanced_batches(range(6), range(6, 11), 4, seed=2), 8))
    order = BalancedOrder(range(6), range(6, 11), 4, epochs=2, per_epoch=2, seed=2)
    assert [order.batch(step) for step in range(4)] == [stream[0], stream[1], stream[4], stream[5]]


def test_prompts_are_normal_images_of_the_same_category() -> None:
    samples = Source().samples
    draw = PromptDraw(samples, 2, seed=1)
    queries = [0, 1, 2, 5]
    seen: Counter[int] = Counter()
    for step in range(60):
        prompts = draw.of_step(step, queries)
        assert prompts == PromptDraw(samples, 2, seed=1).of_step(step, queries)
        for place, prompt in enumerate(prompts):
            assert samples[prompt].label == 0 and samples[prompt].category == samples[queries[place % 4]].category
        assert all(prompts[i] != prompts[4 + i] for i in range(4))  # without replacement
        seen.update(prompts)
    assert set(seen) == {i for i, sample in enumerate(samples) if sample.label == 0}
    with pytest.raises(DataError, match="draws 7 normal images of nut as prompts, the source has 6"):
        PromptDraw(samples, 7, seed=1)
    with pytest.raises(UsageError, match="shots of at least 1"):
        PromptDraw(samples, 0, seed=1)


# --- residuals --------------------------------------------------------------------------------------------------------


def encoded(count: int, seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    layers = torch.randn(3, count, 5, 4, generator=generator, dtype=torch.float64)
    return Encoded(torch.nn.functional.normalize(layers, dim=-1), torch.randn(count, 6, generator=generator, dtype=torch.float64))


def test_each_query_is_compared_with_its_own_prompts() -> None:
    queries, prompts = encoded(3, 1), encoded(6, 2)  # two prompts a query, prompt s of query i at s * 3 + i
    found, pooled = batch_residuals(queries, prompts, official=False)
    for i in range(3):
        mine = [i, 3 + i]
        assert torch.equal(pooled[i], prompts.pooled[mine])
        for layer in range(3):
            for patch in range(5):
                tokens = prompts.layers[layer, mine].reshape(-1, 4)
                slow = min(0.5 * (1 - float(queries.layers[layer, i, patch] @ token)) for token in tokens)
                assert float(found.slots[i, layer, patch]) == pytest.approx(slow, abs=1e-14)
    torch.testing.assert_close(found.amap, found.slots.mean(1))


def test_one_list_of_prompts_for_all_and_the_official_reshape() -> None:
    queries, prompts = encoded(4, 1), encoded(2, 2)
    own, _ = batch_residuals(queries, repeated(prompts, 4), official=False)
    torch.testing.assert_close(residuals(queries, prompts).slots, own.slots, rtol=0, atol=1e-14)
    scrambled, _ = batch_residuals(queries, repeated(prompts, 4), official=True)
    assert (scrambled.amap - own.amap).abs().max() > 1e-3
    one = Encoded(queries.layers[:, :1], queries.pooled[:1])
    alone = [batch_residuals(one, prompts, official=flag)[0].amap for flag in (False, True)]
    torch.testing.assert_close(*alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("batch", "shots"), [(1, 8), (2, 4), (3, 8), (5, 2)])
def test_the_official_reshape_by_its_arithmetic(batch: int, shots: int) -> None:
    """Row i, slot j: layer (3i + j) // B of query (3i + j) % B against prompts ((3i + j) % B) K ... + K - 1 of that layer."""
    queries, prompts = encoded(batch, 1), encoded(batch * shots, 2)
    found, pooled = batch_residuals(queries, prompts, official=True)
    for row in range(batch):
        assert torch.equal(pooled[row], prompts.pooled[row * shots : (row + 1) * shots])
        for slot in range(3):
            layer, query = divmod(3 * row + slot, batch)
            tokens = prompts.layers[layer, query * shots : (query + 1) * shots].reshape(-1, 4)
            for patch in range(5):
                slow = min(0.5 * (1 - float(queries.layers[layer, query, patch] @ token)) for token in tokens)
                assert float(found.slots[row, slot, patch]) == pytest.approx(slow, abs=1e-14)
    torch.testing.assert_close(found.amap, found.slots.mean(1))


def test_the_official_batch_is_asked_for_by_name() -> None:
    images = pictures(4, seed=9)
    for test_residuals, same in (("per_image", True), ("official", False)):
        method = made(test_residuals=test_residuals)
        enter(method)
        together, alone = method.predict(images).score, torch.cat([method.predict(i[None]).score for i in images])  # type: ignore
        assert together is not None
        assert (float((together - alone).abs().max()) < 1e-10) is same


def test_focal_loss_cannot_fall_below_that_of_logit_zero_for_normal_scores() -> None:
    scores = torch.linspace(0, 1, 11, dtype=torch.float64)
    terms = focal_terms(scores, torch.zeros(11), 2.0)
    assert terms.argmin() == 0 and float(terms[0]) == pytest.approx(0.25 * 0.6931471805599453)


# --- the training -----------------------------------------------------------------------------------------------------


def weights_after(method: InCtrl, source: Source) -> dict[str, Tensor]:
    method.fit(source)  # type: ignore[arg-type]
    return {key: value.clone() for key, value in method.heads.state_dict().items()}


def test_cached_features_give_the_same_training() -> None:
    cached, plain = Source(), Source()
    fast, reference = weights_after(made("fast"), cached), weights_after(made("reference"), plain)
    assert cached.read == len(cached) and plain.read == 6 * (4 + 8)
    for key, value in reference.items():
        torch.testing.assert_close(fast[key], value, rtol=1e-6, atol=1e-9)
    start = made().heads.state_dict()
    assert (fast["diff_head.projection1.weight"] - start["diff_head.projection1.weight"]).abs().max() > 1e-4
    assert (fast["adapter.fc.0.weight"] - start["adapter.fc.0.weight"]).abs().max() > 1e-4


def test_a_killed_training_ends_with_the_same_bits() -> None:
    whole = weights_after(made(), Source())
    snapshots = MemorySnapshots(always=True, stop_after=4)
    with pytest.raises(StoppedError):
        made(snapshots=snapshots).fit(Source())  # type: ignore[arg-type]
    snapshots.stop_after = None
    again = weights_after(made(snapshots=snapshots), Source())
    assert all(torch.equal(again[key], value) for key, value in whole.items())


def test_fewer_epochs_are_the_beginning_of_more() -> None:
    """`epochs=6` is the 6th checkpoint of a run of 10: the constant rate knows no end."""
    long, short = made(epochs=2), made(epochs=1)
    first: list[dict[str, Tensor]] = []
    snapshots = MemorySnapshots(always=True, stop_after=3)
    long.ctx.snapshots = snapshots
    with pytest.raises(StoppedError):
        long.fit(Source())  # type: ignore[arg-type]
    state = snapshots.load()
    assert state is not None and state["step"] == 3
    first.append(state["module"])
    after = weights_after(short, Source())
    assert all(torch.equal(after[key], value) for key, value in first[0].items())


def test_what_it_cannot_train_on() -> None:
    with pytest.raises(DataError, match="was given 18 and 0"):
        made().fit(Source(labels=(0,)))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"inctrl\.batch_size: expected at least 2, found 1"):
        made(batch_size=1)
    with pytest.raises(UsageError, match=r"inctrl\.layers: expected blocks from 0 to 11"):
        made(layers=(6, 12))


# --- official checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", [None, "model_state"])
def test_official_checkpoints_load(container: str | None, tmp_path: Path) -> None:
    trained, other = made(), made()
    trained.fit(Source())  # type: ignore[arg-type]
    with torch.no_grad():
        trained.towers.model.visual.class_embedding.add_(1.0)
    state = official(trained)
    torch.save(state if container is None else {container: state, "epoch": 6}, tmp_path / "checkpoint.pyth")
    other.load_official(WeightStore(None).read_file(tmp_path / "checkpoint.pyth"))
    for method in (trained, other):
        enter(method)
    expected, found = trained.predict(pictures(2, seed=6)), other.predict(pictures(2, seed=6))
    assert expected.score is not None and found.score is not None
    assert torch.equal(expected.score, found.score) and torch.equal(expected.amap, found.amap)


def test_official_checkpoints_load_strictly() -> None:
    method = made()
    state = official(method)
    with pytest.raises(WeightsError, match=r"holds no adapter\.\* and diff_head\.\*") as caught:
        method.load_official({key: value for key, value in state.items() if not key.startswith(("adapter", "diff"))})
    assert "--weights" in caught.value.hint
    with pytest.raises(WeightsError, match=r"inctrl: 1 mis-shaped: adapter\.fc\.0\.weight"):
        method.load_official({**state, "adapter.fc.0.weight": torch.zeros(3, 3)})
    with pytest.raises(WeightsError, match=r"CLIP tiny: 1 missing: visual\.proj"):
        method.load_official({key: value for key, value in state.items() if key != "visual.proj"})


def test_a_kept_model_knows_its_prompts() -> None:
    method, again = made(), made()
    method.fit(Source())  # type: ignore[arg-type]
    enter(method, "set/nut")
    again.load_state(method.state())
    with pytest.raises(UsageError, match="does not know what it looks at"):
        again.predict(pictures(1))
    with pytest.raises(UsageError, match="inctrl needs normal images of screw"):
        again.enter("screw", None)
    again.enter("set/nut", None)
    assert torch.equal(again.predict(pictures(2)).amap, method.predict(pictures(2)).amap)


# --- as a user ----------------------------------------------------------------------------------------------------------


def test_from_the_command_line(tmp_path: Path) -> None:
    """Trained on one drawn set with its anomalies, shown two normal images of each category of a folder, tested there."""

    root = trees.mvtec(tmp_path / "data")
    done = bench(
        *("run", "--methods", "inctrl", "--setting", "generalist", "--shots", "1", "--preset", "smoke", "--weights", "random"),
        *("--dataset", "folder", "--data-root", root, "--source", "synthetic", "--results", tmp_path / "results", "--json"),
        *("--set", "synthetic.size=64", "--set", "synthetic.train=4", "--set", "synthetic.normal=2"),
        *("--set", "synthetic.defective=1"),
    )
    assert done.code == 0, done.err
    assert list((tmp_path / "results").rglob("*.models/*.safetensors"))


def test_the_batch_is_a_part_of_what_was_measured_where_scores_depend_on_it(tmp_path: Path) -> None:
    command = [
        *("run", "--methods", "inctrl", "--setting", "generalist", "--shots", "2", "--preset", "smoke", "--weights", "random"),
        *("--dataset", "folder", "--data-root", trees.mvtec(tmp_path / "data"), "--source", "synthetic", "--limit", "4"),
        *("--set", "synthetic.size=64", "--set", "synthetic.train=4", "--results", tmp_path / "results", "--dry-run", "--json"),
    ]

    def ids(*more: str) -> list[str]:
        found = [bench(*command, *more, "--eval-batch", size).json()["cells"] for size in (8, 16)]
        return [cell["id"] for (cell,) in found]

    one, other = ids("--set", "inctrl.test_residuals=official")
    assert one and one != other
    one, other = ids()
    assert one and one == other
