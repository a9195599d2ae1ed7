"""What each parameter of a method or data set is for: the comment beside it in the code, its choices, its default as typed.

The comments are read from the source, so that a table of the site or of `bench list --params` cannot fall behind it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from inpbench.harness import params


class Parameter(NamedTuple):
    """One row of such a table."""

    name: str
    default: str  # as `--set` takes it
    meaning: str


def parameters(params_type: type) -> list[Parameter]:
    """Every parameter in the declared order."""
    kinds = params.field_types(params_type)
    comments = _comments(params_type)
    defaults = params_type()
    return [
        Parameter(name, typed(getattr(defaults, name), kind), ": ".join(filter(None, (_choices(kind), comments.get(name, "")))))
        for name, kind in kinds.items()
    ]


def changes(params_type: type, preset: Mapping[str, Any]) -> list[str]:
    """What a preset changes, as `--set` takes it: KEY=VALUE."""
    kinds = params.field_types(params_type)
    return [f"{name}={typed(value, kinds[name])}" for name, value in preset.items()]


def typed(value: Any, kind: Any) -> str:
    """A value as `--set` takes it: yes and no, `448` and `448x224`, `2-9`, `0-3;4-7`."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else params.typed(value, kind)


def _choices(kind: Any) -> str:
    """`a, b or c` of a Literal, also where none is allowed; else nothing."""
    members = [*typing.get_args(kind), kind]
    names = [str(name) for member in members if typing.get_origin(member) is Literal for name in typing.get_args(member)]
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else ""


def _comments(owner: type) -> dict[str, str]:
    """Field -> the comment at the end of its line, for a dataclass and the dataclasses it inherits from."""
    found: dict[str, str] = {}
    for part in reversed(owner.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(part))
        except (OSError, TypeError):  # made by a program, or typed at a prompt: there is no line to read
            continue
        lines = source.splitlines()
        [definition] = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno is not None:
                _, _, comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().partition("#")
                if comment.strip():
                    found[node.target.id] = comment.strip()
    return found
