"""`bench data verify`: what is on disk, file by file, against what the layout says and what was published.

Every image and mask is read whole. Found are: unreadable files, missing, empty and stray masks, masks of another size, unusual
modes (with how they are read), the same bytes twice, counts that differ from the published ones, and, where none are published,
categories that nothing can be trained or measured on. `ok` is False where any finding is an error (a number would be computed
from other data than the user thinks), and in strict mode for warnings, too.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from inpbench.harness.api import Counts, DatasetInfo, Finding, Sample
from inpbench.harness.contents import forget
from inpbench.harness.errors import DataError
from inpbench.harness.manifest import open_manifest, stopped, summary

Tally = dict[str, dict[str, dict[str, int]]]  # category -> split -> kind of defect -> images
TOTAL = "total"  # key of published counts that hold for all categories together


@dataclass(frozen=True)
class AuditReport:
    """What was found. `findings` names only files that have something to say."""

    info: DatasetInfo
    root: Path
    strict: bool
    counts: Tally
    published: Mapping[str, Counts]
    sizes: dict[str, dict[str, int]]  # category -> "WIDTHxHEIGHT" -> images
    modes: dict[str, dict[str, int]]  # category -> PIL mode -> images
    checked: int  # image and mask files that were read
    findings: tuple[Finding, ...]
    unlabelled: dict[str, int]  # category -> test images of private test sets, which nothing local measures
    manifest: str  # of the whole set, as records have it: equal where the content of all files is

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a strict run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def ok(self) -> bool:
        """No finding is an error; in strict mode, there is no finding."""
        return not (self.findings if self.strict else self.errors)

    @property
    def summary(self) -> str:
        """`1354 files read: 2 duplicate, 1 unreadable`."""
        return f"{self.checked} files read: {summary(self.findings) or 'nothing to report'}"

    def stop(self) -> DataError | None:
        """What a strict run would raise, naming the first bad file, or None."""
        return stopped(self.info, self.root, self.errors) if self.errors else None

    def to_json(self) -> dict[str, Any]:
        """Plain data; `files` has one entry a finding."""
        return {
            "dataset": self.info.name,
            "root": str(self.root),
            "strict": self.strict,
            "ok": self.ok,
            "manifest": self.manifest,
            "checked": self.checked,
            "counts": self.counts,
            "unlabelled": self.unlabelled,
            "published": {category: counts._asdict() for category, counts in self.published.items()},
            "sizes": self.sizes,
            "modes": self.modes,
            "files": [{"file": f.file, "status": f.status, "severity": f.severity, "message": f.message} for f in self.findings],
        }


class _Checked(NamedTuple):
    """One sample, read."""

    findings: list[Finding]
    sha256: str  # of the image's bytes; "" where it cannot be read
    size: str
    mode: str
    files: int


def audit(
    info: DatasetInfo,
    params: Any,
    root: Path,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> AuditReport:
    """Read everything and report everything; a root of another layout raises `DataError`.

    strict: warnings make the report not ok. Findings are collected all the same, so that one run shows all of them.
    progress: called with (done, total) samples.
    """
    forget(root)
    manifest = open_manifest(info, params, root, strict=False)
    findings = list(manifest.findings)
    sizes: dict[str, Counter[str]] = {}
    modes: dict[str, Counter[str]] = {}
    first: dict[str, Sample] = {}
    files = 0
    # The same file may lie in several categories (one class against all others): it is read once, and is no copy of itself.
    distinct = list({(sample.image, sample.mask): sample for sample in reversed(manifest.samples)}.values())[::-1]
    seen: dict[str, tuple[str, str]] = {}
    with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), thread_name_prefix="audit") as pool:
        for done, (sample, checked) in enumerate(_read_all(pool, root, distinct), start=1):
            findings += checked.findings
            files += checked.files
            if checked.mode:
                seen[sample.image] = checked.size, checked.mode
            if checked.sha256 and (twin := first.setdefault(checked.sha256, sample)).image != sample.image:
                findings.append(_duplicate(sample, twin))
            if progress is not None:
                progress(done, len(distinct))
    for sample in manifest.samples:
        if sample.image in seen:
            size, mode = seen[sample.image]
            sizes.setdefault(sample.category, Counter())[size] += 1
            modes.setdefault(sample.category, Counter())[mode] += 1
    counts = tally(manifest.samples)
    published: Mapping[str, Counts] = getattr(params, "published", None) or info.counts
    findings += compare(counts, manifest.samples, published, info) + ([] if published else lacking(manifest.samples))
    plain_sizes, plain_modes = ({c: dict(n.most_common()) for c, n in table.items()} for table in (sizes, modes))
    unique = tuple(dict.fromkeys(findings))
    unlabelled = dict(Counter(sample.category for sample in manifest.samples if sample.label < 0))
    return AuditReport(
        info, root, strict, counts, published, plain_sizes, plain_modes, files, unique, unlabelled, manifest.identity
    )


def tally(samples: Iterable[Sample]) -> Tally:
    """Images by category, split and kind of defect, in the manifest's order."""
    counts: Tally = {}
    for sample in samples:
        split = counts.setdefault(sample.category, {}).setdefault(sample.split, {})
        split[sample.defect] = split.get(sample.defect, 0) + 1
    return counts


def compare(counts: Tally, samples: Iterable[Sample], published: Mapping[str, Counts], info: DatasetInfo) -> list[Finding]:
    """Findings where the counts on disk differ from the published ones, and categories that are not there."""
    measured: dict[str, list[int]] = {category: [0, 0, 0] for category in counts}
    for sample in samples:
        if sample.split != "val" and sample.label >= 0:
            measured[sample.category][0 if sample.split == "train" else 1 + int(sample.label == 1)] += 1
    # A parameter of the set may name other categories than its info does: those of its published counts.
    expected = info.categories if TOTAL in published or not published else tuple(published)
    findings = [
        Finding(category, "missing_category", "a category of the data set is not on disk")
        for category in expected
        if category not in counts
    ]
    complete = not findings
    rows = [(c, found, published[c]) for c, found in measured.items() if c in published]
    if TOTAL in published and complete:
        rows.append(("", [sum(column) for column in zip(*measured.values(), strict=True)], published[TOTAL]))
    for category, found, wanted in rows:
        if tuple(found) != tuple(wanted):
            findings.append(
                Finding(
                    category,
                    "count",
                    f"train / test normal / test anomalous: published {' / '.join(map(str, wanted))}, "
                    f"found {' / '.join(map(str, found))}",
                )
            )
    return findings


def lacking(samples: Sequence[Sample]) -> list[Finding]:
    """Warnings about categories without normal training images, and without anomalous test images."""
    trained = {sample.category for sample in samples if sample.split == "train" and sample.label == 0}
    measured = {sample.category for sample in samples if sample.split == "test" and sample.label != 0}  # -1: on the authors' server
    findings = []
    for category in dict.fromkeys(sample.category for sample in samples):
        if category not in trained:
            findings.append(Finding(category, "lacking", "no normal training image: no model can be trained on it"))
        if category not in measured:
            findings.append(Finding(category, "lacking", "no anomalous test image: no metric has a value on it"))
    return findings


def _read_all(pool: ThreadPoolExecutor, root: Path, samples: Sequence[Sample]) -> Iterable[tuple[Sample, _Checked]]:
    """Samples read in order, a bounded number at a time (the results are small, the queue of a million tasks is not)."""
    for start in range(0, len(samples), 256):
        chunk = samples[start : start + 256]
        yield from zip(chunk, pool.map(lambda sample: _check(root, sample), chunk), strict=True)


def _check(root: Path, sample: Sample) -> _Checked:
    """Read an image and its mask whole."""
    from inpbench.harness.images import READ_AS, USUAL_MODES, UnreadableError, open_image, to_rgb

    findings: list[Finding] = []
    digest = size = mode = ""
    stored = None
    try:
        data = (root / sample.image).read_bytes()
        image = open_image(root / sample.image, sample.image, data)
        mode, stored, size = image.mode, (image.height, image.width), f"{image.width}x{image.height}"
        to_rgb(image, sample.image)
        digest = hashlib.sha256(data).hexdigest()
        if mode not in USUAL_MODES:
            findings.append(Finding(sample.image, "mode", f"mode {mode} is read as: {READ_AS[mode]}"))
    except UnreadableError as error:
        findings.append(Finding(sample.image, "unreadable", error.reason))
    except OSError as error:
        findings.append(Finding(sample.image, "unreadable", error.strerror or str(error)))
    if sample.mask is not None:
        findings += _check_mask(root, sample.mask, stored)
    return _Checked(findings, digest, size, mode, 1 + (sample.mask is not None))


def _check_mask(root: Path, name: str, size: tuple[int, int] | None) -> list[Finding]:
    """Read a mask; `size` is that of its image, None where the image cannot be read."""
    from inpbench.harness.images import UnreadableError, read_mask, size_message

    try:
        mask = read_mask(root / name, None, name)
    except UnreadableError as error:
        return [Finding(name, "unreadable_mask", error.reason)]
    findings = []
    if mask.empty:
        findings.append(Finding(name, "empty_mask", "no anomalous pixel; the image counts as anomalous, its pixels as normal"))
    if size is not None and mask.stored != size:
        findings.append(Finding(name, "size_mismatch", size_message(mask.stored, size)))
    return findings


def _duplicate(sample: Sample, twin: Sample) -> Finding:
    where = "" if sample.split == twin.split else f", which is in {twin.split}: the test set leaks"
    return Finding(sample.image, "duplicate", f"the same bytes as {twin.image}{where}")
