"""The critical-difference picture: methods on a scale of mean ranks, and a bar over those that the data sets cannot tell apart.

After Demšar (JMLR 2006), with bars from Wilcoxon's test and Holm's adjustment instead of one critical distance. Plain SVG text: it
stands in the report as it is, in either colour scheme (`currentColor`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from inpbench.harness.statistics import ALPHA, AcrossPair

WIDTH, _MARGIN, _LINE = 720, 190, 22
_LETTERS = 20  # of a name beside the scale; longer ones end in an ellipsis, and are whole in its title


def draw(ranks: Mapping[str, float], pairs: Sequence[AcrossPair], title: str) -> str:
    """An SVG document. ranks: method -> mean rank, 1 the best. pairs: of `statistics.across`, empty where no test was possible."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    half = (len(ordered) + 1) // 2
    bars = cliques([name for name, _ in ordered], pairs)
    top = 64 + 10 * len(bars)
    height = top + _LINE * (half + 1)

    def x(rank: float) -> float:
        return _MARGIN + (rank - 1) / max(1, len(ordered) - 1) * (WIDTH - 2 * _MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="currentColor" stroke="currentColor">',
        f'<text x="{WIDTH / 2}" y="16" text-anchor="middle" stroke="none">{escape(title)}</text>',
        f'<line x1="{x(1):.1f}" y1="48" x2="{x(max(2, len(ordered))):.1f}" y2="48"/>',
    ]
    for tick in range(1, len(ordered) + 1):
        parts.append(f'<line x1="{x(tick):.1f}" y1="43" x2="{x(tick):.1f}" y2="48"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="38" text-anchor="middle" stroke="none">{tick}</text>')
    for index, (name, rank) in enumerate(ordered):
        left = index < half
        row = index if left else len(ordered) - 1 - index
        y = top + _LINE * (row + 0.5)
        end, anchor = (_MARGIN - 12, "end") if left else (WIDTH - _MARGIN + 12, "start")
        parts.append(f'<polyline points="{x(rank):.1f},48 {x(rank):.1f},{y:.1f} {end},{y:.1f}" fill="none" stroke-width="1"/>')
        short = name if len(name) <= _LETTERS else name[: _LETTERS - 8] + "…" + name[-7:]
        text = f"<title>{escape(name)}</title>{escape(short)} ({rank:.2f})"
        parts.append(f'<text x="{end + (-4 if left else 4)}" y="{y + 4:.1f}" text-anchor="{anchor}" stroke="none">{text}</text>')
    for index, (first, last) in enumerate(bars):
        at = 57 + 10 * index
        parts.append(f'<line x1="{x(ranks[first]) - 4:.1f}" y1="{at}" x2="{x(ranks[last]) + 4:.1f}" y2="{at}" stroke-width="4"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def cliques(ordered: Sequence[str], pairs: Sequence[AcrossPair]) -> list[tuple[str, str]]:
    """First and last method of each longest run of neighbours none of whose pairs is significant. ordered: by mean rank."""
    if not pairs:
        return []
    apart = {frozenset((pair.first, pair.second)) for pair in pairs if pair.adjusted < ALPHA}
    runs: list[tuple[int, int]] = []
    for start in range(len(ordered)):
        end = start
        while end + 1 < len(ordered) and all(frozenset((ordered[i], ordered[end + 1])) not in apart for i in range(start, end + 1)):
            end += 1
        if end > start and not any(begin <= start and end <= last for begin, last in runs):
            runs.append((start, end))
    return [(ordered[start], ordered[end]) for start, end in runs]
