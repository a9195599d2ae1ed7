"""What a check found, written for people (terminal, markdown), for programs (json) and for CI services (JUnit XML, annotations)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from inpbench.harness.check import VERDICTS, CheckResult, Finding
from inpbench.harness.metrics import METRICS
from inpbench.harness.tables import MISSING, Cell, Column, Table

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS = ("verdict", "cell", "metric", "baseline", "measured", "difference", "tolerance", "reason")


def check_table(result: CheckResult, verdicts: tuple[str, ...] = VERDICTS) -> Table:
    """The findings with one of `verdicts` as a table (harness/tables.py renders it); numbers in per cent."""
    shown = [finding for finding in result.findings if finding.verdict in verdicts]
    return Table(
        title=result.headline(),
        caption=[],
        columns=[Column(name, left=name in ("verdict", "cell", "metric", "reason")) for name in _COLUMNS],
        rows=[_row(finding) for finding in shown],
        below=list(result.warnings),
        data=[finding.as_data() for finding in shown],
    )


def _row(finding: Finding) -> list[Cell]:
    metric = METRICS[finding.metric].title if finding.metric in METRICS else finding.metric
    numbers = [
        _percent(finding.baseline),
        _percent(finding.measured),
        _percent(finding.difference, "+"),
        _percent(finding.tolerance),
    ]
    verdict = finding.verdict.upper() if finding.verdict == "regressed" else finding.verdict
    return [Cell(text) for text in (verdict, finding.cell, metric, *numbers, finding.reason)]


def _percent(value: float | None, sign: str = "") -> str:
    return MISSING if value is None else f"{100 * value:{sign}.2f}"


def as_json(result: CheckResult) -> str:
    """Everything as one JSON object, fractions at full precision."""
    document = {
        "headline": result.headline(),
        "exit_code": result.exit_code,
        "compared": result.compared,
        "counts": {verdict: result.count(verdict) for verdict in VERDICTS},
        "findings": [finding.as_data() for finding in result.findings],
        "warnings": result.warnings,
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)


def github_lines(result: CheckResult, baselines: Path) -> str:
    """Workflow commands of GitHub Actions: an error for each regression, a notice for the headline and each improvement."""
    lines = [f"::notice title=bench check::{_command(result.headline())}"]
    for finding in result.findings:
        kind = {"regressed": "error", "improved": "notice"}.get(finding.verdict)
        if kind is None:
            continue
        metric = METRICS[finding.metric].title if finding.metric in METRICS else finding.metric
        numbers = f"{_percent(finding.baseline)} -> {_percent(finding.measured)} (tolerance {_percent(finding.tolerance)})"
        text = finding.reason if finding.difference is None else f"{metric} {numbers}"
        where = (baselines / finding.file).as_posix() if finding.file else ""
        place = f"file={_property(where)}," if where else ""
        lines.append(f"::{kind} {place}title={_property(f'{finding.verdict}: {finding.cell}')}::{_command(text)}")
    return "\n".join(lines)


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _command(text).replace(":", "%3A").replace(",", "%2C")


def junit(result: CheckResult) -> str:
    """JUnit XML: a test case for each metric; regressed is a failure, incomparable, missing and new are skipped.

    A check that compared nothing is an error of its own, so that a CI service cannot take it for a success.
    """
    cases = [_case(finding) for finding in result.findings]
    if not result.compared and not result.count("regressed"):
        case = ElementTree.Element("testcase", classname="bench check", name="something was compared")
        ElementTree.SubElement(case, "error", message=_clean(result.headline()))
        cases.append(case)
    skipped = sum(result.count(verdict) for verdict in ("incomparable", "missing", "new"))
    suite = ElementTree.Element(
        "testsuite",
        name="bench check",
        tests=str(len(cases)),
        failures=str(result.count("regressed")),
        errors=str(len(cases) - len(result.findings)),
        skipped=str(skipped),
    )
    suite.extend(cases)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(finding: Finding) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=_clean(finding.cell), name=_clean(finding.metric or "cell"))
    numbers = ""
    if finding.baseline is not None and finding.measured is not None:
        numbers = f"baseline {finding.baseline!r}, measured {finding.measured!r}, tolerance {finding.tolerance!r}"
    text = _clean("; ".join(part for part in (finding.verdict, finding.reason, numbers) if part))
    if finding.verdict == "regressed":
        ElementTree.SubElement(case, "failure", message=text)
    elif finding.verdict in ("incomparable", "missing", "new"):
        ElementTree.SubElement(case, "skipped", message=text)
    else:
        ElementTree.SubElement(case, "system-out").text = text
    return case


def _clean(text: str) -> str:
    """Without the control characters and surrogates that XML forbids even when escaped."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
