"""Parameters are parsed with their declared types, never guessed, and refused with the way out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from inpbench.harness import params
from inpbench.harness.api import Size
from inpbench.harness.errors import UsageError


@dataclass(frozen=True)
class Params:
    flag: bool = False
    count: int = 6
    rate: float = 1e-3
    name: str = "x"
    mode: Literal["a", "b"] = "a"
    size: Size = (392, 392)
    layers: tuple[int, ...] | None = None
    groups: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3))
    limit: int | None = None

    def check(self) -> None:
        if self.count < 1:
            raise UsageError("count must be at least 1.", "Type: --set p.count=6")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("flag", "true", True),
        ("flag", "off", False),
        ("count", "12", 12),
        ("rate", "2e-4", 2e-4),
        ("name", "1", "1"),
        ("mode", "b", "b"),
        ("size", "252x756", (252, 756)),
        ("size", "392", (392, 392)),
        ("layers", "2-5,9", (2, 3, 4, 5, 9)),
        ("layers", "none", None),
        ("groups", "0-3;4-7", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("limit", "3", 3),
        ("limit", "None", None),
    ],
)
def test_texts_become_declared_types(key: str, text: str, value: object) -> None:
    assert getattr(params.build("p", Params, {key: text}), key) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("flag", "maybe"),
        ("count", "1.5"),
        ("rate", "nan"),
        ("rate", "inf"),
        ("mode", "c"),
        ("size", "3x"),
        ("layers", "a"),
        ("limit", "x"),
    ],
)
def test_wrong_values_say_what_was_expected(key: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"p\.{key}: expected .*found '{text}'"):
        params.build("p", Params, {key: text})


def test_unknown_key_suggests_the_close_one() -> None:
    with pytest.raises(UsageError, match="Did you mean: count"):
        params.build("p", Params, {"cuont": "1"})


def test_own_check_is_called() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        params.build("p", Params, {"count": "0"})


def test_later_changes_win() -> None:
    assert params.build("p", Params, {"count": 3}, {"count": "4"}).count == 4


def test_label_names_what_differs() -> None:
    assert params.label("p", "paper", Params(), Params()) == "p"
    assert params.label("p", "paper", Params(count=4, size=(140, 140)), Params()) == "p(count=4, size=140)"
    assert params.label("p", "fast", Params(count=2), Params(count=2)) == "p:fast"
    assert params.label("p", "fast", Params(count=2, rate=0.5), Params(count=2)) == "p:fast(rate=0.5)"
    assert params.label("p", "paper", Params(name="/home/me/dtd/"), Params()) == "p(name=dtd)"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(("layers", text) for text in ("2,5,8", "2-9", "7", "3,3", "0-2,4,5", "9,8,7")),
        *(("groups", text) for text in ("0;1,2", "0-3;4-7", "5")),
        *(("size", text) for text in ("140", "140x252")),
        ("limit", "12"),
    ],
)
def test_a_label_says_what_one_types_after_set(key: str, text: str) -> None:
    changed = params.build("p", Params, {key: text})
    assert params.label("p", "paper", changed, Params()) == f"p({key}={text})"


def test_plain_survives_json() -> None:
    data = params.plain(Params(layers=(1, 2)))
    assert json.loads(json.dumps(data)) == data
    assert data["layers"] == [1, 2]


@pytest.mark.parametrize("text", ["count=3", "p.count", ".count=3", "p.=3"])
def test_set_needs_its_form(text: str) -> None:
    with pytest.raises(UsageError, match=r"NAME\.KEY=VALUE"):
        params.split_settings([text])


def test_set_owner_may_contain_dots_and_value_equals_signs() -> None:
    assert params.split_settings(["anomalib.padim.name=a=b", "p.x=1", "p.y=2"]) == {
        "anomalib.padim": {"name": "a=b"},
        "p": {"x": "1", "y": "2"},
    }
