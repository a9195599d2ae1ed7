"""Encoders: the table, the position rule and the tokens against slow references, timm's own network, and strict loading."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import methodkit
import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor

from inpbench.harness.api import Context, WeightSpec
from inpbench.harness.errors import UsageError, WeightsError
from inpbench.harness.registry import METHODS, resolve
from inpbench.methods import encoder_table
from inpbench.methods.beit import BeitEncoder
from inpbench.methods.encoder_table import ENCODERS, EncoderEntry, get_encoder
from inpbench.methods.encoders import build_encoder, construct
from inpbench.methods.position import resize_position
from inpbench.methods.vit import VisionTransformer

TINY = EncoderEntry(
    name="tiny_vit_small_14",
    kind="vit",
    dim=24,
    depth=3,
    heads=2,
    patch=14,
    native=70,  # 5 x 5 patches
    target_layers=(0, 2),
    weights=WeightSpec(name="tiny_vit_small_14", file="tiny.pth"),
    registers=4,
    layer_scale=True,
    mask_token=True,
    position_float32=True,
)
PLAIN = dataclasses.replace(TINY, registers=0, layer_scale=False, mask_token=False, position_float32=False)


class FixedWeights:
    """Hands out one state."""

    def __init__(self, state: dict[str, Tensor] | None) -> None:
        self._state = state

    def state(self, spec: WeightSpec) -> dict[str, Tensor] | None:
        return self._state


def make_context(state: dict[str, Tensor] | None = None, seed: int = 1) -> Context:
    nothing: Any = None
    return Context(
        device=torch.device("cpu"),
        dtype=torch.float64,
        seed=seed,
        setting="multi_class",
        weights=FixedWeights(state),
        snapshots=nothing,
        progress=nothing,
    )


def randomised(entry: EncoderEntry) -> VisionTransformer:
    """A tiny encoder in float64, every tensor random."""
    encoder = VisionTransformer(entry).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in encoder.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64) + (parameter.ndim == 1))
    return encoder


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_has_every_name_of_the_originals() -> None:
    expected = {
        *(f"dinov2reg_vit_{arch}_14" for arch in ("small", "base", "large")),
        *(f"dinov2_vit_{arch}_14" for arch in ("small", "base")),
        *(f"dino_vit_{arch}_{patch}" for arch in ("small", "base") for patch in (8, 16)),
        *("digpt_vit_base_16", "moco_vit_small_16", "moco_vit_base_16", "mae_vit_base_16", "mae_vit_large_16"),
        *(f"ibot_vit_{arch}_16" for arch in ("small", "base", "large")),
        *("beitv2_vit_base_16", "beit_vit_base_16", "deit_vit_small_16", "deit_vit_base_16", "builtin"),
    }
    assert set(ENCODERS) == expected
    for name, entry in ENCODERS.items():
        assert entry.name == entry.weights.name == name
        assert entry.dim % entry.heads == 0 and max(entry.target_layers) < entry.depth and len(entry.target_layers) == 8
        assert entry.weights.file or entry.weights.source == "builtin"
    files = [entry.weights.file for entry in ENCODERS.values()]
    assert len(set(files)) == len(files)


@pytest.mark.parametrize(
    ("name", "file", "timm"),
    [
        ("dinov2reg_vit_base_14", "dinov2_vitb14_reg4_pretrain.pth", "vit_base_patch14_reg4_dinov2.lvd142m"),
        ("dinov2_vit_small_14", "dinov2_vits14_pretrain.pth", "vit_small_patch14_dinov2.lvd142m"),
        ("dino_vit_small_8", "dino_deitsmall8_pretrain.pth", "vit_small_patch8_224.dino"),
        ("dino_vit_base_16", "dino_vitbase16_pretrain.pth", "vit_base_patch16_224.dino"),
        ("moco_vit_base_16", "vit-b-300ep.pth.tar", ""),
    ],
)
def test_files_and_timm_names(name: str, file: str, timm: str) -> None:
    weights = get_encoder(name).weights
    assert (weights.file, weights.timm) == (file, timm)
    assert weights.url.endswith(file)


def test_timm_knows_every_model_of_the_table() -> None:
    import timm

    for entry in ENCODERS.values():
        if entry.weights.timm:
            assert timm.models.get_pretrained_cfg(entry.weights.timm) is not None, entry.weights.timm


def test_large_encoders_read_every_second_block() -> None:
    assert get_encoder("dinov2reg_vit_large_14").target_layers == (4, 6, 8, 10, 12, 14, 16, 18)
    assert get_encoder("dinov2reg_vit_base_14").target_layers == tuple(range(2, 10))


def test_an_unknown_name_is_a_usage_error_with_the_closest() -> None:
    with pytest.raises(UsageError, match="dinov2reg_vit_base_14"):
        get_encoder("dinov2_reg_vit_base_14")


@pytest.mark.parametrize("size", [(391, 392), (392, 100), (7, 14), (0, 14)])
def test_sides_must_be_multiples_of_the_patch(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="multiples of its patch 14") as caught:
        get_encoder("dinov2reg_vit_small_14").grid(size)
    suggested = caught.value.hint.rpartition("=")[2].split("x")
    assert all(int(side) % 14 == 0 and int(side) > 0 for side in suggested)


def test_beit_works_at_its_own_size_only() -> None:
    entry = get_encoder("beit_vit_base_16")
    assert entry.grid((224, 224)) == (14, 14)
    with pytest.raises(UsageError, match="224x224 only"):
        entry.grid((448, 448))


# --- positions ------------------------------------------------------------------------------------------------------


def _cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def reference_position(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(side, side, D) at (h, w), by the formula: src = (dst + 0.5) * side / (h + 0.1) - 0.5, Keys cubic, clamped indices."""
    side = table.shape[0]
    out = np.zeros((*grid, table.shape[2]))
    for i in range(grid[0]):
        for j in range(grid[1]):
            y, x = (i + 0.5) * side / (grid[0] + 0.1) - 0.5, (j + 0.5) * side / (grid[1] + 0.1) - 0.5
            for m in range(math.floor(y) - 1, math.floor(y) + 3):
                for n in range(math.floor(x) - 1, math.floor(x) + 3):
                    weight = _cubic(y - m) * _cubic(x - n)
                    out[i, j] += weight * table[min(max(m, 0), side - 1), min(max(n, 0), side - 1)]
    return out


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (8, 6), (5, 4)])
def test_the_position_rule_against_the_formula(grid: tuple[int, int]) -> None:
    embedding = torch.randn(1, 26, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = resize_position(embedding, grid, float32=False)
    assert torch.equal(found[:, 0], embedding[:, 0])
    expected = reference_position(embedding[0, 1:].reshape(5, 5, 3).numpy(), grid)
    np.testing.assert_allclose(found[0, 1:].reshape(*grid, 3).numpy(), expected, atol=1e-12)


def test_dinov2_positions_pass_through_float32() -> None:
    embedding = torch.randn(1, 26, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rounded, exact = resize_position(embedding, (4, 4), float32=True), resize_position(embedding, (4, 4), float32=False)
    assert rounded.dtype == torch.float64
    assert torch.equal(rounded[:, 0], embedding[:, 0].float().double())
    assert 0 < float((rounded - exact).abs().max()) < 1e-5
    assert resize_position(embedding, (5, 5), float32=True) is embedding  # the native grid is left alone


# --- tokens and layers ----------------------------------------------------------------------------------------------


def reference_layers(encoder: VisionTransformer, images: Tensor) -> list[Tensor]:
    """The same network from its state dict, written out."""
    state, entry = encoder.state_dict(), encoder.entry
    p, d, heads = entry.patch, entry.dim, entry.heads
    batch, _, height, width = images.shape
    patches = images.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).reshape(batch, -1, 3 * p * p)
    x = patches @ state["patch_embed.proj.weight"].reshape(d, -1).T + state["patch_embed.proj.bias"]
    position = encoder.position((height // p, width // p))
    x = x + position[:, 1:]
    parts = [(state["cls_token"] + position[:, :1]).expand(batch, -1, -1)]
    if entry.registers:
        parts.append(state["register_tokens"].expand(batch, -1, -1))
    x = torch.cat([*parts, x], dim=1)

    def norm(value: Tensor, key: str) -> Tensor:
        mean, variance = value.mean(-1, keepdim=True), value.var(-1, unbiased=False, keepdim=True)
        return (value - mean) / torch.sqrt(variance + 1e-6) * state[f"{key}.weight"] + state[f"{key}.bias"]

    def linear(value: Tensor, key: str) -> Tensor:
        return value @ state[f"{key}.weight"].T + state[f"{key}.bias"]

    out = []
    for index in range(entry.depth):
        key = f"blocks.{index}"
        q, k, v = linear(norm(x, f"{key}.norm1"), f"{key}.attn.qkv").chunk(3, dim=-1)
        merged = []
        for head in range(heads):
            part = slice(head * d // heads, (head + 1) * d // heads)
            attention = (q[..., part] @ k[..., part].transpose(1, 2) * (d / heads) ** -0.5).softmax(-1)
            merged.append(attention @ v[..., part])
        scale1, scale2 = (state.get(f"{key}.{name}.gamma", 1.0) for name in ("ls1", "ls2"))
        x = x + scale1 * linear(torch.cat(merged, -1), f"{key}.attn.proj")
        hidden = linear(norm(x, f"{key}.norm2"), f"{key}.mlp.fc1")
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + scale2 * linear(hidden, f"{key}.mlp.fc2")
        out.append(x)
    return out


@pytest.mark.parametrize("entry", [TINY, PLAIN], ids=["registers", "plain"])
@pytest.mark.parametrize("size", [(70, 70), (42, 84)])
def test_layers_against_the_network_written_out(entry: EncoderEntry, size: tuple[int, int]) -> None:
    encoder, images = randomised(entry), pictures(*size)
    expected = reference_layers(encoder, images)
    for index, found in zip((2, 0), encoder.layers(images, (2, 0)), strict=True):
        assert found.shape == (2, encoder.prefix + math.prod(encoder.grid(size)), entry.dim)
        assert not found.requires_grad
        torch.testing.assert_close(found, expected[index], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["inp_former", "dinomaly", "crr"])
def test_a_large_encoder_feeds_every_second_block_to_the_groups(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default parameters on 24 thin blocks: the bottleneck sees the mean of eight blocks, the groups are the means of four."""
    large = dataclasses.replace(get_encoder("dinov2reg_vit_large_14"), name="thin_vit_large_14", dim=24, heads=2, native=70)
    monkeypatch.setitem(encoder_table.ENCODERS, large.name, large)
    info = METHODS.get(name)
    params = info.params(encoder=large.name, input_size=(70, 70), crop_size=(42, 42))
    method, images = resolve(info.target)(params, methodkit.make_context()), pictures(42, 42)
    expected = reference_layers(method.encoder, images)
    assert len(expected) == 24
    features = method.encode(images)
    prefix = features.fused.shape[1] - 9  # INP-Former drops class and register tokens, the others keep them
    mean = sum(expected[index] for index in range(4, 20, 2)) / 8
    torch.testing.assert_close(features.fused, mean[:, -9 - prefix :], rtol=1e-10, atol=1e-10)
    for target, blocks in zip(features.groups, ((4, 6, 8, 10), (12, 14, 16, 18)), strict=True):
        group = sum(expected[index] for index in blocks)[:, -9:] / 4
        torch.testing.assert_close(target, group.transpose(1, 2).reshape(2, 24, 3, 3), rtol=1e-10, atol=1e-10)


def test_blocks_after_the_last_layer_are_not_run() -> None:
    encoder = randomised(PLAIN)
    ran: list[int] = []
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    encoder.layers(pictures(28, 28), (1,))
    assert ran == [0, 1]


def test_it_stays_frozen_and_in_eval_mode() -> None:
    encoder = randomised(TINY)
    around = torch.nn.ModuleList([encoder]).train()
    assert around.training and not encoder.training and not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


# --- weights --------------------------------------------------------------------------------------------------------


def timm_network(entry: EncoderEntry) -> TimmVisionTransformer:
    """timm's own network of the same shape, random."""
    network = TimmVisionTransformer(
        img_size=entry.native,
        patch_size=entry.patch,
        embed_dim=entry.dim,
        depth=entry.depth,
        num_heads=entry.heads,
        num_classes=0,
        reg_tokens=entry.registers,
        no_embed_class=bool(entry.registers),
        init_values=1.0 if entry.layer_scale else None,
    ).double()
    generator = torch.Generator().manual_seed(4)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64) + (parameter.ndim == 1))
    return network.eval()


@pytest.mark.parametrize("entry", [TINY, PLAIN, dataclasses.replace(TINY, registers=0)], ids=["registers", "plain", "dinov2"])
def test_timm_files_load_and_agree_at_the_native_size(entry: EncoderEntry) -> None:
    network, encoder, images = timm_network(entry), VisionTransformer(entry).double(), pictures(entry.native, entry.native)
    encoder.load_official(network.state_dict())
    found = encoder.layers(images, (0, 2))
    expected = network.forward_intermediates(images, indices=[0, 2], norm=False, output_fmt="NLC", intermediates_only=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[:, encoder.prefix :], other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("entry", [TINY, PLAIN], ids=["registers", "plain"])
def test_an_official_round_trip_is_exact(entry: EncoderEntry) -> None:
    first, second = randomised(entry), VisionTransformer(entry).double()
    second.load_official(first.official_state())
    assert all(
        torch.equal(a, b) for a, b in zip(first.layers(pictures(42, 28), (2,)), second.layers(pictures(42, 28), (2,)), strict=True)
    )


def test_prefixes_and_foreign_parts_of_published_files() -> None:
    entry = dataclasses.replace(PLAIN, prefix="module.base_encoder.", dropped=("head.",))
    source = randomised(entry)
    published = {f"module.base_encoder.{key}": value for key, value in source.official_state().items()}
    published |= {"module.base_encoder.head.weight": torch.ones(2), "module.predictor.weight": torch.ones(2)}
    target = VisionTransformer(entry).double()
    target.load_official(published)
    assert all(torch.equal(value, target.official_state()[key]) for key, value in source.official_state().items())


def test_weights_that_do_not_fit_are_named() -> None:
    state = randomised(TINY).official_state()
    encoder = VisionTransformer(TINY)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    missing = {key: value for key, value in state.items() if key != "norm.weight"}
    cases = {
        "1 missing: norm.weight": missing,
        "1 unexpected: extra": {**state, "extra": torch.ones(1)},
        "mis-shaped: pos_embed": {**state, "pos_embed": torch.zeros(1, 1370, 24)},
    }
    for words, broken in cases.items():
        with pytest.raises(WeightsError, match=words):
            encoder.load_official(broken)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    wide = {key: torch.zeros(1, 1, 768) if key == "cls_token" else value for key, value in state.items()}
    with pytest.raises(WeightsError) as caught:
        encoder.load_official(wide)
    assert "768 (base)" in caught.value.hint


def test_beit_loads_without_head_and_final_norm() -> None:
    entry = dataclasses.replace(get_encoder("beit_vit_base_16"), dim=24, depth=2, heads=2, native=32)
    source, target = BeitEncoder(entry).double(), BeitEncoder(entry).double()
    published = {**source.official_state(), "head.weight": torch.ones(2), "fc_norm.weight": torch.ones(24)}
    published["blocks.0.attn.relative_position_index"] = torch.zeros(2, 2)
    target.load_official(published)
    images = pictures(32, 32)
    for one, other in zip(source.layers(images, (0, 1)), target.layers(images, (0, 1)), strict=True):
        assert one.shape == (2, 1 + 4, 24) and torch.equal(one, other)
    with pytest.raises(UsageError, match="32x32 only"):
        target.layers(pictures(48, 32), (0,))


# --- building -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_in_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoder_table.ENCODERS, TINY.name, TINY)


@pytest.mark.usefixtures("tiny_in_table")
def test_build_loads_what_the_context_hands_out() -> None:
    state = randomised(TINY).official_state()
    encoder = build_encoder(TINY.name, make_context(state), (70, 70))
    assert next(encoder.parameters()).dtype == torch.float64
    assert all(torch.equal(value, state[key]) for key, value in encoder.official_state().items())


@pytest.mark.usefixtures("tiny_in_table")
def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(8)
    expected = torch.rand(1)
    torch.manual_seed(8)
    first, second, other = (build_encoder(TINY.name, make_context(seed=seed), (70, 70)).official_state() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_the_builtin_encoder_has_the_interface_and_the_numbers_of_the_table() -> None:
    entry = get_encoder("builtin")
    encoder: Any = construct(entry, (56, 84))
    assert (encoder.dim, encoder.heads, encoder.patch) == (entry.dim, entry.heads, entry.patch)
    layers = encoder.layers(pictures(56, 84).float(), (0, 11))
    assert [layer.shape for layer in layers] == [(2, encoder.prefix + 24, entry.dim)] * 2


@pytest.mark.usefixtures("tiny_in_table")
def test_build_refuses_impossible_sizes() -> None:
    with pytest.raises(UsageError, match="multiples of its patch"):
        build_encoder(TINY.name, make_context(), (71, 70))
