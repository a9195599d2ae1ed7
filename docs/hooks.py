"""Tables of the site that come from the code, so that they cannot fall behind it: `{{ settings }}`, `{{ parameters NAME }}`, ...

MkDocs calls `on_page_markdown` for each page. An unknown placeholder stops the build.
"""

from __future__ import annotations

import re
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
    from inpbench.harness import meanings
    from inpbench.harness.registry import METHODS

    rows = [[f"`{p.name}`", f"`{p.default}`", p.meaning] for p in meanings.parameters(METHODS.get(method).params)]
    return _table(["parameter", "default", "meaning"], rows)


def presets(method: str) -> str:
    """The presets of a method."""
    from inpbench.harness import meanings
    from inpbench.harness.registry import METHODS

    info = METHODS.get(method)
    rows = [
        [f"`{name}`", ", ".join(f"`{change}`" for change in meanings.changes(info.params, changes)) or "the defaults"]
        for name, changes in info.presets.items()
    ]
    return _table(["preset", "changes"], rows)


_TABLES = {table.__name__: table for table in (settings, metrics, variants, methods, datasets, parameters, presets)}
