"""Golden numbers of Dinomaly and CRR: every case of the folder, dispatched by its kind; an unknown kind fails."""

from __future__ import annotations

from collections.abc import Callable

import golden
import golden_crr
import golden_crr_synthesis
import golden_dinomaly
import pytest
from golden import Case

FAMILY = "dinomaly_crr"


def _eval_metrics(case: Case) -> None:
    import golden_metrics

    golden_metrics.check_eval_metrics(case)


def _transforms(case: Case) -> None:
    import golden_images

    golden_images.check_transforms(case)


def _crr_evaluation(case: Case) -> None:
    import golden_metrics

    golden_metrics.check_crr_evaluation(case)


# The beginning of a case's name -> how it is checked.
KINDS: dict[str, Callable[[Case], None]] = {
    "dinomaly_forward": golden_dinomaly.check_forward,
    "dinomaly_train": golden_dinomaly.check_training,
    "dinov1_posembed": golden_dinomaly.check_position,
    "dinov2_posembed": golden_dinomaly.check_position,
    "linear_attention": golden_dinomaly.check_linear_attention,
    "bmlp_block": golden_dinomaly.check_block,
    "hm_loss": golden_dinomaly.check_hard_mining,
    "other_losses": golden_dinomaly.check_other_losses,
    "stable_adamw": golden_dinomaly.check_optimiser,
    "warmcosine": golden_dinomaly.check_schedule,
    "eval_metrics": _eval_metrics,
    "transforms": _transforms,
    "crr_bmlp6": golden_crr.check_bottleneck,
    "crr_stage1": golden_crr.check_stage_one,
    "crr_stage2": golden_crr.check_stage_two,
    "crr_segnet": golden_crr.check_segmentation,
    "crr_focal": golden_crr.check_focal,
    "crr_eval": _crr_evaluation,
    "crr_perlin": golden_crr_synthesis.check_perlin,
    "crr_rotate": golden_crr_synthesis.check_rotation,
    "crr_augmenters": golden_crr_synthesis.check_augmenters,
    "crr_synth": golden_crr_synthesis.check_synthesis,
}


@pytest.mark.parametrize("name", golden.case_names(FAMILY))
def test_case(name: str) -> None:
    golden.by_beginning(FAMILY, name, KINDS)(golden.read_case(FAMILY, name))


def test_an_unknown_kind_fails() -> None:
    with pytest.raises(AssertionError, match="does not know"):
        golden.by_beginning(FAMILY, "something_else_s1", KINDS)
