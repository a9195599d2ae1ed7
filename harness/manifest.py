"""The manifest: every image of a data set as a fact, its hash, and what was found wrong with the files.

`open_manifest` runs the adapter. In strict mode the first error stops with a `DataError` that names the file; in lenient mode
errors are findings, the affected images are left out (or lose their pixel ground truth), and the record lists them. The hash covers
name, version and parameters of the set and, for each image, everything listed and what is in its files (of a drawn set the names
alone); not where the root lies.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from inpbench.harness.api import DatasetInfo, Finding, Sample
from inpbench.harness.contents import contents_of
from inpbench.harness.errors import DataError, UsageError, did_you_mean
from inpbench.harness.params import plain
from inpbench.harness.registry import resolve

log = logging.getLogger("inpbench")

_NAMED = 50  # files with the same fault that are warned of by name


class FileFact(NamedTuple):
    """What the file system says of a file; size -1 where it is gone."""

    size: int  # bytes
    mtime_ns: int
    ctime_ns: int = 0  # of the last change of whatever kind, which nobody can set


@dataclass(frozen=True)
class Manifest:
    """The samples of a data set, in the adapter's order, and what was noticed about them."""

    info: DatasetInfo
    params: Any
    root: Path
    strict: bool
    samples: tuple[Sample, ...]
    files: dict[str, FileFact]  # of every image and mask
    found: dict[Finding, None] = field(default_factory=dict)  # an ordered set; grows when the decoder notices something
    warned: Counter[str] = field(default_factory=Counter)  # warnings of the decoder by status
    opened: dict[str, Any] = field(default_factory=dict)  # decoded rows by their key: nothing is checked twice in one process

    @functools.cached_property
    def categories(self) -> tuple[str, ...]:
        """Categories present, in the official order."""
        return tuple(dict.fromkeys(sample.category for sample in self.samples))

    @functools.cached_property
    def contents(self) -> dict[str, str]:
        """The SHA-256 of every image and mask; {} of a drawn set. The first time that a root is used, all of them are read."""
        return {} if self.info.generate is not None else contents_of(self.info.name, self.root, self.files)

    @functools.cached_property
    def identity(self) -> str:
        """The manifest in an identity: `content:` and a hash of all that is listed and of the files; `sha256:` of a drawn set."""
        drawn = self.info.generate is not None
        return f"{'sha256' if drawn else 'content'}:{_hash(self.info, self.params, self.samples, self.contents.get)}"

    @property
    def earlier_identity(self) -> str:
        """What stands in records of before files were read: it tells names and sizes apart, not content."""

        def size(path: str) -> int | None:
            return self.files[path].size if self.info.generate is None else None

        return f"sha256:{_hash(self.info, self.params, self.samples, size)}"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the adapter and, so far, the decoder noticed."""
        return tuple(self.found)

    def note(self, finding: Finding) -> None:
        """Take a finding of the decoder: in strict mode an error raises `DataError`; everything else is warned of once.

        Of a thousand files with the same fault the first few are named; all are in `findings`, hence in the record.
        """
        if self.strict and finding.severity == "error":
            raise stopped(self.info, self.root, [finding])
        if finding in self.found:
            return
        self.found[finding] = None
        self.warned[finding.status] += 1
        if self.warned[finding.status] <= _NAMED:
            more = " (further ones are only recorded)" if self.warned[finding.status] == _NAMED else ""
            log.warning("%s: %s: %s%s", finding.file, finding.status, finding.message, more)

    def check_unchanged(self, path: str) -> None:
        """Raise `DataError` where a file is no longer what the identity says of it: hours may lie between plan and decoding."""
        known, now = self.files.get(path), _fact(self.root, path)
        if known is None or now == known or (self.info.generate is not None and now[:2] == known[:2]):
            return
        if self.contents and contents_of(self.info.name, self.root, {path: now})[path] == self.contents[path]:
            return  # only touched, linked or renamed
        raise DataError(f"{self.root / path} was changed while this run was under way.", "Run the same command again.")

    def select(self, categories: Sequence[str]) -> Manifest:
        """Only these categories, in the official order. Raises `UsageError` for one that is not there."""
        for name in categories:
            if name not in self.categories:
                raise UsageError(
                    f"{self.info.name} in {self.root} has no category '{name}'. {did_you_mean(name, self.categories)}",
                    f"Type: --categories {','.join(self.categories[:2])}",
                )
        chosen = _of_categories(self.found, self.info, self.categories, categories)
        return self._with([sample for sample in self.samples if sample.category in categories], chosen)

    def limit(self, count: int) -> Manifest:
        """At most the first `count` images of each category, split and kind of defect."""
        taken: dict[tuple[str, str, str], int] = {}
        kept = []
        for sample in self.samples:
            key = (sample.category, sample.split, sample.defect)
            taken[key] = taken.get(key, 0) + 1
            if taken[key] <= count:
                kept.append(sample)
        return self._with(kept, self.found)

    def _with(self, samples: Sequence[Sample], found: Iterable[Finding]) -> Manifest:
        used = {path: self.files[path] for sample in samples for path in (sample.image, sample.mask) if path is not None}
        return replace(self, samples=tuple(samples), files=used, found=dict.fromkeys(found), warned=Counter(), opened={})


def open_manifest(
    info: DatasetInfo, params: Any, root: Path, strict: bool = True, categories: Sequence[str] | None = None
) -> Manifest:
    """List a data set. Raises `DataError` for a root of another layout and, in strict mode, for the first error in a file.

    categories: only these; errors in the files of the others then stop nothing (a partly downloaded set can be used).
    """
    found: list[Finding] = []
    try:
        if not root.is_dir():
            what = "is a file: unpack it" if root.is_file() else "is no folder"
            raise DataError(f"{info.name}: {root} {what}.", f"Its root looks like this:\n{info.expected_tree}")
        scan: Callable[..., list[Sample]] = resolve(info.scan)
        samples = scan(root, params, found.append)
    except OSError as error:  # a folder that may not be entered, a disk that fails
        raise DataError(
            f"{info.name}: {error.filename or root} cannot be read: {error.strerror or error}.",
            "Check its permissions and the disk.",
        ) from error
    if not samples and not found:
        raise DataError(f"{info.name}: {root} holds no image of this data set.", f"Its root looks like this:\n{info.expected_tree}")
    files = _file_facts(root, samples)
    manifest = Manifest(info, params, root, strict, tuple(samples), files, dict.fromkeys(found))
    if categories:
        manifest = manifest.select(categories)
    errors = [finding for finding in manifest.found if finding.severity == "error"]
    if errors and (strict or not manifest.samples):
        raise stopped(info, root, errors)
    if manifest.found:
        log.warning("%s: %s. bench data verify %s lists them.", info.name, summary(manifest.found), info.name)
    return manifest


def stopped(info: DatasetInfo, root: Path, errors: Sequence[Finding]) -> DataError:
    """The error of a strict run: the first file by name, how many more, and what to type."""
    first = errors[0]
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return DataError(
        f"{info.name}: {first.file or root}: {first.status.replace('_', ' ')}: {first.message}{more}.",
        f"Type: bench data verify {info.name} --data-root {root}, or run with --lenient to leave such files out.",
    )


def summary(findings: Iterable[Finding]) -> str:
    """`3 missing_mask, 1 unreadable`."""
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.status] = counts.get(finding.status, 0) + 1
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def _of_categories(found: Iterable[Finding], info: DatasetInfo, known: Iterable[str], chosen: Iterable[str]) -> list[Finding]:
    """Findings that do not belong to an unselected category: one whose name is a part of the path."""
    others = (set(info.categories) | set(known)) - set(chosen)
    return [f for f in found if not others & {part.removesuffix(".json") for part in f.file.split("/")}]


def _file_facts(root: Path, samples: Iterable[Sample]) -> dict[str, FileFact]:
    facts = {}
    for sample in samples:
        for path in (sample.image, sample.mask):
            if path is not None and path not in facts:
                facts[path] = _fact(root, path)
    return facts


def _fact(root: Path, path: str) -> FileFact:
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116 (a Path object for each of 200,000 files is slow)
    except OSError:
        return FileFact(-1, 0)
    return FileFact(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _hash(info: DatasetInfo, params: Any, samples: Sequence[Sample], content: Callable[[str], str | int | None]) -> str:
    """Independent of the root, and of whether the user gave the root or its parent. content: what is known of a file.

    A drawn set is what its name, version and parameters say: its files depend on the zlib that packed them.
    """
    paths = [path for sample in samples for path in (sample.image, sample.mask) if path]
    common = os.path.commonpath(paths) if len(paths) > 1 else ""
    skip = len(common) + 1 if common else 0
    digest = hashlib.sha256(json.dumps([info.name, info.version, plain(params)], sort_keys=True).encode())
    for s in samples:
        mask = None if s.mask is None else [s.mask[skip:], content(s.mask)]
        row = [s.image[skip:], content(s.image), s.category, s.split, s.label, mask, s.defect, s.specimen, s.view]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
