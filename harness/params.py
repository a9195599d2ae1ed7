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

_MOST = 10_000  # ints of one parameter: 0-999999999999 is a slip, and fills the memory
_BEYOND = 2**53  # no int parameter is as large: beyond it floats lose it, and tensors no longer count it
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
        numbers = range(_int(first), _int(last) + 1) if dash and first else [_int(part)]
        if len(values) + len(numbers) > _MOST:
            raise ValueError(text)
        values.extend(numbers)
    return tuple(values)


def _int(text: str) -> int:
    value = int(text)
    if abs(value) >= _BEYOND:
        raise ValueError(text)
    return value


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
        return (_int(height), _int(width) if cross else _int(height))
    if kind == tuple[tuple[int, ...], ...]:
        return tuple(_ints(group) for group in text.split(";"))
    if kind == tuple[int, ...]:
        return _ints(text)
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError(text)
    if kind is int:
        return _int(text)
    if kind is float:
        value = float(text)
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(text)
        return value
    if kind is str:
        return text
    raise AssertionError(f"parameter type {kind} has no parser")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value that is no text (of a preset, or of a record that anybody may have written) is of the declared type."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, member) for member in typing.get_args(kind))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(kind))
    if origin is tuple:
        members = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if members[-1] is Ellipsis:
            return all(_fits(item, members[0]) for item in value)
        return len(value) == len(members) and all(_fits(*pair) for pair in zip(value, members, strict=True))
    if kind is float:
        return type(value) in (int, float) and abs(value) < float("inf")
    return type(value) is kind if kind in (bool, int, str) else isinstance(value, kind)


def field_types(params_type: type) -> dict[str, Any]:
    """Field name to resolved type, in the declared order."""
    hints = typing.get_type_hints(params_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(params_type)}


def build(owner: str, params_type: type, *changes: Mapping[str, Any]) -> Any:
    """Defaults, then each of `changes` in turn; texts are parsed, other values are taken as they are.

    owner: the method's or data set's name, for messages. Raises `UsageError` for unknown keys, wrong types and values that
    the dataclass's own `check()` refuses. A dataclass with a class
    variable OPEN names the field that takes every key it does not know (arguments of another package's class).
    """
    known = field_types(params_type)
    rest = getattr(params_type, "OPEN", None)  # the field that takes unknown keys, as sorted KEY=VALUE texts
    values: dict[str, Any] = {}
    for change in changes:
        for key, value in change.items():
            if rest is not None and (key not in known or (key == rest and isinstance(value, str))):
                others = dict(text.split("=", 1) for text in values.get(rest, ())) | {key: value}
                values[rest] = tuple(sorted(f"{name}={text}" for name, text in others.items()))
                continue
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
            elif not _fits(value, known[key]):
                raise UsageError(
                    f"{owner}.{key}: expected {_describe(known[key])}, found {value!r:.80}.", f"Type: --set {owner}.{key}=VALUE"
                )
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
    rest = getattr(params, "OPEN", None)
    kinds = field_types(type(params))
    changed = [
        ", ".join(getattr(params, rest))
        if field.name == rest
        else f"{field.name}={typed(getattr(params, field.name), kinds[field.name])}"
        for field in dataclasses.fields(params)
        if field.name != "encoder" and getattr(params, field.name) != getattr(base, field.name)
    ]
    called = name if preset == "paper" else f"{name}:{preset}"
    return f"{called}({', '.join(changed)})" if changed else called


def typed(value: Any, kind: Any) -> str:
    """A value of a label, as one types it after --set; of a path its last name, because where it lies says nothing to others."""
    if value is None:
        return "none"
    if kind == Size:
        return str(value[0]) if value[0] == value[1] else f"{value[0]}x{value[1]}"
    if isinstance(value, tuple) and all(isinstance(item, int) for item in value):
        return _runs(value)
    if isinstance(value, tuple) and all(isinstance(item, tuple) for item in value):
        return ";".join(map(_runs, value))
    if isinstance(value, str):
        return value.rstrip("/").rsplit("/", 1)[-1]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _runs(values: tuple[int, ...]) -> str:
    """Ints as `2,5,8`, and three or more in a row as `2-9`.

    >>> _runs((2, 5, 8)), _runs((2, 3, 4, 9)), _runs((0, 1))
    ('2,5,8', '2-4,9', '0,1')
    """
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
