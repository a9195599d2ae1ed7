"""`bench list methods|datasets|settings|metrics|encoders`: what there is, without importing torch."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inpbench.harness.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inpbench.harness.api import DatasetInfo, MethodFamily, MethodInfo


class Kind(str, Enum):
    """What can be listed."""

    methods = "methods"
    datasets = "datasets"
    settings = "settings"
    metrics = "metrics"
    encoders = "encoders"


def list_(
    kind: Annotated[
        Kind, typer.Argument(metavar="[methods|datasets|settings|metrics|encoders]", help="What to list.")
    ] = Kind.methods,
    params: Annotated[str | None, typer.Option("--params", metavar="NAME", help="Parameters of a method or data set.")] = None,
    json_: Json = False,
) -> None:
    """List methods, data sets, settings, metrics or encoders.

    bench list methods --params inp_former
    """
    if params is not None and not json_:
        _print_parameters(kind, params)
        return
    if params is not None:
        rows = _parameters(kind, params)
    else:
        rows = {
            Kind.methods: _methods,
            Kind.datasets: _datasets,
            Kind.settings: _settings,
            Kind.metrics: _metrics,
            Kind.encoders: _encoders,
        }[kind]()
    if json_:
        import json

        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    _print(rows)


def _methods() -> list[dict[str, Any]]:
    from inpbench.harness.errors import BenchError
    from inpbench.harness.registry import METHODS

    rows: list[dict[str, Any]] = []
    for name in METHODS.names():
        try:
            info = METHODS.get(name)
        except BenchError as error:  # one broken plugin must not hide the others
            rows.append({"name": name, "title": f"does not load: {error.message}", "from": METHODS.origin(name)})
            continue
        rows.append(
            {
                "name": name,
                "title": info.title,
                "settings": sorted(info.settings),
                "told": "the category" if info.told_category else None,
                "presets": list(info.presets),
                "version": info.version,
                "paper": info.paper,
                "from": METHODS.origin(name),
            }
        )
    return rows + [_family(family) for family in METHODS.families()]


def _family(family: MethodFamily) -> dict[str, Any]:
    """One row for all methods of a family; what runs one of them may have to be installed first."""
    from importlib.metadata import PackageNotFoundError, version

    first = family.member(family.members[0])
    try:
        origin, words = f"{family.package} {version(family.package)}", ""
    except PackageNotFoundError:
        origin, words = "not installed", f"; {family.install}"
    return {
        "name": f"{family.name}.*",
        "title": f"{family.title} ({len(family.members)} names: --json{words})",
        "settings": sorted(first.settings),
        "presets": list(first.presets),
        "version": first.version,
        "paper": "",
        "from": origin,
        "members": list(family.members),
    }


def _datasets() -> list[dict[str, Any]]:
    from inpbench.harness.errors import BenchError
    from inpbench.harness.registry import DATASETS

    rows: list[dict[str, Any]] = []
    for name in DATASETS.names():
        try:
            info = DATASETS.get(name)
        except BenchError as error:
            rows.append({"name": name, "title": f"does not load: {error.message}"})
            continue
        rows.append(
            {
                "name": name,
                "title": info.title,
                "categories": len(info.categories) or "from disk",
                "train": sum(c.train for c in info.counts.values()) or None,
                "test": sum(c.test_normal + c.test_anomalous for c in info.counts.values()) or None,
                "licence": info.licence,
            }
        )
    return rows


def _settings() -> list[dict[str, Any]]:
    from inpbench.harness.settings import SETTINGS

    return [
        {
            "name": setting.name,
            "title": setting.title,
            "models": f"one a {setting.unit}",
            "needs": "--source" if setting.source else "several data sets" if setting.several_datasets else None,
            "shots": list(setting.shots),
            "status": "works" if setting.working else "not yet",
        }
        for setting in SETTINGS.values()
    ]


def _metrics() -> list[dict[str, Any]]:
    from inpbench.harness.metrics import METRICS

    return [dataclasses.asdict(metric) for metric in METRICS.values()]


def _encoders() -> list[dict[str, Any]]:
    from inpbench.harness.registry import resolve

    transformers = [
        {
            "name": entry.name,
            "dim": entry.dim,
            "depth": entry.depth,
            "patch": entry.patch,
            "layers": list(entry.target_layers),
            "file": entry.weights.file or "ships with inpbench",
        }
        for entry in resolve("inpbench.methods.encoder_table:ENCODERS").values()
    ]
    convolutional = resolve("inpbench.methods.encoder_table:CONVNETS")
    return transformers + [
        {"name": name, "layers": list(entry.layers), "file": entry.weights.file, "only": "patchcore"}
        for name, entry in convolutional.items()
    ]


def _parameters(kind: Kind, name: str) -> list[dict[str, Any]]:
    from inpbench.harness.meanings import parameters
    from inpbench.harness.params import field_types, plain

    info, presets = _owner(kind, name)
    meanings = {parameter.name: parameter.meaning for parameter in parameters(info.params)}
    defaults = plain(info.params(), every=True)
    rows = []
    for key, type_ in field_types(info.params).items():
        row: dict[str, Any] = {"parameter": key, "default": defaults[key], "type": getattr(type_, "__name__", str(type_))}
        row["meaning"] = meanings[key]
        row |= {preset: changes.get(key) for preset, changes in presets.items() if changes}
        rows.append(row)
    return rows


def _owner(kind: Kind, name: str) -> tuple[MethodInfo | DatasetInfo, Mapping[str, Mapping[str, Any]]]:
    """A method or data set and its presets."""
    from inpbench.harness.registry import DATASETS, METHODS

    if kind is Kind.datasets:
        return DATASETS.get(name), {}
    info = METHODS.get(name)
    return info, info.presets


def _print_parameters(kind: Kind, name: str) -> None:
    """Name, default and meaning of each; then what the presets change, all as `--set` takes it."""
    from inpbench.harness.meanings import changes, parameters

    info, presets = _owner(kind, name)
    _print([{"parameter": p.name, "default": p.default or "-", "meaning": p.meaning or "-"} for p in parameters(info.params)])
    rows = [
        {"preset": preset, "changes": " ".join(changes(info.params, values)) or "the defaults"}
        for preset, values in presets.items()
    ]
    if rows:
        typer.echo()
        _print(rows)


_DETAILS = ("members", "presets", "version", "paper", "dim")  # in --json, where they do not squeeze the rest
_WHEN_WIDE = ("layers", "patch")  # in narrow terminals in --json, too: they would fold the names of files
_WIDE = 110
_WORD = 18  # characters of a word that are not folded


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        typer.echo("nothing", err=True)
        return
    console = Console()
    hidden = _DETAILS if console.width >= _WIDE else (*_DETAILS, *_WHEN_WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in hidden))
    for column in columns:
        words = " ".join([column, *(_text(row.get(column)) for row in rows)]).split()
        least = max(min(len(word), _WORD) for word in words)
        table.add_column(column, overflow="fold", min_width=least, no_wrap=column == columns[0])  # a name is there to be copied
    for row in rows:
        table.add_row(*(Text(_text(row.get(column))) for column in columns))
    console.print(table)


def _text(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if not isinstance(value, (list, tuple)):
        return str(value)
    if len(value) > 3 and all(isinstance(item, int) for item in value) and list(value) == list(range(value[0], value[-1] + 1)):
        return f"{value[0]}-{value[-1]}"
    return ", ".join(map(str, value))
