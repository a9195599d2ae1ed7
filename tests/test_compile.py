"""What CUDA needs of a step, as far as a CPU can tell: nothing waits for the device, nothing is compiled twice, no graph breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methodkit import Stripes, make_context
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inpbench.harness import params as parameters
from inpbench.harness.registry import METHODS, resolve
from inpbench.methods.features import FeatureSource
from inpbench.methods.training import BatchOrder, Trainer

SIZE = (112, 112)
SMALL = {
    "encoder": "builtin",
    "input_size": "112",
    "crop_size": "112",
    "decoder_depth": "2",
    "batch_size": "4",
    "warmup": "2",
    "decoder_groups": "0;1",
    "steps": "6",
}
NAMES = ["inp_former", "dinomaly"]
# What reads a number off the device, or makes a tensor whose size is one.
WAITING = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "repeat_interleave"}


class NothingWaits(TorchDispatchMode):
    """Refuses operations for which CUDA would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in WAITING, f"{func} waits for the device"
        if func.overloadpacket.__name__ in ("index", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "an index by truth waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder in factors, heads, MLPs and dropout by themselves, as on CUDA."""
    monkeypatch.setattr("inpbench.methods.inp_former.model.pays", lambda *_: True)
    monkeypatch.setattr("inpbench.methods.narrow_heads.pays", lambda *_: False)
    monkeypatch.setattr("inpbench.methods.narrow_mlp.pays", lambda *_: False)
    monkeypatch.setattr("inpbench.methods.fast_dropout.pays", lambda *_: False)


def build(name: str, **changes: str) -> Any:
    info = METHODS.get(name)
    return resolve(info.target)(parameters.build(name, info.params, {**SMALL, **changes}), make_context(dtype=torch.float32))


class Pictures(Stripes):
    def batch(self, indices: Any) -> Tensor:
        return super().batch(indices).float()


@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits(name: str) -> None:
    """Features from the cache, forward, loss, backward, clipping, optimiser."""
    method, train = build(name), Pictures(SIZE, 10)
    order = BatchOrder(len(train), 4, 1)
    source = FeatureSource(train, method.encode, 4, method.ctx, True)
    assert source.cached
    trainer = Trainer(
        module=method.network.train(),
        optimiser=method.optimiser(),
        schedule=method.schedule(10),
        loss=lambda indices, step: method.loss(method.decode(source.batch(indices, order.batch(step + 1))), step),
        order=order,
        steps=10,
        clip_norm=0.1,
        ctx=method.ctx,
    )
    with NothingWaits():
        for step in range(5):  # over the end of an epoch
            trainer.step(step)


def test_what_waits_is_seen() -> None:
    x = torch.arange(4.0)
    for waiting in (lambda: float(x.sum()), lambda: bool(x[0] > 0), lambda: x[x > 1], lambda: x.nonzero()):
        with NothingWaits(), pytest.raises(AssertionError, match="waits for the device"):
            waiting()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_compiled_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning rates, mining shares, epochs, smaller last batches, testing in between: a graph each for what is compiled."""
    compiler = torch.compile

    def captured(function: Any, **options: Any) -> Any:
        return compiler(function, backend="eager", fullgraph=True, **options)  # whole graphs, run without a compiler

    monkeypatch.setattr(torch, "compile", captured)
    monkeypatch.setattr("inpbench.methods.reconstruction.compiles", lambda _: True)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    method, train = build(name, **({"mining_ramp": "4"} if name == "dinomaly" else {})), Pictures(SIZE, 10)
    images = train.batch(range(4))

    def round_trip() -> int:
        method.fit(train)  # 10 images: the last batch of the features has 2
        with torch.inference_mode():
            for count in (4, 4, 3):
                method.predict(images[:count])
        return int(counters["stats"]["unique_graphs"])

    assert round_trip() == 8  # encoder and network, in training and in testing; two passes each of the loss and the optimiser
    assert round_trip() == 8
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 5):  # older torch knows a module by its address
        method = build(name)  # the model of another category
        assert round_trip() == 8
    assert not counters["graph_break"] and method._layers._compiled is not None
    torch._dynamo.reset()
