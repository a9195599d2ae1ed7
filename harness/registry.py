"""Names to lazy "module:attr" targets: listing costs nothing, third parties need no fork.

Built-ins are the BUILTIN tables of `inpbench.methods` and `inpbench.datasets` (not entry points: those are frozen at install
time in an editable install). Third parties register with the entry-point groups `inpbench.methods` and `inpbench.datasets`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from inpbench.harness.api import DatasetInfo, MethodFamily, MethodInfo
from inpbench.harness.errors import PrerequisiteError, UsageError

Info = TypeVar("Info", MethodInfo, DatasetInfo)


def resolve(target: str) -> Any:
    """Import "module:attr". An ImportError of a third package is passed on as a `PrerequisiteError` that names it."""
    module, _, attr = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attr)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("inpbench"):
            raise
        raise PrerequisiteError(
            f"{target} needs the package '{error.name}', which is not installed.", f"Type: pip install {error.name}"
        ) from error


class Registry(Generic[Info]):
    """One kind of plugin: its built-in table and its entry-point group."""

    def __init__(self, kind: str, info_type: type[Info], builtin_module: str, group: str) -> None:
        self.kind = kind
        self._info_type: type[Info] = info_type
        self._builtin_module = builtin_module
        self._group = group
        self._added: dict[str, Info] = {}

    def _builtin(self) -> Mapping[str, str]:
        table: Mapping[str, str] = importlib.import_module(self._builtin_module).BUILTIN
        return table

    def families(self) -> list[MethodFamily]:
        """Families of methods behind one adapter each: `<family>.<member>` is a name, too."""
        table: Mapping[str, str] = getattr(importlib.import_module(self._builtin_module), "FAMILIES", {})
        return [resolve(target) for target in table.values()]

    def _family_of(self, name: str) -> MethodFamily | None:
        return next((family for family in self.families() if name == family.name or name.startswith(f"{family.name}.")), None)

    def _third_party(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group):
            package = point.dist.name if point.dist else "unknown"
            # A third party never replaces a built-in: on collision it is reached as package/name.
            name = point.name if point.name not in self._builtin() and point.name not in found else f"{package}/{point.name}"
            found[name] = point
        return found

    def names(self) -> list[str]:
        """All registered names, built-ins first in their own order."""
        return [*self._builtin(), *self._added, *sorted(self._third_party())]

    def origin(self, name: str) -> str:
        """`inpbench`, or the package that registered the name."""
        if name in self._builtin() or self._family_of(name) is not None:
            return "inpbench"
        point = self._third_party().get(name)
        return point.dist.name if point and point.dist else "this process"

    def package(self, name: str) -> dict[str, str]:
        """The package of a third party's name with its version; {} for ours and for what was added in this process."""
        point = self._third_party().get(name)
        known = name not in self._builtin() and name not in self._added and point is not None and point.dist is not None
        return {point.dist.name: point.dist.version} if known and point and point.dist else {}

    def add(self, info: Info) -> None:
        """Register for this process only (tests, notebooks)."""
        if info.name in self._builtin():
            raise UsageError(f"{self.kind} '{info.name}' is built in and cannot be replaced.", "Choose another name.")
        self._added[info.name] = info

    def _member(self, name: str) -> Info:
        """The method of a family; raises `UsageError` for a name that is not even that."""
        family = self._family_of(name)
        if family is None:
            hint = f"Type: bench list {self.kind}s"
            if self._info_type is DatasetInfo and name and Path(name).is_dir():
                hint = f"{name} is a folder; if it holds your images, type: --dataset folder --data-root {name}"
            raise UsageError(f"Unknown {self.kind} '{name}'. {self._nearest(name)}", hint)
        if name == family.name:
            raise UsageError(
                f"{name} is a family of {len(family.members)} {self.kind}s: {', '.join(family.members)}.",
                f"Type one of them behind a dot: {name}.{family.members[0]}",
            )
        info = family.member(name.removeprefix(f"{family.name}."))
        assert isinstance(info, self._info_type), "families are of methods"
        return info

    def _nearest(self, name: str) -> str:
        """The closest names, then those that are no family's; of a family how many there are, because nobody reads 29 names."""
        said = name.strip().lower().replace("-", "_")
        last = {name: name for name in self.names()}
        last |= {f"{family.name}.{member}": member for family in self.families() for member in family.members}
        close: list[str] = [name for name, member in last.items() if member == said]  # spelt so, or a member without its family
        close += [name for name in difflib.get_close_matches(said, last, n=3) if name not in close]
        others = [name for name in self.names() if name not in close]
        others += [f"{len(family.members)} of {family.name}" for family in self.families()]
        return f"Did you mean: {', '.join(close)}? Also known: {', '.join(others)}." if close else f"Known: {', '.join(others)}."

    def get(self, name: str) -> Info:
        """The info of one name; unknown names raise `UsageError` with the closest known ones."""
        if name in self._added:
            return self._added[name]
        if name in self._builtin():
            info = resolve(self._builtin()[name])
        else:
            point = self._third_party().get(name)
            if point is None:
                return self._member(name)
            try:
                info = point.load()
            except Exception as error:  # a broken plugin must be named, never take the bench down
                raise PrerequisiteError(
                    f"{self.kind} '{name}' of package {self.origin(name)} does not load: {type(error).__name__}: {error}",
                    f"Type: pip install --upgrade {self.origin(name)}",
                ) from error
        if not isinstance(info, self._info_type):
            raise PrerequisiteError(
                f"{self.kind} '{name}' is a {type(info).__name__}, expected {self._info_type.__name__}.",
                "Its entry point must name an object of that type.",
            )
        found: Info = info
        return found


METHODS: Registry[MethodInfo] = Registry("method", MethodInfo, "inpbench.methods", "inpbench.methods")
DATASETS: Registry[DatasetInfo] = Registry("dataset", DatasetInfo, "inpbench.datasets", "inpbench.datasets")
