"""Tables of the site that come from the code, so that they cannot fall behind it: `{{ settings }}`, `{{ parameters NAME }}`, ...

MkDocs calls `on_page_markdown` for each page. An unknown placeholder stops the build.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its placeholders filled in."""
    return re.sub(r"\{\{ (\w+)(?: ([\w.]+))? \}\}", _filled, markdown)


def _filled(found: re.Match[str]) -> str:
    kind, name = found[1], found[2]
    if kind not in _TABLES:
        raise ValueError(f"unknown placeholder {found[0]}: known are {', '.join(_TABLES)}")
    return str(_TABLES[kind](name) if name else _TABLES[kind]())


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(
        lines + ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    )


def settings() -> str:
    """Every setting."""
    from inpbench.harness.settings import SETTINGS

    return _table(
        ["setting", "what it is", "shots", "needs `--source`"],
        [[f"`{s.name}`", s.title, ", ".join(map(str, s.shots)) or "-", "yes" if s.source else "-"] for s in SETTINGS.values()],
    )


def metrics() -> str:
    """The seven metrics."""
    from inpbench.harness.metrics import METRICS

    return _table(["metric", "name", "definition"], [[m.title, f"`{m.name}`", m.definition] for m in METRICS.values()])


def variants() -> str:
    """Other definitions of the metrics."""
    from inpbench.harness.metrics import VARIANTS

    return _table(["`--variant`", "definition"], [[f"`{name}`", text] for name, text in VARIANTS.items()])


def methods() -> str:
    """Every built-in method and the settings it runs in."""
    from inpbench.harness.registry import METHODS

    infos = [METHODS.get(name) for name in METHODS.names() if METHODS.origin(name) == "inpbench" and "*" not in name]
    rows = []
    for info in infos:
        told = "its name and normal images of it" if info.told_category else "no"
        rows.append([f"`{info.name}`", info.title, ", ".join(f"`{s}`" for s in sorted(info.settings)), told])
    return _table(["method", "what it is", "settings", "told the category"], rows)


def datasets() -> str:
    """Every built-in data set."""
    from inpbench.harness.registry import DATASETS

    infos = [DATASETS.get(name) for name in DATASETS.names() if DATASETS.origin(name) == "inpbench"]
    return _table(
        ["data set", "title", "categories", "licence"],
        [[f"`{i.name}`", i.title, str(len(i.categories)) if i.categories else "from disk", i.licence or "-"] for i in infos],
    )


def parameters(method: str) -> str:
    """The parameters of a method with their defaults and the comment that stands beside each in the code."""
    from inpbench.harness import params
    from inpbench.harness.registry import METHODS

    info = METHODS.get(method)
    comments = _comments(info.params)
    plain = params.plain(info.params(), every=True)
    rows = [
        [f"`{name}`", f"`{_typed(plain[name])}`", comments.get(name, "")]
        for name in (f.name for f in dataclasses.fields(info.params))
    ]
    return _table(["parameter", "default", "meaning"], rows)


def presets(method: str) -> str:
    """The presets of a method."""
    from inpbench.harness.registry import METHODS

    rows = [
        [f"`{name}`", ", ".join(f"`{k}={v}`" for k, v in changes.items()) or "the defaults"]
        for name, changes in METHODS.get(method).presets.items()
    ]
    return _table(["preset", "changes"], rows)


def _typed(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return (";" if any(isinstance(item, list) for item in value) else ",").join(map(_typed, value))
    return str(value)


def _comments(owner: type) -> dict[str, str]:
    """Field -> the comment at the end of its line, for a dataclass and the dataclasses it inherits from."""
    found: dict[str, str] = {}
    for part in reversed(owner.__mro__):
        if part is object or not dataclasses.is_dataclass(part):
            continue
        source = textwrap.dedent(inspect.getsource(part))
        lines = source.splitlines()
        [definition] = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno is not None:
                _, _, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")
                found[node.target.id] = comment.strip()
    return found


_TABLES = {table.__name__: table for table in (settings, metrics, variants, methods, datasets, parameters, presets)}
