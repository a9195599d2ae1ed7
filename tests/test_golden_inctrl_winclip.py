"""Golden numbers of InCTRL and WinCLIP: every case of the folder, dispatched by its kind; an unknown kind fails."""

from __future__ import annotations

from collections.abc import Callable

import golden
import golden_inctrl
import golden_inctrl_tables
import golden_winclip
import pytest
from golden import Case

FAMILY = "inctrl_winclip"
KINDS: dict[str, Callable[[Case], None]] = {
    "winclip_anomalib": golden_winclip.check_anomalib,
    "winclip_malalab": golden_winclip.check_mala_lab,
    "inctrl_eval": golden_inctrl.check_eval,
    "inctrl_train": golden_inctrl.check_training,
    "init": golden_inctrl.check_start,
    "misc": golden_inctrl_tables.check_tables,
    "preprocess": golden_inctrl_tables.check_preprocess,
}


def kind_of(case: Case) -> str:
    """Its `kind`; the two files of tables have none, and are told apart by what they hold, whatever they are called."""
    if "kind" in case.config:
        return str(case.config["kind"])
    if "sampler" in case.config or "scramble" in case.config:
        return "misc"
    starts = "cases" in case.config and all("vision_cfg" in entry for entry in case.config["cases"])
    return "init" if starts else case.name


def handler(kind: str) -> Callable[[Case], None]:
    assert kind in KINDS, (
        f"a golden case of {FAMILY} is of a kind that this runner does not know: {kind}; known: {', '.join(KINDS)}"
    )
    return KINDS[kind]


@pytest.mark.parametrize("name", golden.case_names(FAMILY))
def test_case(name: str) -> None:
    case = golden.read_case(FAMILY, name)
    handler(kind_of(case))(case)


def test_an_unknown_kind_fails() -> None:
    with pytest.raises(AssertionError, match="does not know"):
        handler("something_else")


def test_the_family_is_not_empty() -> None:
    assert golden.case_names(FAMILY), "no golden case of InCTRL and WinCLIP was found"
