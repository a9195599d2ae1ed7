"""On a CUDA device: the numbers of the CPU, the reference's loss curve, and the memory that is promised.

Tolerances: float32 without TF32 agrees to 1e-4 of the largest value; bfloat16 products to 3e-2; a bfloat16 loss curve lies within
10 % of the float32 reference at each of 300 steps (averaged over 20) and within 5 % over the last 50. Where it is compiled the
decoder has two blocks, for a quarter of the compiler's time. That nothing fell back to uncompiled code is asserted.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from methodkit import Stripes, make_context
from torch import Tensor

from inpbench.harness import params as parameters
from inpbench.harness.evaluation import Stopwatch
from inpbench.harness.metrics.category import CategoryMetrics
from inpbench.harness.precision import keep_float32
from inpbench.harness.registry import METHODS, resolve
from inpbench.harness.scoring import image_scores, smooth_maps
from inpbench.methods.compiled_update import CompiledUpdate
from inpbench.methods.features import FeatureSource
from inpbench.methods.optim import StableAdamW

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch sees none"),
]

CPU = torch.device("cpu")
SMALL = {"encoder": "dinov2reg_vit_small_14", "input_size": "112", "crop_size": "112", "batch_size": "4", "warmup": "20"}
NAMES = ["inp_former", "dinomaly"]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """As in every run of the bench; memory of the test before is free."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    keep_float32()
    gc.collect()
    torch.cuda.empty_cache()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class OnDevice(Stripes):
    """Stripes on a device."""

    def __init__(self, size: tuple[int, int], count: int, device: torch.device) -> None:
        super().__init__(size, count)
        self.pictures = super().batch(range(count)).to(device)

    def batch(self, indices: Any) -> Tensor:
        return self.pictures[list(indices)]


class HostImages(Stripes):
    """Stripes drawn on the host and copied batch by batch."""

    def batch(self, indices: Any) -> Tensor:
        return super().batch(indices).float().to(cuda())


def build(name: str, device: torch.device, engine: str, compile_: bool = False, **changes: str) -> Any:
    info = METHODS.get(name)
    context = make_context(dtype=torch.float32, engine=engine)
    context.device, context.compile = device, compile_
    return resolve(info.target)(parameters.build(name, info.params, {**SMALL, **changes}), context)


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found.cpu().float() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("engine", "tolerance"), [("reference", 1e-4), ("fast", 3e-2)])
@pytest.mark.parametrize("name", NAMES)
def test_features_losses_and_maps_are_those_of_the_cpu(name: str, engine: str, tolerance: float) -> None:
    here, there = build(name, CPU, "reference"), build(name, cuda(), engine)
    images = Stripes((112, 112), 3).batch(range(3))
    expected, found = here.encode(images), there.encode(images.to(cuda()))
    assert apart(found.fused, expected.fused) < tolerance
    assert all(apart(a, b) < tolerance for a, b in zip(found.groups, expected.groups, strict=True))
    with torch.no_grad():
        losses = [float(method.loss(method.decode(f), 5)) for method, f in ((here, expected), (there, found))]
    assert abs(losses[1] - losses[0]) < tolerance * abs(losses[0])
    assert apart(there.predict(images.to(cuda())).amap, here.predict(images).amap) < tolerance


def test_metrics_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(8, 28, 28, generator=generator)
    masks = torch.zeros(8, 256, 256, dtype=torch.bool)
    masks[4:, 20:60, 30:90] = True
    smoothed = smooth_maps(maps, (392, 392)) + 0.1 * masks
    labels, values = torch.tensor([0] * 4 + [1] * 4), []
    for device in (CPU, cuda()):
        metrics = CategoryMetrics(device=device)
        on_device = smoothed.to(device)
        metrics.update(on_device, image_scores(on_device).round(decimals=5), masks.to(device), labels)
        values.append(dict(metrics.compute().values))
    assert values[0].keys() == values[1].keys()
    for key, value in values[0].items():
        assert value is not None and values[1][key] == pytest.approx(value, abs=1e-6), key


def test_evaluation_does_not_wait_for_the_device() -> None:
    """Predicting, timing and counting of batches whose masks are on the host, one image without pixel ground truth."""
    method, images = build("inp_former", cuda(), "fast"), Stripes((112, 112), 4).batch(range(4)).to(cuda())
    masks = torch.zeros(4, 256, 256, dtype=torch.bool)
    masks[2:, 20:60, 30:90] = True
    metrics, watch = CategoryMetrics(device=cuda()), Stopwatch(cuda())
    try:
        for step in range(3):
            torch.cuda.set_sync_debug_mode("error" if step else "default")  # what is built at the first batch may wait
            with torch.inference_mode(), watch:
                maps = smooth_maps(method.predict(images + step).amap, (112, 112))
                scores = image_scores(maps)
            metrics.update(maps, scores, masks, [0, 0, 1, 1], [True, False, True, True])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.seconds > 0 and metrics.compute().values["aupro"] is not None


@pytest.mark.parametrize("decimals", [2, 6])
def test_pixel_metrics_of_many_ties_are_those_of_the_cpu_twice(decimals: int) -> None:
    """To 1e-12, and bit for bit from one time to the next."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(64, 256, 256, dtype=torch.bool)
    masks[::2, 20:90, 30:90] = masks[::3, 200:210, 5:7] = True
    maps = (torch.rand(64, 256, 256, generator=generator) + 0.2 * masks).round(decimals=decimals)
    values = []
    for device in (CPU, cuda(), cuda()):
        metrics = CategoryMetrics(device=device)
        for part in (slice(0, 40), slice(40, 64)):
            metrics.update(maps[part].to(device), maps[part].amax((1, 2)).to(device), masks[part], masks[part].any((1, 2)).long())
        values.append(dict(metrics.compute().values))
    assert values[1] == values[2]
    for key, value in values[0].items():
        assert values[1][key] == pytest.approx(value, abs=1e-12), key


def test_the_compiled_optimiser_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """In float32, over steps with other rates, tensors of all sizes; the larger gradients make the step shrink."""
    found: dict[bool, list[Tensor]] = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        shapes = [(6, 384), (384,), (12, 1, 1), (384, 1536), (1536,), (3, 5)]
        tensors = [torch.nn.Parameter(torch.randn(shape).to(cuda())) for shape in shapes]
        update = CompiledUpdate() if compiled else None
        optimiser = StableAdamW(tensors, weight_decay=1e-4, eps=1e-10, amsgrad=True, compiled=update)
        for step in range(12):
            optimiser.param_groups[0]["lr"] = 1e-3 * step
            for tensor in tensors:
                tensor.grad = torch.randn(tensor.shape).to(cuda()) * 1.5**step
            torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
            try:
                optimiser.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found[compiled] = [tensor.detach() for tensor in tensors]
    assert "torch.compile failed" not in caplog.text
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_fast_loss_curve_is_that_of_the_reference(name: str, compiled: bool, caplog: pytest.LogCaptureFixture) -> None:
    curves = {}
    changes = {"steps": "300", **({"dropout": "0.0"} if name == "dinomaly" else {})}
    if compiled:
        changes |= {"decoder_depth": "2", "decoder_groups": "0;1"}
    for engine in ("reference", "fast"):
        method = build(name, cuda(), engine, compiled, **changes)
        losses: list[Tensor] = []
        original = method.loss

        def recorded(output: Any, step: int, original: Any = original, losses: list[Tensor] = losses) -> Tensor:
            loss: Tensor = original(output, step)
            losses.append(loss.detach())
            return loss

        method.loss = recorded
        with caplog.at_level(logging.WARNING, logger="inpbench"):
            method.fit(OnDevice((112, 112), 12, cuda()))
        curves[engine] = torch.stack(losses).cpu()
    assert "torch.compile failed" not in caplog.text
    assert (method._train_network._compiled is not None) == compiled
    fast, slow = (curves[engine].view(15, 20).mean(1) for engine in ("fast", "reference"))
    torch.testing.assert_close(fast, slow, rtol=0.10, atol=0.0)
    torch.testing.assert_close(curves["fast"][-50:].mean(), curves["reference"][-50:].mean(), rtol=0.05, atol=0.0)


def test_tiers_hold_the_same_bits_on_the_device() -> None:
    method, train = build("inp_former", cuda(), "fast"), OnDevice((112, 112), 10, cuda())
    found = []
    for tier in ("device", "host"):
        method.ctx.cache = tier
        source = FeatureSource(train, method.encode, 4, method.ctx, True)
        assert source.tier == tier
        source.batch([1, 2], upcoming=[7, 0, 3])
        found.append(source.batch([7, 0, 3]))
    assert torch.equal(found[0].fused, found[1].fused)
    assert all(torch.equal(a, b) for a, b in zip(found[0].groups, found[1].groups, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_does_not_wait_for_the_device(name: str) -> None:
    """torch's own detector raises at the first synchronising call."""
    method, train = build(name, cuda(), "fast", steps="6"), OnDevice((112, 112), 8, cuda())
    method.ctx.cache = "device"
    original, steps = method.loss, []

    def watched(output: Any, step: int) -> Tensor:
        steps.append(step)
        torch.cuda.set_sync_debug_mode("error" if 0 < step < 5 else "default")
        loss: Tensor = original(output, step)
        return loss

    method.loss = watched
    try:
        method.fit(train)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == list(range(6))


def test_base_trains_in_8_gb_with_the_cache_on_the_host() -> None:
    """ViT-B/14 with registers at 392, batch 16: the whole multi-class model, its optimiser and the encoder."""
    torch.cuda.reset_peak_memory_stats()
    method = build(
        "inp_former",
        cuda(),
        "fast",
        encoder="dinov2reg_vit_base_14",
        input_size="448",
        crop_size="392",
        batch_size="16",
        steps="6",
    )
    method.ctx.cache = "host"
    method.fit(HostImages((392, 392), 32))
    assert torch.cuda.max_memory_reserved() < 8e9
