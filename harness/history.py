"""The numbers of every check, one line a run and baseline, and a picture of where they go.

`<baseline>.jsonl` is only ever appended to: a line is {"date", "commit", "dirty", "hardware", "record", "metrics"}. A record that
stands in the last line is not written twice. A broken line (a disk that was full) is skipped and named, never repaired in silence.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness.atomic import cannot, write_bytes, write_text
from inpbench.harness.baselines import Baseline, load, metric_hardware
from inpbench.harness.metrics import METRICS
from inpbench.harness.small_files import parse_json, read_bytes

if TYPE_CHECKING:
    from inpbench.harness.check import CheckResult
    from inpbench.harness.records import RecordStore

log = logging.getLogger("inpbench")
SHOWN = 60  # runs of a picture, the newest
_WIDTH, _ROW, _LEFT, _RIGHT = 720, 64, 96, 92


def remember(result: CheckResult, store: RecordStore, baselines: Path, folder: Path) -> list[Path]:
    """Append what a check compared, and draw each baseline's trend again; gives the pictures. folder: e.g. results/history."""
    compared = {(finding.file, finding.record) for finding in result.findings if finding.metric}
    known = {baseline.name: baseline for baseline in load(baselines)}
    pictures = []
    for name, id in sorted(compared):
        record = store.find(id)
        assert record is not None
        path = folder / f"{Path(name).stem}.jsonl"
        lines = read(path)
        if not lines or lines[-1]["record"] != id or lines[-1]["metrics"] != record.metrics["mean"]:
            git = record.stamp.get("git") or {}
            facts = {"date": record.finished, "commit": git.get("commit"), "dirty": bool(git.get("dirty"))}
            line = facts | {"hardware": record.hardware, "record": id, "metrics": record.metrics["mean"]}
            _append(path, json.dumps(line, allow_nan=False))
            lines.append(line)
        pictures.append(path.with_suffix(".svg"))
        write_text(pictures[-1], trend(known[name], lines))
    return pictures


def _append(path: Path, line: str) -> None:
    """Add a line, atomically; what is there stays byte for byte."""
    before = read_bytes(path) if path.is_file() else b""
    write_bytes(path, before + (b"" if before.endswith(b"\n") or not before else b"\n") + line.encode("utf-8") + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a history, oldest first; an absent file is an empty one."""
    try:
        text = read_bytes(path).decode("utf-8", "replace")  # one broken line is not to hide the others
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot(f"read {path}", error) from error
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = parse_json(line)
            values = item["metrics"].values() if isinstance(item["metrics"], dict) else ("no table",)
            facts = [item[key] for key in ("date", "record", "hardware")]
            if any(type(v) not in (int, float, type(None)) for v in values) or not all(isinstance(fact, str) for fact in facts):
                raise ValueError("no line of a history")
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s, line %d is skipped: %s", path, number, error)
            continue
        lines.append(item)
    return lines


# --- the picture ----------------------------------------------------------------------------------------------------


def trend(baseline: Baseline, lines: Sequence[Mapping[str, Any]]) -> str:
    """An SVG document: one row a metric, the runs from left to right, the tolerance around the baseline as a band.

    Only runs of the hardware of the baseline's first entry that has any are drawn.
    """
    entry = next(
        (e for e in baseline.entries if any(metric_hardware(line["hardware"]) == metric_hardware(e.hardware) for line in lines)),
        baseline.entries[0],
    )
    runs = [line for line in lines if metric_hardware(line["hardware"]) == metric_hardware(entry.hardware)][-SHOWN:]
    height = 40 + _ROW * len(entry.metrics) + 24
    title = f"{baseline.key['label']}, {baseline.key['dataset']}, {baseline.key['setting']}, seed {baseline.key['seed']}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="currentColor">',
        f'<text x="0" y="16" font-size="14">{escape(title)}: {len(runs)} runs on {escape(entry.hardware)}</text>',
    ]
    for row, (metric, value) in enumerate(entry.metrics.items()):
        points = [(i, run["metrics"].get(metric)) for i, run in enumerate(runs)]
        known = [(i, float(v)) for i, v in points if v is not None]
        low = min([value.value - 1.5 * value.tolerance, *(v for _, v in known)])
        high = max([value.value + 1.5 * value.tolerance, *(v for _, v in known)])
        top = 32 + _ROW * row

        def y(number: float, low: float = low, high: float = high, top: int = top) -> float:
            return top + (_ROW - 14) * (1 - (number - low) / ((high - low) or 1))

        def x(index: int) -> float:
            return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (index / max(1, len(runs) - 1))

        name = METRICS[metric].title if metric in METRICS else metric
        above, below = y(value.value + value.tolerance), y(value.value - value.tolerance)
        parts += [
            f'<text x="0" y="{y(value.value) + 4:.1f}">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{above:.1f}" width="{_WIDTH - _LEFT - _RIGHT}" height="{below - above:.1f}" opacity="0.12"/>',
        ]
        line = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in known)
        parts.append(f'<polyline points="{line}" fill="none" stroke="#7a2582" stroke-width="2"/>')
        for i, v in known:
            outside = abs(v - value.value) > value.tolerance + 1e-12
            commit = str(runs[i].get("commit") or "unknown")[:7]
            parts.append(
                f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="{4 if outside else 2.5}" fill="{"#d55e00" if outside else "#7a2582"}">'
                f"<title>{escape(commit)}, {escape(runs[i]['date'][:10])}: {100 * v:.2f}</title></circle>"
            )
        if known:
            parts.append(f'<text x="{_WIDTH - _RIGHT + 10}" y="{y(known[-1][1]) + 4:.1f}">{100 * known[-1][1]:.2f}</text>')
    ends = (runs[0]["date"][:10], runs[-1]["date"][:10]) if runs else ("", "")
    parts.append(f'<text x="{_LEFT}" y="{height - 8}" opacity="0.7">{escape(ends[0])}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{height - 8}" text-anchor="end" opacity="0.7">{escape(ends[1])}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
