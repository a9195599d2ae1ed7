"""The settings of the field, as data."""

from __future__ import annotations

import pytest

from inpbench.harness.api import MethodInfo
from inpbench.harness.errors import UsageError
from inpbench.harness.settings import SETTINGS, get_setting


def test_names_are_those_methods_may_declare() -> None:
    assert set(SETTINGS) == MethodInfo.SETTINGS_ALL


def test_planned_settings_are_refused_with_a_reason() -> None:
    assert get_setting("multi_class").refusal == ""
    assert all(setting.refusal.startswith("not yet") for setting in SETTINGS.values() if not setting.working)


def test_typo() -> None:
    with pytest.raises(UsageError, match="Did you mean: multi_class"):
        get_setting("multiclass")
