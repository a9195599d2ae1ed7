"""Texts to a constructor's arguments, by its own declared types; nothing is guessed from how a text looks.

Lists and tuples are written with commas (`layers=layer1,layer2`), an enumeration by its value, no value as `none`.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from inpbench.harness.errors import UsageError, did_you_mean

TAKEN = ("self", "pre_processor", "post_processor", "evaluator", "visualizer")  # set by the adapter
_BOOL = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def constructor_arguments(model: type, texts: Mapping[str, str], owner: str) -> dict[str, Any]:
    """`texts` parsed for `model(...)`; raises `UsageError` for unknown names and values that do not fit.

    owner: how the user calls the method, for messages.
    """
    signature = inspect.signature(model.__init__)  # type: ignore[misc]
    known = [name for name, one in signature.parameters.items() if name not in TAKEN and one.kind is not one.VAR_KEYWORD]
    hints = _hints(model.__init__)  # type: ignore[misc]
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in known:
            raise UsageError(
                f"{owner} has no parameter '{name}'. {did_you_mean(name, known)}", f"Its constructor takes: {', '.join(known)}."
            )
        kind = hints.get(name, str)
        try:
            values[name] = parse(text, kind)
        except ValueError:
            shown = str(kind).removeprefix("<class '").removesuffix("'>")
            raise UsageError(f"{owner}.{name}: expected {shown}, found '{text}'.", f"Type: --set {owner}.{name}=VALUE") from None
    return values


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Declared types; those that cannot be resolved (imported for type checkers only) are left out and taken as texts."""
    try:
        return typing.get_type_hints(function)
    except NameError:
        return {name: kind for name, kind in function.__annotations__.items() if not isinstance(kind, str)}


def parse(text: str, kind: Any) -> Any:
    """`text` as `kind`; raises ValueError where it does not fit."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(text, members)
    if origin is Literal:
        return {str(choice): choice for choice in members}[text] if text in map(str, members) else _refuse(text)
    if origin in (list, tuple, Sequence, Iterable):
        inner = members[0] if members else str
        items = [parse(item.strip(), inner) for item in text.split(",")]
        if origin is tuple and Ellipsis not in members and members and len(items) != len(members):
            raise ValueError(text)
        return items if origin is list else tuple(items)
    if kind is bool:
        return _BOOL[text.lower()] if text.lower() in _BOOL else _refuse(text)
    if kind in (int, float, str, Path) or (isinstance(kind, type) and issubclass(kind, Enum)):
        return kind(text)
    return _refuse(text)


def _first_that_fits(text: str, members: Sequence[Any]) -> Any:
    """The first type of a union that the text fits; plain text only where nothing else does."""
    if type(None) in members and text.lower() == "none":
        return None
    for member in sorted((one for one in members if one is not type(None)), key=lambda one: one in (str, Path)):
        try:
            return parse(text, member)
        except ValueError:
            continue
    return _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)
