"""Trains tiny models of several kinds, alone or as a process of torchrun: `torchrun ... team_fit.py OUT` writes what rank 0 has."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from methodkit import SMALL_DECODER, TINY, Stripes, make_context
from torch import Tensor

from inpbench.harness import params as parameters
from inpbench.harness.api import Alone
from inpbench.harness.errors import BenchError
from inpbench.harness.process_group import Team, join
from inpbench.harness.registry import METHODS, resolve
from inpbench.methods import encoder_table

SMALL = SMALL_DECODER | {"warmup": "2", "steps": "24", "lr": "1e-3"}
# Name: method, changes, images, how features are kept (or `reference`: the engine), dtype
CASES: dict[str, tuple[str, dict[str, str], int, str, torch.dtype]] = {
    "inp_former": ("inp_former", {"batch_size": "5"}, 12, "auto", torch.float64),
    "inp_former_with_class_token": ("inp_former", {"batch_size": "4", "remove_class_token": "no"}, 9, "none", torch.float64),
    "inp_former_one_image": ("inp_former", {"batch_size": "16"}, 1, "auto", torch.float64),
    "inp_former_float32": ("inp_former", {"batch_size": "4"}, 8, "auto", torch.float32),
    "inp_former_reference": ("inp_former", {"batch_size": "3"}, 7, "reference", torch.float64),
    "dinomaly": ("dinomaly", {"batch_size": "5", "mining_ramp": "10"}, 12, "auto", torch.float64),
    "dinomaly_not_kept": ("dinomaly", {"batch_size": "3", "mining_ramp": "10", "dropout": "0.4"}, 7, "none", torch.float64),
    "dinomaly_one_image": ("dinomaly", {"batch_size": "1", "mining_ramp": "0"}, 3, "none", torch.float64),
    "dinomaly_float32": ("dinomaly", {"batch_size": "4", "mining_ramp": "10"}, 8, "auto", torch.float32),
}


class Images(Stripes):
    """Stripes of a dtype."""

    def __init__(self, size: tuple[int, int], count: int, dtype: torch.dtype) -> None:
        super().__init__(size, count)
        self._dtype = dtype

    def batch(self, indices: Sequence[int]) -> Tensor:
        return super().batch(indices).to(self._dtype)


def train(name: str, team: Team | None) -> dict[str, Any]:
    """The trained tensors of a case, the losses that were reported, and a number of the generator afterwards."""
    encoder_table.ENCODERS[TINY.name] = TINY
    method_name, changes, count, cache, dtype = CASES[name]
    losses: list[float] = []
    context = make_context(dtype=dtype)
    context.ranks = team or Alone()
    if cache == "reference":
        context.engine = "reference"
    else:
        context.cache = cache  # type: ignore[assignment]
    context.progress = lambda done, total, text="", **numbers: losses.extend(numbers[key] for key in numbers if key == "loss")
    info = METHODS.get(method_name)
    method = resolve(info.target)(parameters.build(method_name, info.params, {**SMALL, **changes}), context)
    torch.manual_seed(5)
    method.fit(Images((56, 70), count, dtype))
    return {"state": method.state(), "losses": losses, "next": torch.rand(1)}


def main() -> None:
    """Train all cases on this team."""
    team = join()
    assert team is not None, "start it with torchrun"
    team.connect(torch.device("cpu"))
    found = {name: train(name, team) for name in CASES}
    team.check_same(found["dinomaly"]["state"])
    spoilt = {key: value * (1.0 + team.rank) for key, value in found["dinomaly"]["state"].items()}
    try:
        team.check_same(spoilt)
    except BenchError as error:
        found["refusal"] = {"message": error.message}
    torch.save(found, f"{sys.argv[1]}.{team.rank}")
    if team.rank == 0:
        torch.save(team.first({"a": 1, "b": torch.ones(3)}), f"{sys.argv[1]}.first")
    else:
        given = team.first(None)
        assert given is not None and given["a"] == 1 and torch.equal(given["b"], torch.ones(3))
    team.end()


if __name__ == "__main__":
    main()
