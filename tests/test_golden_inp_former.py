"""Golden numbers of INP-Former: every case of the folder, dispatched by its kind; an unknown kind fails."""

from __future__ import annotations

from collections.abc import Callable

import golden
import golden_models
import pytest
from golden import Case

FAMILY = "inp_former"


def _metrics(function: str) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        import golden_metrics

        getattr(golden_metrics, function)(case)

    return check


def _images(function: str) -> Callable[[Case], None]:
    def check(case: Case) -> None:
        import golden_images

        getattr(golden_images, function)(case)

    return check


# The beginning of a case's name -> how it is checked.
KINDS: dict[str, Callable[[Case], None]] = {
    "inp_": golden_models.check_inp_model,
    "enc_": golden_models.check_encoder,
    "soft_mining": golden_models.check_soft_mining,
    "stable_adamw": golden_models.check_stable_adamw,
    "warm_cosine": golden_models.check_warm_cosine,
    "fewshot_aug": golden_models.check_augmentation,
    "init_": golden_models.check_initialisation,
    "fewshot_sampling": _images("check_fewshot_sampling"),
    "mask_pipeline": _images("check_mask_pipeline"),
    "anomaly_map": _metrics("check_anomaly_map"),
    "ader_eval": _metrics("check_ader_eval"),
}


@pytest.mark.parametrize("name", golden.case_names(FAMILY))
def test_case(name: str) -> None:
    golden.by_beginning(FAMILY, name, KINDS)(golden.read_case(FAMILY, name))


def test_an_unknown_kind_fails() -> None:
    with pytest.raises(AssertionError, match="does not know"):
        golden.by_beginning(FAMILY, "something_else_s1", KINDS)
