"""A training step's forward half, testing and scoring on a CUDA device that is only pretended: tensors without numbers.

torch's fake tensors refuse what mixes devices, and autocast acts on them as on a GPU: what becomes bfloat16 and what stays float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from methodkit import make_context
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from inpbench.harness import params as parameters
from inpbench.harness.registry import METHODS, resolve
from inpbench.harness.scoring import image_scores, smooth_maps
from inpbench.methods.compiled_update import CompiledUpdate
from inpbench.methods.optim import StableAdamW

SMALL = {
    "encoder": "dinov2reg_vit_small_14",
    "input_size": "112",
    "crop_size": "112",
    "decoder_depth": "2",
    "decoder_groups": "0;1",
    "target_layers": "0,1",
    "encoder_groups": "0;1",
    "batch_size": "3",
}


def move(module: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot swap real tensors for fake ones in every version of torch."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(change(value.detach()), value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A pretended GPU."""
    monkeypatch.setattr(nn.Module, "_apply", move)
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor)  # looks at its numbers
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda", 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one: tests/test_gpu.py")
@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="older torch pretends no GPU where there is none"
)
@pytest.mark.parametrize(("name", "engine"), [("inp_former", "fast"), ("dinomaly", "fast"), ("dinomaly", "reference")])
def test_nothing_mixes_devices(name: str, engine: str, device: torch.device) -> None:
    info, context = METHODS.get(name), make_context(dtype=torch.float32, engine=engine)
    context.device, context.compile = device, False
    method = resolve(info.target)(parameters.build(name, info.params, SMALL), context)
    images = torch.empty(3, 3, 112, 112, device=device)
    features = method.encode(images)
    assert features.fused.dtype == torch.float32 and features.fused.device == device
    seen: set[torch.dtype] = set()
    linear = [part for part in method.network.modules() if isinstance(part, nn.Linear)]
    hooks = [part.register_forward_hook(lambda _, inputs, output: seen.add(output.dtype)) for part in linear]
    output = method.decode(features)
    assert seen == {torch.bfloat16 if engine == "fast" else torch.float32}
    loss: Tensor = method.loss(output, 1)
    assert loss.device == device and loss.dtype == torch.float32 and loss.requires_grad
    assert all(part.dtype == torch.float32 for part in (*output.targets, *output.outputs))
    for hook in hooks:
        hook.remove()
    for param in method.network.parameters():
        assert param.device == device and param.dtype == torch.float32
        param.grad = torch.empty_like(param)
    norm = nn.utils.clip_grad_norm_(method.network.parameters(), 0.1)
    plain, compiled = method.optimiser(), StableAdamW(method.network.parameters(), amsgrad=True, compiled=CompiledUpdate(False))
    for optimiser in (plain, compiled):
        optimiser.step()
        assert all(divisor.device == device for divisor in (norm, *optimiser.divisors))
    with torch.inference_mode():
        maps = smooth_maps(method.predict(images).amap, (112, 112))
        scores = image_scores(maps)
    assert maps.shape == (3, 256, 256) and scores.shape == (3,)
    assert maps.device == scores.device == device and maps.dtype == torch.float32


def test_a_mix_of_devices_is_seen(device: torch.device) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device=device) + torch.empty(3)
