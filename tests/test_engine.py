"""The fast engine is the reference's mathematics: factors, tiers, loss curves, final metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methodkit import Stripes, make_context
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness import params as parameters
from inpbench.harness.metrics.category import CategoryMetrics
from inpbench.harness.registry import METHODS, resolve
from inpbench.harness.scoring import image_scores, smooth_maps
from inpbench.harness.scratch import Scratch
from inpbench.methods.attention import ReluCosineAttention
from inpbench.methods.blocks import CrossAttentionBlock, initialise
from inpbench.methods.compiling import CompiledOnce
from inpbench.methods.factored import factored_block, pays
from inpbench.methods.features import FeatureSource
from inpbench.methods.fusion import gather, is_partition
from inpbench.methods.losses import mined_global_cosine, soft_mining_weight

SIZE = (112, 112)
SMALL = {"encoder": "builtin", "input_size": "112", "crop_size": "112", "decoder_depth": "2", "batch_size": "4", "warmup": "10"}
GROUPS = {"encoder_groups": "0,1,2,3;4,5,6,7", "decoder_groups": "0;1"}


def build(name: str, engine: str, dtype: torch.dtype = torch.float32, **changes: str) -> Any:
    info = METHODS.get(name)
    params = parameters.build(name, info.params, {**SMALL, **GROUPS, **changes})
    return resolve(info.target)(params, make_context(dtype=dtype, engine=engine))


# --- the decoder in factors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "prototypes"), [(17, 2), (30, 6), (5, 1)])
def test_a_block_in_factors_is_the_block(tokens: int, prototypes: int) -> None:
    torch.manual_seed(0)
    block = CrossAttentionBlock(24, ReluCosineAttention(24, 3), residual=False).double()
    initialise([block])
    for parameter in block.parameters():  # biases, norms and scales away from their first values
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(2, tokens, 24, dtype=torch.float64, requires_grad=True)
    source = torch.randn(2, prototypes, 24, dtype=torch.float64, requires_grad=True)
    wanted = [x, source, *block.parameters()]
    direction = torch.randn(2, tokens, 24, dtype=torch.float64)
    expected, found = block(x, source), factored_block(block, x, source)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    gradients = [torch.autograd.grad((output * direction).sum(), wanted) for output in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_factors_are_used_where_they_pay() -> None:
    assert pays(768, 12, 6, 784) and pays(384, 6, 6, 256)
    assert not pays(96, 12, 6, 196)  # the built-in encoder: as many rows as channels


# --- losses ---------------------------------------------------------------------------------------------------------


def hooked_loss(a: Tensor, b: Tensor, power: float) -> Tensor:
    """The original's way: a hook scales the gradient that arrives at b."""
    distance = 1.0 - F.cosine_similarity(a, b, dim=1).detach()[:, None]
    b.register_hook(lambda gradient: gradient * soft_mining_weight(distance, power))
    return (1.0 - F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)).mean()


def test_the_one_pass_loss_is_that_of_the_hook() -> None:
    torch.manual_seed(1)
    a, raw = torch.randn(3, 5, 4, 6, dtype=torch.float64), torch.randn(3, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    raw.data[0, :, 1, 2] = 0.0  # a point without direction
    expected = hooked_loss(a, raw * 1.5, 3.0)
    found = mined_global_cosine([a], [raw * 1.5], lambda distance: soft_mining_weight(distance, 3.0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, raw), torch.autograd.grad(expected, raw))


def test_an_empty_image_has_a_finite_gradient() -> None:
    a, b = torch.randn(2, 3, 2, 2), torch.zeros(2, 3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(mined_global_cosine([a], [b]), b)
    assert torch.isfinite(gradient).all() and float(gradient.abs().max()) > 0


# --- tiers ----------------------------------------------------------------------------------------------------------


def encode(images: Tensor) -> Any:
    tokens = images.flatten(2).transpose(1, 2)  # (B, 4, 3)
    tokens = torch.cat((tokens[:, :1] * 9.0, tokens), dim=1)  # one prefix token
    layers = [tokens * (i + 1) + torch.sin(tokens * i) for i in range(4)]
    return gather(layers, ((0, 1), (2, 3)), (2, 2), keep_prefix=True)


def test_every_tier_holds_the_same_bits(tmp_path: Path) -> None:
    train = Stripes((2, 2), 7)
    context = make_context(dtype=torch.float32)
    context.array = Scratch(tmp_path / "scratch")
    wanted = [6, 0, 3]
    direct = encode(train.batch(wanted))
    for cache in ("host", "file", "none"):
        context.cache = cache
        source = FeatureSource(train, encode, 3, context, is_partition(((0, 1), (2, 3)), 4))
        assert source.tier == cache
        found = source.batch(wanted, upcoming=[1, 2])
        assert torch.equal(found.fused, direct.fused)
        assert all(torch.equal(a, b) for a, b in zip(found.groups, direct.groups, strict=True))
    assert not any((tmp_path / "scratch").iterdir())  # nothing is left behind


def test_the_tier_is_the_first_with_room(tmp_path: Path) -> None:
    context = make_context(dtype=torch.float32)
    needed = 7 * (1 + 4 + 4) * 3 * 4  # prefix and two groups: the fused patch tokens are not stored
    context.cache_bytes = needed
    assert FeatureSource(Stripes((2, 2), 7), encode, 3, context, True).tier == "host"
    context.cache_bytes = needed - 1
    assert FeatureSource(Stripes((2, 2), 7), encode, 3, context, True).tier == "none"
    context.array = Scratch(tmp_path)
    assert FeatureSource(Stripes((2, 2), 7), encode, 3, context, True).tier == "file"


def test_a_full_disk_is_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Scratch(tmp_path)("huge", (1 << 50,), torch.float32) is None
    assert "GB free" in caplog.text


# --- compilation ----------------------------------------------------------------------------------------------------


def test_a_failing_compiler_costs_no_result(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def failing(function: Any, **_: Any) -> Any:
        def call(*arguments: Any) -> Any:
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    doubled = CompiledOnce(lambda x: 2 * x, "doubling", True)
    assert [doubled((1,), 3), doubled((1,), 4), doubled((2,), 5)] == [6, 8, 10]
    assert caplog.text.count("no compiler") == 1


# --- both engines ---------------------------------------------------------------------------------------------------


class Patterns(Stripes):
    """Stripes whose phase and slope differ from image to image, some with a spot."""

    def __init__(self, count: int, first: int = 0, size: tuple[int, int] = SIZE) -> None:
        super().__init__(size, count)
        self.pictures = torch.stack([self.draw(first + i) for i in range(count)])

    def draw(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        rows, columns = torch.meshgrid(torch.arange(float(self.size[0])), torch.arange(float(self.size[1])), indexing="ij")
        phase = 6.0 * float(torch.rand((), generator=generator))
        noise = torch.randn(3, *self.size, generator=generator)
        return torch.sin((rows + 0.6 * columns) / 4.0 + phase).expand(3, -1, -1) + 0.05 * noise

    def batch(self, indices: Any) -> Tensor:
        return self.pictures[list(indices)]


def curve(method: Any, train: Any, steps: int) -> list[float]:
    """Losses of all steps of a fit."""
    losses: list[float] = []
    original = method.loss

    def recorded(output: Any, step: int) -> Tensor:
        loss: Tensor = original(output, step)
        losses.append(float(loss.detach()))
        return loss

    method.loss = recorded
    method.fit(train)
    assert len(losses) == steps
    return losses


def measured(method: Any) -> dict[str, float | None]:
    """Metrics on half normal, half spotted images."""
    images = Patterns(8, first=1000).batch(range(8)).clone()
    masks = torch.zeros(8, *SIZE, dtype=torch.bool)
    masks[4:, 40:70, 30:58] = True
    images[4:, :, 40:70, 30:58] = 0.7
    maps = smooth_maps(method.predict(images).amap, SIZE)
    metrics = CategoryMetrics()
    truth = F.interpolate(masks[:, None].float(), size=(256, 256))[:, 0] > 0.5
    metrics.update(maps, image_scores(maps), truth, torch.tensor([0] * 4 + [1] * 4))
    return dict(metrics.compute().values)


@pytest.mark.parametrize("name", ["inp_former", "dinomaly"])
def test_both_engines_learn_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 steps: each loss within 1e-3 relative, each metric within 0.2 points; factors forced on for INP-Former."""
    monkeypatch.setattr("inpbench.methods.inp_former.model.pays", lambda *_: True)
    train, curves, metrics = Patterns(12), {}, {}
    for engine in ("fast", "reference"):
        method = build(name, engine, steps="20", warmup="2")
        curves[engine], metrics[engine] = curve(method, train, 20), measured(method)
    assert curves["fast"][-1] < 0.9 * curves["fast"][0]
    torch.testing.assert_close(torch.tensor(curves["fast"]), torch.tensor(curves["reference"]), rtol=1e-3, atol=0.0)
    for key, value in metrics["reference"].items():
        found = metrics["fast"][key]
        assert value is not None and found is not None and abs(found - value) < 0.002, key


@pytest.mark.parametrize("name", ["inp_former", "dinomaly"])
def test_in_float64_the_engines_are_one_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What float32 metrics differ by after a training is rounding that the training amplifies: in float64 nothing is left."""
    monkeypatch.setattr("inpbench.methods.inp_former.model.pays", lambda *_: True)
    train, curves, maps = Patterns(12), [], []
    for engine in ("fast", "reference"):
        method = build(name, engine, torch.float64, steps="20", warmup="2")
        train.pictures = train.pictures.double()
        curves.append(torch.tensor(curve(method, train, 20), dtype=torch.float64))
        maps.append(method.predict(Patterns(4, first=1000).batch(range(4)).double()).amap)
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-8, atol=1e-10)


# --- what only a GPU uses, as far as a CPU can tell ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inp_former", "dinomaly"])
def test_bfloat16_products_keep_losses_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inpbench.methods.inp_former.model.pays", lambda *_: True)
    images, found = Patterns(4).batch(range(4)), []
    for half in (False, True):
        method = build(name, "fast", **({"dropout": "0.0"} if name == "dinomaly" else {}))
        if half:
            monkeypatch.setattr(method, "_autocast", lambda: torch.autocast("cpu", torch.bfloat16))
        loss = method.loss(method.decode(method.encode(images)), 5)
        loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in method.network.parameters()])
        assert loss.dtype == gradient.dtype == torch.float32
        found.append((float(loss.detach()), gradient))
    (exact, full), (rounded, halved) = found
    assert abs(rounded - exact) < 1e-2 * exact
    assert float(F.cosine_similarity(full, halved, dim=0)) > 0.99


@pytest.mark.parametrize("name", ["inp_former", "dinomaly"])
def test_encoder_and_network_are_captured_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph break, in training under autocast and in testing: `backend="eager"` runs the captured graph without a compiler."""
    monkeypatch.setattr("inpbench.methods.inp_former.model.pays", lambda *_: True)
    method = build(name, "fast", encoder="dinov2reg_vit_small_14", **({"dropout": "0.0"} if name == "dinomaly" else {}))
    images = Patterns(2).batch(range(2))

    def captured(function: Any) -> Any:
        return torch.compile(function, dynamic=False, fullgraph=True, backend="eager")

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layers = captured(method.encoder.layers)(images, method.params.layers)
        expected = method.encoder.layers(images, method.params.layers)
    assert all(torch.equal(a, b) for a, b in zip(layers, expected, strict=True))
    features = method.encode(images)
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode(), torch.autocast("cpu", torch.bfloat16):
            output, plain = captured(method.network)(features), method.network(features)
        for one, other in zip(output.outputs, plain.outputs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "falling", "last", "mean"), [("inp_former", 0.1, 0.05, 0.02), ("dinomaly", 1e-3, 1e-3, 1e-4)])
def test_loss_curves_over_300_steps(name: str, falling: float, last: float, mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of 20 steps agree while the loss falls, so do the last 100 steps, and their mean: within these shares of themselves.

    Measured for INP-Former in factors, whose training amplifies rounding: 0.06, 0.02 and 0.007; for Dinomaly 4e-6, 4e-6 and 6e-7.
    """
    monkeypatch.setattr("inpbench.methods.inp_former.model.pays", lambda *_: True)
    train, small = Patterns(12, size=(56, 56)), {"input_size": "56", "crop_size": "56", "steps": "300"}
    fast, slow = (torch.tensor(curve(build(name, engine, **small), train, 300)) for engine in ("fast", "reference"))
    assert slow[-20:].mean() < 0.1 * slow[0]
    torch.testing.assert_close(fast.view(15, 20).mean(1), slow.view(15, 20).mean(1), rtol=falling, atol=0.0)
    torch.testing.assert_close(fast[-100:], slow[-100:], rtol=last, atol=0.0)
    torch.testing.assert_close(fast[-100:].mean(), slow[-100:].mean(), rtol=mean, atol=0.0)
