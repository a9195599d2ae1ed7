"""Dinomaly: the network against a slow reference, the mining ramp, parameters, checkpoints, resume with dropout."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from golden import REPOSITORY
from methodkit import GEOMETRY, Stripes, make_context, reference_cosine, reference_linear, reference_norm
from torch import Tensor

from inpbench.harness import params as parameters
from inpbench.harness.errors import BenchError, UsageError
from inpbench.harness.testing import MemorySnapshots, StoppedError
from inpbench.methods import encoder_table
from inpbench.methods.attention import SELF_ATTENTIONS
from inpbench.methods.blocks import Mlp
from inpbench.methods.dinomaly import INFO, DinomalyParams
from inpbench.methods.dinomaly.method import Dinomaly
from inpbench.methods.fusion import Features
from inpbench.methods.losses import hard_mining_count, hard_mining_threshold, hard_mining_weight, mined_global_cosine
from inpbench.methods.noisy_network import NoisyNetwork

pytestmark = pytest.mark.usefixtures("tiny_in_table")

PARAMS = DinomalyParams(
    **GEOMETRY,
    steps=12,
    batch_size=4,
    warmup=2,
    mining_ramp=5,
)


# --- the network ----------------------------------------------------------------------------------------------------


def reference_attention(x: Tensor, state: dict[str, Tensor], key: str, heads: int, eps: float) -> Tensor:
    """Token by token: out_n = sum_m phi(q_n).phi(k_m) v_m / sum_m phi(q_n).phi(k_m), phi = ELU + 1."""
    q, k, v = reference_linear(x, state, f"{key}.qkv").chunk(3, dim=-1)

    def phi(t: Tensor) -> Tensor:
        return torch.where(t > 0, t + 1, torch.exp(t))

    width = x.shape[-1] // heads
    out = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for n in range(x.shape[1]):
            weights = (phi(q[:, n : n + 1, part]) * phi(k[:, :, part])).sum(-1)
            out[:, n, part] = (weights[..., None] * v[:, :, part]).sum(1) / (weights.sum(1, keepdim=True) + eps)
    return reference_linear(out, state, f"{key}.proj")


@pytest.mark.parametrize("attention", ["linear", "explicit_linear"])
@pytest.mark.parametrize("prefix", [0, 5])
def test_the_network_against_the_formulas(attention: str, prefix: int) -> None:
    torch.manual_seed(0)
    network = NoisyNetwork(12, 3, 4, ((0, 1), (2, 3)), Mlp(12, 0.2), attention, 1e-3).double().eval()
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    tokens, target = torch.randn(2, prefix + 6, 12, dtype=torch.float64), torch.zeros(2, 12, 2, 3, dtype=torch.float64)
    output = network(Features(tokens, (target, target)))
    state = network.state_dict()

    def mlp(x: Tensor, key: str) -> Tensor:
        return reference_linear(torch.nn.functional.gelu(reference_linear(x, state, f"{key}.fc1")), state, f"{key}.fc2")

    z, decoded = mlp(tokens, "bottleneck.0"), []
    for index in range(4):
        key = f"decoder.{index}"
        z = z + reference_attention(reference_norm(z, state, f"{key}.norm1"), state, f"{key}.attn", 3, 1e-3)
        z = z + mlp(reference_norm(z, state, f"{key}.norm2"), f"{key}.mlp")
        decoded.append(z[:, prefix:])
    for group, (first, second) in enumerate(((3, 2), (1, 0))):
        expected = ((decoded[first] + decoded[second]) / 2).transpose(1, 2).reshape(2, 12, 2, 3)
        torch.testing.assert_close(output.outputs[group], expected, rtol=1e-9, atol=1e-9)


def test_the_denominators_eps_removes_the_nan_of_float32() -> None:
    torch.manual_seed(1)
    published, patched = SELF_ATTENTIONS["linear"](12, 3), SELF_ATTENTIONS["linear"](12, 3, 1e-6)
    patched.load_state_dict(published.state_dict())
    x = 400 * torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0))
    published.qkv.bias.data -= 5.0
    patched.qkv.bias.data -= 5.0
    assert published(x).isnan().any() and patched(x).isfinite().all()


# --- the loss -------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_global_cosine_of_each_image() -> None:
    torch.manual_seed(0)
    targets, outputs = ([torch.randn(3, 4, 2, 2, dtype=torch.float64) for _ in range(2)] for _ in range(2))
    expected = sum(1 - reference_cosine(a[i], b[i]) for a, b in zip(targets, outputs, strict=True) for i in range(3)) / 6
    torch.testing.assert_close(mined_global_cosine(targets, outputs), torch.as_tensor(expected))


def test_mining_shrinks_the_easy_points_strictly_below_the_threshold() -> None:
    distance = torch.tensor([0.1, 0.4, 0.4, 0.9, 0.2]).reshape(1, 1, 1, 5)
    # 5 points, share 0.6: k = 2, threshold 0.4; the tie stays.
    assert hard_mining_weight(distance, 0.6, 0.1).flatten().tolist() == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.1])
    assert hard_mining_weight(distance, 0.0, 0.1).flatten().tolist() == [1.0] * 5


def test_the_threshold_is_that_of_a_sorted_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    distance = torch.randint(0, 40, (4, 1, 7, 9), generator=generator) / 7.0  # many ties
    broken = distance.clone()
    broken[1, 0, 2, 3] = torch.nan  # the largest of all
    for batch in (distance, broken):
        falling = batch.flatten().sort(descending=True).values
        for share in (0.0, 0.3, 0.9, 0.999, 1.0):
            expected = falling[hard_mining_count(batch.numel(), share) - 1]
            torch.testing.assert_close(hard_mining_threshold(batch, share), expected, rtol=0.0, atol=0.0, equal_nan=True)


def test_the_number_of_hard_points_is_the_floating_point_one() -> None:
    assert hard_mining_count(12544, 0.9) == 1254 and hard_mining_count(128, 0.9) == 12
    assert hard_mining_count(4, 0.9) == 1  # the original raises IndexError here


def test_the_share_ramps_up() -> None:
    method = Dinomaly(dataclasses.replace(PARAMS, mining_ramp=1000), make_context())
    assert [method.mining_share(step) for step in (0, 500, 1000, 9000)] == pytest.approx([0.0, 0.45, 0.9, 0.9])
    assert Dinomaly(dataclasses.replace(PARAMS, mining_ramp=0), make_context()).mining_share(0) == 0.9


# --- parameters -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers() -> None:
    params = DinomalyParams()
    assert (params.lr, params.final_lr, params.warmup, params.weight_decay) == (2e-3, 2e-4, 100, 1e-4)
    assert (params.dropout, params.eps, params.clip_norm, params.batch_size) == (0.2, 1e-10, 0.1, 16)
    assert (params.mining_share, params.mining_ramp, params.mining_factor, params.attention_eps) == (0.9, 1000, 0.1, 0.0)


@pytest.mark.parametrize(("setting", "steps"), [("multi_class", 10_000), ("single_class", 5_000), ("super_multi_class", 10_000)])
def test_the_number_of_steps_is_the_settings_unless_given(setting: str, steps: int) -> None:
    assert Dinomaly(dataclasses.replace(PARAMS, steps=None), make_context(setting=setting)).total_steps(7) == steps
    assert Dinomaly(PARAMS, make_context(setting=setting)).total_steps(7) == 12


@pytest.mark.parametrize(
    ("key", "value"),
    [("dropout", "1.0"), ("dropout", "-0.1"), ("mining_share", "1.5"), ("attention", "flash"), ("mining_ramp", "-1")],
)
def test_impossible_parameters_are_usage_errors(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"dinomaly.{key}"):
        parameters.build("dinomaly", DinomalyParams, {key: value})


def test_every_preset_builds() -> None:
    for name, preset in INFO.presets.items():
        params = parameters.build("dinomaly", DinomalyParams, preset)
        assert params.preprocess.resize == params.input_size, name
    assert parameters.build("dinomaly", DinomalyParams, INFO.presets["paper_real_iad"]).dropout == 0.4


# --- tensors and training -------------------------------------------------------------------------------------------


def test_official_checkpoints_round_trip() -> None:
    first, second = Dinomaly(PARAMS, make_context(seed=1)), Dinomaly(PARAMS, make_context(seed=2))
    images = Stripes((56, 70), 2).batch(range(2)).double()
    second.load_official({key: value.clone() for key, value in first.official_state().items()})
    assert torch.equal(first.predict(images).amap, second.predict(images).amap)


def test_the_official_key_list_of_the_default_architecture() -> None:
    """Names and shapes of the published state dict (the shapes of the golden training case, and 276 keys)."""
    with torch.device("meta"):
        from inpbench.methods.vit import VisionTransformer

        encoder = VisionTransformer(encoder_table.get_encoder("dinov2reg_vit_base_14"))
        network = NoisyNetwork(768, 12, 8, ((0, 1, 2, 3), (4, 5, 6, 7)), Mlp(768, 0.2))
    assert len(encoder.state_dict()) == 176
    assert len(encoder.state_dict()) + len(network.state_dict()) == 276
    assert sum(value.numel() for value in encoder.parameters()) == 86_583_552
    assert sum(value.numel() for value in network.parameters()) == 61_425_408
    case = json.loads((REPOSITORY / "tests/data/golden/dinomaly_crr/dinomaly_train_p09.json").read_text(encoding="utf-8"))
    assert list(network.state_dict()) == case["config"]["trainable_param_order"]


def test_a_killed_fit_with_dropout_ends_with_the_same_bits() -> None:
    def run(snapshots: Any) -> Dinomaly:
        method = Dinomaly(PARAMS, make_context(dtype=torch.float32, snapshots=snapshots))
        method.fit(Stripes((56, 70), 10))
        return method

    whole = run(MemorySnapshots())
    snapshots = MemorySnapshots(always=True, stop_after=5)
    with pytest.raises(StoppedError):
        run(snapshots)
    snapshots.stop_after = None
    again = run(snapshots)
    for key, value in whole.state().items():
        assert torch.equal(value, again.state()[key]), key


def test_dropout_is_off_when_predicting() -> None:
    method = Dinomaly(dataclasses.replace(PARAMS, dropout=0.9), make_context())
    images = Stripes((56, 70), 2).batch(range(2)).double()
    method.network.train()
    assert torch.equal(method.predict(images).amap, method.predict(images).amap)


def test_class_and_register_tokens_go_through_unless_removed() -> None:
    images = Stripes((56, 70), 2).batch(range(2)).double()
    assert Dinomaly(PARAMS, make_context()).encode(images).fused.shape == (2, 5 + 20, 24)
    assert Dinomaly(dataclasses.replace(PARAMS, remove_class_token=True), make_context()).encode(images).fused.shape == (2, 20, 24)


def test_a_diverging_run_says_what_to_type() -> None:
    method = Dinomaly(PARAMS, make_context(dtype=torch.float32))
    method.network.decoder[0].attn.qkv.bias.data.fill_(float("nan"))  # type: ignore[index, union-attr]
    with pytest.raises(BenchError) as caught:
        method.fit(Stripes((56, 70), 8))
    assert "dinomaly.attention_eps" in caught.value.hint


def test_fit_learns() -> None:
    train = Stripes((56, 70), 10)
    method = Dinomaly(dataclasses.replace(PARAMS, steps=60, lr=5e-3), make_context(dtype=torch.float32))
    images = train.batch(range(3))
    before = method.predict(images).amap
    method.fit(train)
    assert float(method.predict(images).amap.mean()) < 0.9 * float(before.mean())
