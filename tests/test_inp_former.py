"""INP-Former: the network against a slow reference, parameters, checkpoints, few-shot variants, training on stripes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from methodkit import GEOMETRY, TINY, Stripes, make_context, reference_cosine, reference_linear, reference_norm
from torch import Tensor

from inpbench.harness import params as parameters
from inpbench.harness.api import Sample
from inpbench.harness.errors import UsageError, WeightsError
from inpbench.methods import encoder_table
from inpbench.methods.attention import few_queries
from inpbench.methods.encoders import build_encoder
from inpbench.methods.fusion import Features
from inpbench.methods.inp_former import INFO, InpFormerParams
from inpbench.methods.inp_former.app_map import to_bytes
from inpbench.methods.inp_former.augment import COUNT, Variants, shuffled_variants, variants
from inpbench.methods.inp_former.method import InpFormer
from inpbench.methods.inp_former.model import InpFormerNetwork
from inpbench.methods.losses import soft_mining_weight

pytestmark = pytest.mark.usefixtures("tiny_in_table")

PARAMS = InpFormerParams(
    **GEOMETRY,
    inp_num=3,
    steps=6,
    batch_size=4,
    warmup=2,
)


# --- the network ----------------------------------------------------------------------------------------------------


def reference_forward(state: dict[str, Tensor], tokens: Tensor, heads: int, depth: int) -> tuple[list[Tensor], Tensor]:
    """Decoder outputs in execution order and prototypes, head by head, from the state dict."""
    d = tokens.shape[-1]
    parts = [slice(head * d // heads, (head + 1) * d // heads) for head in range(heads)]

    def mlp(x: Tensor, key: str) -> Tensor:
        return reference_linear(torch.nn.functional.gelu(reference_linear(x, state, f"{key}.fc1")), state, f"{key}.fc2")

    def project(x: Tensor, source: Tensor, key: str) -> tuple[Tensor, Tensor, Tensor]:
        x, source = reference_norm(x, state, f"{key}.norm1"), reference_norm(source, state, f"{key}.norm1")
        kv = reference_linear(source, state, f"{key}.attn.kv")
        return reference_linear(x, state, f"{key}.attn.q"), kv[..., :d], kv[..., d:]

    queries = state["prototype_token"].expand(len(tokens), -1, -1)
    q, k, v = project(queries, tokens, "aggregation.0")
    merged = torch.cat([(q[..., p] @ k[..., p].transpose(1, 2) * (d / heads) ** -0.5).softmax(-1) @ v[..., p] for p in parts], -1)
    prototypes = queries + reference_linear(merged, state, "aggregation.0.attn.proj")
    prototypes = prototypes + mlp(reference_norm(prototypes, state, "aggregation.0.norm2"), "aggregation.0.mlp")
    z, out = mlp(tokens, "bottleneck.0"), []
    for index in range(depth):
        key = f"decoder.{index}"
        q, k, v = project(z, prototypes, key)
        merged_parts = []
        for head, p in enumerate(parts):
            unit_q, unit_k = (x[..., p] / x[..., p].norm(dim=-1, keepdim=True) for x in (q, k))
            attention = (unit_q @ unit_k.transpose(1, 2) * state[f"{key}.attn.learn_scale"][head]).clamp(min=0)
            merged_parts.append(attention @ v[..., p])
        y = reference_linear(torch.cat(merged_parts, -1), state, f"{key}.attn.proj")
        z = y + mlp(reference_norm(y, state, f"{key}.norm2"), f"{key}.mlp")
        out.append(z)
    return out, prototypes


@pytest.mark.parametrize("prefix", [0, 5])
def test_the_network_against_the_formulas(prefix: int) -> None:
    """prefix: class and register tokens that were kept; they take part in everything but the maps."""
    torch.manual_seed(0)
    network = InpFormerNetwork(12, 3, 5, 4, ((0, 1), (2, 3))).double()
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    tokens = torch.randn(2, prefix + 6, 12, dtype=torch.float64)
    target = torch.randn(2, 12, 2, 3, dtype=torch.float64)
    output = network(Features(tokens, (target, target)))
    decoded, prototypes = reference_forward(network.state_dict(), tokens, 3, 4)
    torch.testing.assert_close(output.prototypes, prototypes, rtol=1e-9, atol=1e-9)
    for group, (first, second) in enumerate(((3, 2), (1, 0))):  # reversed: the last blocks belong to the shallow group
        expected = ((decoded[first] + decoded[second]) / 2)[:, prefix:].transpose(1, 2).reshape(2, 12, 2, 3)
        torch.testing.assert_close(output.outputs[group], expected, rtol=1e-9, atol=1e-9)
    distance = torch.stack([1 - torch.stack([reference_cosine(t, p) for p in prototypes[b]]) for b in range(2) for t in tokens[b]])
    nearest, which = (values.reshape(2, -1)[:, prefix:] for values in distance.min(1))
    assert output.assignment.tolist() == which.tolist()
    torch.testing.assert_close(output.distance, nearest, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.coherence, distance.min(1).values.mean(), rtol=1e-9, atol=1e-9)


def test_only_prototypes_pass_through_the_decoder() -> None:
    """Without a residual around the attention, zero prototype values leave nothing of the input but biases."""
    torch.manual_seed(0)
    network = InpFormerNetwork(12, 3, 5, 2, ((0,), (1,))).double()
    for block in network.decoder:
        block.attn.kv.weight.data[12:] = 0  # type: ignore[union-attr, operator, index]
    tokens, target = torch.randn(1, 6, 12, dtype=torch.float64), torch.zeros(1, 12, 2, 3, dtype=torch.float64)
    output = network(Features(tokens, (target, target))).outputs[0]
    assert float((output - output[..., :1, :1]).detach().abs().max()) < 1e-12


def test_the_gradient_hook_scales_points_and_not_the_loss() -> None:
    method: Any = InpFormer(PARAMS, make_context())
    plain: Any = InpFormer(dataclasses.replace(PARAMS, mining_power=0.0), make_context())
    images = Stripes((56, 70), 4).batch(range(4)).double()
    losses, norms = [], []
    for one in (method, plain):
        output = one.decode(one.encode(images))
        loss = one.loss(output, 0)
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(float(one.network.decoder[0].attn.q.weight.grad.norm()))
    assert losses[0] == losses[1] and norms[0] != norms[1]
    weight = soft_mining_weight(torch.tensor([[[[1.0, 3.0]]], [[[0.0, 4.0]]]]), 3.0)
    assert torch.allclose(weight, torch.tensor([[[[0.125, 3.375]]], [[[0.0, 8.0]]]]))


def test_the_attention_of_a_gpu_is_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, count, 5, dtype=torch.float64, requires_grad=True) for count in (4, 9, 9))
    found, expected = few_queries(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(found)
    gradients = [torch.autograd.grad((output * direction).sum(), (q, k, v)) for output in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


# --- parameters -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers() -> None:
    params = InpFormerParams()
    assert (params.encoder, params.input_size, params.crop_size) == ("dinov2reg_vit_base_14", (448, 448), (392, 392))
    assert (params.inp_num, params.epochs, params.batch_size, params.warmup) == (6, 200, 16, 100)
    assert (params.lr, params.final_lr, params.weight_decay, params.clip_norm, params.eps) == (1e-3, 1e-4, 1e-4, 0.1, 1e-10)
    assert (params.mining_power, params.gather_weight) == (3.0, 0.2)
    assert INFO.presets["paper"] == {} and [spec.file for spec in INFO.weights(params)] == ["dinov2_vitb14_reg4_pretrain.pth"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inp_num", "0"),
        ("lr", "-1"),
        ("clip_norm", "0"),
        ("batch_size", "0"),
        ("crop_size", "400"),
        ("crop_size", "504"),
        ("target_layers", "3,12"),
        ("target_layers", "3,3,4,5,6,7,8,9"),
        ("encoder_groups", "0-3;4-8"),
        ("decoder_groups", "0-7"),
        ("decoder_depth", "4"),
        ("encoder", "dinov3"),
        ("mining_power", "-1"),
    ],
)
def test_impossible_parameters_are_usage_errors(key: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        parameters.build("inp_former", InpFormerParams, {key: value})
    assert caught.value.hint and "METHOD" not in caught.value.hint


def test_the_options_of_the_anomalib_port() -> None:
    """Target layers, fusion groups and class tokens as texts; the default of the last stays out of an identity."""
    asked = {"target_layers": "2,5,8", "encoder_groups": "0;1,2", "decoder_groups": "0-3;4-7", "remove_class_token": "no"}
    params = parameters.build("inp_former", InpFormerParams, asked)
    assert params.layers == (2, 5, 8) and params.encoder_groups == ((0,), (1, 2)) and params.remove_class_token is False
    assert parameters.plain(params)["remove_class_token"] is False
    assert "remove_class_token" not in parameters.plain(InpFormerParams())
    assert parameters.plain(InpFormerParams(), every=True)["remove_class_token"] is True
    assert parameters.build("inp_former", InpFormerParams, parameters.from_plain(parameters.plain(params))) == params
    with pytest.raises(UsageError, match="as many groups as encoder_groups"):
        parameters.build("inp_former", InpFormerParams, {"decoder_groups": "0-7"})


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_class_and_register_tokens_go_through_where_asked_for(engine: Any) -> None:
    images = Stripes((56, 70), 4).batch(range(4))
    params = dataclasses.replace(PARAMS, remove_class_token=False)
    method = InpFormer(params, make_context(dtype=torch.float32, engine=engine))
    assert method.encode(images).fused.shape == (4, 5 + 20, 24)
    assert InpFormer(PARAMS, make_context(dtype=torch.float32)).encode(images).fused.shape == (4, 20, 24)
    method.fit(Stripes((56, 70), 8))
    assert method.predict(images).amap.shape == method.zero_shot_map(images).shape == (4, 4, 5)
    explained = method.explain(images)
    assert explained["prototype"].shape == (4, params.inp_num, 4, 5) and explained["distance"].shape == (4, 1, 4, 5)
    torch.testing.assert_close(explained["distance"][:, 0], method.zero_shot_map(images), rtol=1e-5, atol=1e-6)
    again = InpFormer(PARAMS, make_context(dtype=torch.float32, engine=engine))
    again.load_state(method.state())
    assert not torch.equal(again.predict(images).amap, method.predict(images).amap), "the same tensors, another network"


def test_every_preset_builds() -> None:
    for name, preset in INFO.presets.items():
        params = parameters.build("inp_former", InpFormerParams, preset)
        assert params.preprocess.crop == params.crop_size, name


def test_steps_are_epochs_unless_given() -> None:
    method = InpFormer(dataclasses.replace(PARAMS, steps=None, epochs=200), make_context())
    assert method.total_steps(226) == 45_200
    assert InpFormer(PARAMS, make_context()).total_steps(226) == 6


# --- tensors --------------------------------------------------------------------------------------------------------


def test_official_checkpoints_round_trip_and_are_strict() -> None:
    first, second = InpFormer(PARAMS, make_context(seed=1)), InpFormer(PARAMS, make_context(seed=2))
    images = Stripes((56, 70), 2).batch(range(2)).double()
    official = first.official_state()
    assert {"prototype_token", "encoder.pos_embed", "bottleneck.0.fc1.weight", "aggregation.0.attn.kv.weight"} <= set(official)
    assert next(iter(official)) == "prototype_token"
    assert not torch.equal(first.predict(images).amap, second.predict(images).amap)
    second.load_official({key: value.clone() for key, value in official.items()})
    assert torch.equal(first.predict(images).amap, second.predict(images).amap)
    with pytest.raises(WeightsError, match=r"1 missing: decoder\.0\.attn\.learn_scale"):
        second.load_official({key: value for key, value in official.items() if key != "decoder.0.attn.learn_scale"})
    with pytest.raises(WeightsError, match=r"prototype_token expected \(3, 24\), found \(6, 24\)"):
        second.load_official({**official, "prototype_token": torch.zeros(6, 24)})


def test_the_official_key_list_of_the_default_architecture() -> None:
    """315 tensors for base (spec section 17), counted on the meta device."""
    with torch.device("meta"):
        from inpbench.methods.vit import VisionTransformer

        encoder = VisionTransformer(encoder_table.get_encoder("dinov2reg_vit_base_14"))
        network = InpFormerNetwork(768, 12, 6, 8, ((0, 1, 2, 3), (4, 5, 6, 7)))
    assert len(encoder.state_dict()) + len(network.state_dict()) == 315
    assert sum(value.numel() for value in network.parameters()) == 68_517_984  # 68.52 M


def test_another_encoder_is_named() -> None:
    small = {f"encoder.{key}": value for key, value in build_encoder(TINY.name, make_context(), (56, 70)).official_state().items()}
    method = InpFormer(PARAMS, make_context())
    wide = {key: torch.zeros(1, 1, 384) if key.endswith("cls_token") else value for key, value in small.items()}
    with pytest.raises(WeightsError) as caught:
        method.load_official({**method.official_state(), **wide})
    assert "width 384 (small)" in caught.value.hint


# --- as a method ----------------------------------------------------------------------------------------------------


def test_fit_learns_and_rectangles_work() -> None:
    train = Stripes((56, 70), 10)
    method = InpFormer(dataclasses.replace(PARAMS, steps=60, lr=5e-3), make_context(dtype=torch.float32))
    images = train.batch(range(3))
    before = method.predict(images).amap
    method.fit(train)
    prediction = method.predict(images)
    assert prediction.amap.shape == (3, 4, 5) and prediction.score is None
    assert float(prediction.amap.mean()) < 0.9 * float(before.mean())
    assert method.zero_shot_map(images).shape == (3, 4, 5)


def test_the_cache_of_features_changes_no_bit() -> None:
    train, results = Stripes((56, 70), 9), []
    for engine in ("fast", "reference"):
        method = InpFormer(PARAMS, make_context(dtype=torch.float32, engine=engine))
        method.fit(train)
        results.append(method.predict(train.batch(range(2))).amap)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


# --- few-shot variants and the app's bytes ----------------------------------------------------------------------------


def test_variants_keep_the_original_first_and_move_the_right_way() -> None:
    image = torch.from_numpy(np.random.RandomState(0).standard_normal((3, 40, 40)).astype(np.float32))
    found = variants(image)
    assert found.shape == (COUNT, 3, 40, 40) and COUNT == 22
    assert torch.equal(found[0], image) and torch.equal(found[17], image.flip(-1))
    assert torch.equal(found[19], torch.rot90(image, 1, (1, 2)))
    # +0.2 moves the content left and up by a tenth of the side: 4 pixels.
    torch.testing.assert_close(found[9][:, :36, :36], image[:, 4:, 4:], rtol=1e-4, atol=1e-4)
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    torch.testing.assert_close(found[18], grey.expand(3, -1, -1), rtol=1e-6, atol=1e-6)


def test_shuffling_follows_a_generator() -> None:
    image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(4))
    assert torch.equal(shuffled_variants(image, torch.Generator().manual_seed(4)), variants(image)[order])


class Stored:
    """A training set of given tensors, as the original holds its variants."""

    categories = ("stripes",)

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.samples = [Sample(f"{index}.png", "stripes", "train", 0) for index in range(len(images))]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Any) -> Tensor:
        return self.images[list(indices)]

    def masks(self, indices: Any) -> Tensor:
        return torch.zeros(len(indices), *self.images.shape[-2:], dtype=torch.bool)

    def pixels(self, indices: Any) -> Tensor:
        return torch.zeros(len(indices), 3, *self.images.shape[-2:], dtype=torch.uint8)


SQUARE = dataclasses.replace(PARAMS, input_size=(56, 56), crop_size=(56, 56), steps=None, epochs=2)


def test_variants_as_a_training_set_are_those_of_each_image_and_read_it_once() -> None:
    train = Stripes((28, 28), 3)
    reads: list[list[int]] = []
    inner = train.batch
    train.batch = lambda indices: reads.append(list(indices)) or inner(indices)  # type: ignore[method-assign]
    found = Variants(train)
    assert len(found) == len(found.samples) == 66 and found.samples[22] is found.samples[43] is train.samples[1]
    indices = [45, 2, 44, 65, 20]
    expected = torch.cat([variants(image) for image in inner(range(3))])
    assert torch.equal(found.batch(indices), expected[indices])
    assert reads == [[2, 0]]
    assert found.masks(indices).shape == (5, 28, 28)
    train.batch = lambda indices: inner(indices).double()  # type: ignore[method-assign]
    assert found.batch([3]).dtype == torch.float64


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_few_shot_trains_on_every_variant_of_the_support(engine: Any) -> None:
    support = Stripes((56, 56), 1).batch([0])
    method = InpFormer(SQUARE, make_context(dtype=torch.float32, engine=engine, setting="few_shot"))
    steps: list[int] = []
    loss = method.loss
    method.loss = lambda output, step: steps.append(step) or loss(output, step)  # type: ignore[method-assign]
    method.fit(Stored(support))
    assert steps == list(range(2 * (22 // 4))), "epochs of floor(22 k C / batch) steps"
    reference = InpFormer(SQUARE, make_context(dtype=torch.float32, engine=engine))
    reference.fit(Stored(variants(support[0])))
    for key, value in reference.state().items():
        torch.testing.assert_close(method.state()[key], value, rtol=1e-5, atol=1e-6)


def test_few_shot_needs_a_square() -> None:
    with pytest.raises(UsageError, match="expected a square crop, found 56x70") as caught:
        InpFormer(PARAMS, make_context(setting="few_shot")).fit(Stripes((56, 70), 1))
    assert "crop_size=56x56" in caught.value.hint


def test_zero_shot_predicts_the_distance_to_the_nearest_prototype() -> None:
    images = Stripes((56, 70), 2).batch([0, 1]).double()
    method = InpFormer(PARAMS, make_context(setting="zero_shot"))
    found = method.predict(images).amap
    with torch.no_grad():
        output = method.decode(method.encode(images))
    for image, tokens, prototypes in zip(found, method.encode(images).fused, output.prototypes, strict=True):  # type: ignore[attr-defined]
        for token, value in zip(tokens, image.flatten(), strict=True):
            nearest = min(1 - float(reference_cosine(token, prototype)) for prototype in prototypes)
            assert float(value) == pytest.approx(nearest, abs=1e-12)
    other = InpFormer(PARAMS, make_context())
    assert not torch.allclose(other.predict(images).amap, found)


def test_bytes_of_the_app_wrap_around() -> None:
    found = to_bytes(torch.tensor([[[0.0, 0.5, 1.0, 256.9 / 255, 1.5]]]))
    assert found.tolist() == [[[0, 127, 255, 0, 382 - 256]]]
