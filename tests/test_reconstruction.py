"""What INP-Former and Dinomaly share: bfloat16 products, maps on the token grid, the state of a resumed cell, encoder weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methodkit import SMALL_DECODER, TINY, Stripes, make_context

from inpbench.harness import params as parameters
from inpbench.harness.errors import UsageError, WeightsError
from inpbench.harness.registry import METHODS, resolve
from inpbench.harness.testing import MemorySnapshots
from inpbench.harness.weights import WeightStore
from inpbench.methods.encoders import build_encoder
from inpbench.methods.losses import cosine_distance

NAMES = ("inp_former", "dinomaly")
SMALL = SMALL_DECODER | {"steps": "8", "batch_size": "4", "warmup": "2"}


pytestmark = pytest.mark.usefixtures("tiny_in_table")


def build(name: str, context: Any = None, **changes: str) -> Any:
    info = METHODS.get(name)
    params = parameters.build(name, info.params, {**SMALL, **changes})
    return resolve(info.target)(params, context or make_context(dtype=torch.float32))


@pytest.mark.parametrize("name", NAMES)
def test_the_map_is_the_mean_of_the_groups_on_the_token_grid(name: str) -> None:
    method, images = build(name), Stripes((56, 70), 3).batch(range(3))
    with torch.no_grad():
        output = method.decode(method.encode(images))
        expected = sum(cosine_distance(a, b)[:, 0] for a, b in zip(output.targets, output.outputs, strict=True)) / 2
    found = method.predict(images).amap
    assert found.shape == (3, 4, 5) and not found.requires_grad
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_products_leave_losses_and_maps_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fast engine does on CUDA, on the CPU: half the digits in the products, nothing else."""
    train, exact = Stripes((56, 70), 8), build(name)
    rounded = build(name)
    monkeypatch.setattr(rounded, "_autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    images = train.batch(range(3))
    found, expected = rounded.predict(images).amap, exact.predict(images).amap
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < 0.05
    output = rounded.decode(rounded.encode(images))
    loss = rounded.loss(output, 0)
    assert loss.dtype == torch.float32 and all(value.dtype == torch.float32 for value in (*output.targets, *output.outputs))
    rounded.fit(train)
    assert all(torch.isfinite(value).all() and value.dtype == torch.float32 for value in rounded.state().values())


@pytest.mark.parametrize("name", NAMES)
def test_state_is_the_trained_part_and_is_strict(name: str) -> None:
    first, second = build(name), build(name, make_context(seed=5, dtype=torch.float32))
    state = {key: value.clone() for key, value in first.state().items()}
    assert not [key for key in state if key.startswith("encoder.")]
    second.load_state(state)
    assert all(torch.equal(value, state[key]) for key, value in second.state().items())
    key = next(iter(state))
    with pytest.raises(WeightsError, match=key):
        second.load_state({name: value for name, value in state.items() if name != key})


@pytest.mark.parametrize("name", NAMES)
def test_snapshots_hold_no_encoder(name: str) -> None:
    snapshots = MemorySnapshots(always=True)
    build(name, make_context(dtype=torch.float32, snapshots=snapshots)).fit(Stripes((56, 70), 8))
    saved = snapshots.load()
    assert saved is not None and saved["step"] == 7  # none after the last step: the cell is done then
    assert not [key for key in saved["module"] if key.startswith("encoder.")]


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_is_untouched_by_training(name: str) -> None:
    method = build(name)
    before = {key: value.clone() for key, value in method.encoder.state_dict().items()}
    method.fit(Stripes((56, 70), 8))
    assert all(torch.equal(value, before[key]) for key, value in method.encoder.state_dict().items())
    assert method.encoder.training is False


@pytest.mark.parametrize("name", NAMES)
def test_missing_encoder_weights_stop_before_anything_is_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INPBENCH_WEIGHTS", raising=False)
    context = make_context(dtype=torch.float32)
    context.weights = WeightStore()
    with pytest.raises(WeightsError, match=r"tiny\.pth"):
        build(name, context)


def test_an_encoder_file_is_found_hashed_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file to the features, as `bench run` does it."""
    published = build_encoder(TINY.name, make_context(seed=9, dtype=torch.float32), (56, 70)).official_state()
    torch.save(published, tmp_path / TINY.weights.file)
    monkeypatch.setenv("INPBENCH_WEIGHTS", str(tmp_path))
    context = make_context(dtype=torch.float32)
    context.weights = WeightStore()
    method = build("inp_former", context)
    assert all(torch.equal(value, published[key]) for key, value in method.encoder.official_state().items())
    (spec,) = METHODS.get("inp_former").weights(method.params)
    assert WeightStore().identity(spec).startswith("sha256:")


def test_hints_name_the_method() -> None:
    with pytest.raises(UsageError) as caught:
        build("dinomaly", crop_size="55")
    assert "--set dinomaly.crop_size=56x56" in caught.value.hint
