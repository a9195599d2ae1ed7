"""Parameters: frozen dataclasses, parsed from text with the declared type, never guessed.

`resolve(ParamsType, preset, changes)` starts from the defaults (the paper's), applies a preset, then `--set` texts, and
validates. Understood field types: bool, int, float, str, Literal[...], Size (an int or HxW), tuple[int, ...], nested
tuple[tuple[int, ...], ...] (groups, written 0-3;4-7 or 0,1;2,3) and `X | None` (written none).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from inpbench.harness.api import Size
from inpbench.harness.errors import UsageError, did_you_mean

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def _describe(kind: Any) -> str:
    if kind == Size:
        return "a size: one int, or HEIGHTxWIDTH"
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else _describe(a) for a in typing.get_args(kind))
    if kind == tuple[tuple[int, ...], ...]:
        return "groups of ints, e.g. 0-3;4-7"
    if kind == tuple[int, ...]:
        return "ints, e.g. 2,3,4 or 2-9"
    return str(getattr(kind, "__name__", kind))


def _ints(text: str) -> tuple[int, ...]:
    values: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        values.extend(range(int(first), int(last) + 1) if dash and first else [int(part)])
    return tuple(values)


def _parse(text: str, kind: Any) -> Any:
    """Parse `text` as `kind`; raises ValueError when it does not fit."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        members = typing.get_args(kind)
        if type(None) in members and text.lower() == "none":
            return None
        for member in members:
            if member is not type(None):
                try:
                    return _parse(text, member)
                except ValueError:
                    continue
        raise ValueError(text)
    if typing.get_origin(kind) is Literal:
        for choice in typing.get_args(kind):
            if str(choice) == text:
                return choice
        raise ValueError(text)
    if kind == Size:
        height, cross, width = text.lower().partition("x")
        return (int(height), int(width) if cross else int(height))
    if kind == tuple[tuple[int, ...], ...]:
        return tuple(_ints(group) for group in text.split(";"))
    if kind == tuple[int, ...]:
        return _ints(text)
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError(text)
    if kind is int:
        return int(text)
    if kind is float:
        value = float(text)
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(text)
        return value
    if kind is str:
        return text
    raise AssertionError(f"parameter type {kind} has no parser")


def field_types(params_type: type) -> dict[str, Any]:
    """Field name to resolved type, in the declared order."""
    hints = typing.get_type_hints(params_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(params_type)}


def build(owner: str, params_type: type, *changes: Mapping[str, Any]) -> Any:
    """Defaults, then each of `changes` in turn; texts are parsed, other values are taken as they are.

    owner: the method's or data set's name, for messages. Raises `UsageError` for unknown keys, wrong types and values that
    the dataclass's own `check()` refuses.
    """
    known = field_types(params_type)
    values: dict[str, Any] = {}
    for change in changes:
        for key, value in change.items():
            if key not in known:
                raise UsageError(
                    f"{owner} has no parameter '{key}'. {did_you_mean(key, known)}", f"Type: bench list methods --params {owner}"
                )
            if isinstance(value, str):
                try:
                    value = _parse(value, known[key])
                except ValueError:
                    raise UsageError(
                        f"{owner}.{key}: expected {_describe(known[key])}, found '{value}'.", f"Type: --set {owner}.{key}=VALUE"
                    ) from None
            values[key] = value
    params = params_type(**values)
    check = getattr(params, "check", None)
    if check is not None:
        check()
    return params


def split_settings(texts: list[str]) -> dict[str, dict[str, str]]:
    """`["inp_former.inp_num=4", ...]` as {owner: {key: text}}; raises `UsageError` for what has another form."""
    out: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        owner, dot, key = name.strip().rpartition(".")
        if not (equals and dot and owner and key):
            raise UsageError(f"--set takes NAME.KEY=VALUE, found '{text}'.", "Type for example: --set inp_former.inp_num=4")
        out.setdefault(owner, {})[key] = value.strip()
    return out


def plain(params: Any, *, every: bool = False) -> dict[str, Any]:
    """A params dataclass as JSON-able data, tuples as lists, in the declared order.

    every: `api.LATER` fields at their default, too, which identities leave out.
    """

    def convert(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [convert(item) for item in value]
        if isinstance(value, (frozenset, set)):
            return sorted(convert(item) for item in value)
        return value

    def kept(field: dataclasses.Field[Any]) -> bool:
        return every or not field.metadata.get("later") or getattr(params, field.name) != field.default

    return {field.name: convert(getattr(params, field.name)) for field in dataclasses.fields(params) if kept(field)}


def from_plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `plain`: lists become tuples again, so that `build` takes the values as they are. Texts stay texts."""

    def convert(value: Any) -> Any:
        return tuple(convert(item) for item in value) if isinstance(value, list) else value

    return {key: convert(value) for key, value in data.items()}


def label(name: str, preset: str, params: Any, base: Any) -> str:
    """How a method is called in tables: `inp_former`, `inp_former:demo`, `inp_former:demo(inp_num=4)`.

    base: the parameters of the preset alone. The encoder is left out: tables show it in a column of its own.
    """
    changed = [
        f"{field.name}={_short(getattr(params, field.name))}"
        for field in dataclasses.fields(params)
        if field.name != "encoder" and getattr(params, field.name) != getattr(base, field.name)
    ]
    called = name if preset == "paper" else f"{name}:{preset}"
    return f"{called}({', '.join(changed)})" if changed else called


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and value[0] == value[1]:
        return str(value[0])
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if all(isinstance(v, int) for v in value) else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
