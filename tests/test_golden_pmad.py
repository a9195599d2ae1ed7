"""Golden numbers of PMAD: every case of the folder, dispatched by its kind; an unknown kind fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import golden
import golden_pmad
import golden_pmad_maps
import golden_pmad_training
import numpy as np
import pytest
from golden import Case

FAMILY = "pmad"
FULL_SIZE = 1 << 26  # parameters beyond which a case is slow

KINDS: dict[str, Callable[[Case], None]] = {
    "recon": golden_pmad.check_recon,
    "vit_tokenizer": golden_pmad.check_vit_tokenizer,
    "dvae": golden_pmad.check_dvae,
    "train_masks": golden_pmad_training.check_train_masks,
    "schedule": golden_pmad_training.check_schedule,
    "train_steps": golden_pmad_training.check_train_steps,
    "embedding": golden_pmad_maps.check_embedding,
    "flow": golden_pmad_maps.check_flow,
    "prototypes": golden_pmad_maps.check_prototypes,
    "proposal": golden_pmad_maps.check_proposal,
    "evaluation": golden_pmad_maps.check_evaluation,
    "protoflow_train": golden_pmad_maps.check_protoflow_train,
    "transforms": golden_pmad_maps.check_transforms,
}


def check(case: Case) -> None:
    kind = case.config["kind"]
    assert kind in KINDS, (
        f"golden case {FAMILY}/{case.name} is of a kind that this runner does not know: {kind}; {', '.join(KINDS)}"
    )
    KINDS[kind](case)


def _names() -> list[object]:
    """The cases; those of a full-size transformer are slow."""
    names: list[object] = []
    for name in golden.case_names(FAMILY):
        if name == "index":
            continue
        config = golden.read_case(FAMILY, name).config.get("config", {})
        big = config.get("depth", 0) * config.get("embed_dim", 0) ** 2 * 12 > FULL_SIZE
        names.append(pytest.param(name, marks=pytest.mark.slow) if big else name)
    return names


@pytest.mark.parametrize("name", _names())
def test_case(name: str) -> None:
    check(golden.read_case(FAMILY, name))


def test_an_unknown_kind_fails() -> None:
    with pytest.raises(AssertionError, match="does not know"):
        check(Case(FAMILY, "x", {"kind": "something_else"}, {}))


@pytest.mark.parametrize("name", ["flow_even", "prototypes", "proposal", "train_masks", "recon_tiny"])
def test_a_wrong_number_fails(name: str) -> None:
    """The runner compares every array: a change of any one of them is noticed."""
    case = golden.read_case(FAMILY, name, golden.COMMITTED)
    for key, values in case.arrays.items():
        changed = values.copy().astype(np.float64)
        changed.reshape(-1)[len(changed.reshape(-1)) // 2] += 1.0
        with pytest.raises(AssertionError, match=key.split("_")[0]):
            check(replace(case, arrays={**case.arrays, key: changed}))
        break
