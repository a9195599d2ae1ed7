"""Tables as data, and the five ways to write them: terminal, markdown, csv, latex, json.

What people read (terminal, markdown, latex) has per cent with two decimals; what programs read (csv, json) has fractions at full
precision, from `data`, never from the printed text. rich is imported only for the terminal.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from inpbench.harness.console import harmless
from inpbench.harness.errors import UsageError, did_you_mean
from inpbench.harness.spreadsheet import as_text

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable

FORMATS = ("terminal", "markdown", "csv", "latex", "json")
MISSING = "-"
FILE_WIDTH = 140  # characters of a terminal table that goes to a file or a pipe


@dataclass(frozen=True)
class Column:
    """A column as printed."""

    title: str
    left: bool = False  # texts to the left, numbers to the right
    detail: bool = False  # drawn as a second table below the first in LaTeX, and where a terminal is too narrow for one


@dataclass(frozen=True)
class Cell:
    """A cell as printed. `marks`: footnote symbols; `second`: a second line (the published value); `best` of its column or row."""

    text: str
    marks: tuple[str, ...] = ()
    second: str = ""
    best: bool = False


@dataclass
class Table:
    """One table: what is printed, and the same as data."""

    title: str
    caption: list[str]  # the protocol, one statement a line
    columns: list[Column]
    rows: list[list[Cell]]
    footnotes: list[tuple[str, str]] = field(default_factory=list)  # (symbol, text)
    below: list[str] = field(default_factory=list)  # missing and failed cells
    protocol: dict[str, Any] = field(default_factory=dict)  # what all rows share, as data
    data: list[dict[str, Any]] = field(default_factory=list)  # the rows as flat data, fractions at full precision
    missing: list[dict[str, Any]] = field(default_factory=list)  # the cells without a number, as data


class Footnotes:
    """Numbers footnotes in the order in which they are met; the same text keeps its symbol."""

    def __init__(self) -> None:
        self._symbols: dict[str, str] = {}

    def mark(self, text: str, symbol: str = "") -> str:
        """The symbol of a footnote: the given one, or the next number."""
        if text not in self._symbols:
            numbers = sum(known.isdigit() for known in self._symbols.values())
            self._symbols[text] = symbol or str(numbers + 1)
        return self._symbols[text]

    def listing(self) -> list[tuple[str, str]]:
        """(symbol, text), numbers last."""
        pairs = [(symbol, text) for text, symbol in self._symbols.items()]
        return sorted(pairs, key=lambda pair: (pair[0].isdigit(), int(pair[0]) if pair[0].isdigit() else 0))


def render(tables: Sequence[Table], format: str, width: int | None = None) -> str:
    """The tables as one text. format: one of FORMATS; width: of the terminal, in characters (default: the real one).

    Raises `UsageError` for an unknown format.
    """
    if format == "json":
        return json.dumps([_as_json(table) for table in tables], ensure_ascii=False, allow_nan=False, indent=1)
    if format == "csv":
        return _csv(tables)
    if format == "markdown":
        return "\n\n".join(_markdown(table) for table in tables)
    if format == "latex":
        return "\n\n".join(_latex(table) for table in tables)
    if format == "terminal":
        return _terminal_text(tables, width)
    raise UsageError(f"Unknown format '{format}'. {did_you_mean(format, FORMATS)}", "Type for example: --format markdown")


# --- for programs ---------------------------------------------------------------------------------------------------


def _as_json(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "protocol": table.protocol,
        "rows": table.data,
        "missing": table.missing,
        "footnotes": dict(table.footnotes),
    }


def _csv(tables: Sequence[Table]) -> str:
    """One header for all tables (the union of their keys); an empty field is a missing value."""
    rows = [row for table in tables for row in table.data]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([_csv_field(row.get(key)) for key in keys])
    return buffer.getvalue().rstrip("\n")


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return as_text("; ".join(map(str, value)))
    return as_text(str(value)) if isinstance(value, str) else str(value)


# --- for people -----------------------------------------------------------------------------------------------------


def _markdown(table: Table) -> str:
    def text(cell: Cell) -> str:
        shown = _markdown_text(cell.text)
        shown = f"**{shown}**" if cell.best else shown
        shown += f"<sup>{','.join(cell.marks)}</sup>" if cell.marks else ""
        return shown + (f"<br>{_markdown_text(cell.second)}" if cell.second else "")

    lines = [f"### {_markdown_text(table.title)}", ""]
    lines += [_markdown_text(line) + "  " for line in table.caption]
    lines += ["", "| " + " | ".join(_markdown_text(column.title) for column in table.columns) + " |"]
    lines.append("|" + "|".join(":---" if column.left else "---:" for column in table.columns) + "|")
    lines += ["| " + " | ".join(text(cell) for cell in row) + " |" for row in table.rows]
    notes = [f"<sup>{symbol}</sup> {_markdown_text(note)}  " for symbol, note in table.footnotes]
    below = [f"- {_markdown_text(line)}" for line in table.below]
    return "\n".join(lines + (["", *notes] if notes else []) + (["", *below] if below else []))


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*|<>])", r"\\\1", text).replace("\n", " ")


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "×": r"$\times$",
    "→": r"$\to$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\n": " ",
}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _latex(table: Table) -> str:
    r"""A complete `table` environment; needs only the package booktabs. Details are a second tabular: one would leave the page."""
    notes = [rf"\textsuperscript{{{_latex_text(symbol)}}} {_latex_text(note)}" for symbol, note in table.footnotes]
    notes += [_latex_text(line) for line in table.below]
    details = [place for place, column in enumerate(table.columns) if column.detail]
    rest = [place for place, column in enumerate(table.columns) if not column.detail]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_text(table.title + '. ' + ' '.join(line.rstrip('.') + '.' for line in table.caption))}}}",
        *_tabular(table, rest),
        *([r"\par\medskip", *_tabular(table, [0, *details])] if details else []),
        *(rf"\par\footnotesize {note}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines)


def _tabular(table: Table, places: Sequence[int]) -> list[str]:
    """Some of the columns of a table."""

    def text(cell: Cell) -> str:
        shown = _latex_text(cell.text)
        shown = rf"\textbf{{{shown}}}" if cell.best else shown
        shown += rf"\textsuperscript{{{_latex_text(','.join(cell.marks))}}}" if cell.marks else ""
        return rf"\shortstack{{{shown}\\{_latex_text(cell.second)}}}" if cell.second else shown

    columns = [table.columns[place] for place in places]
    return [
        rf"\begin{{tabular}}{{{''.join('l' if column.left else 'r' for column in columns)}}}",
        r"\toprule",
        " & ".join(_latex_text(column.title) for column in columns) + r" \\",
        r"\midrule",
        *(" & ".join(text(row[place]) for place in places) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def terminal(tables: Sequence[Table], width: int) -> Group:
    """The tables as something rich prints; what is too wide is drawn as several: metrics first, details below."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for table in tables:
        parts.append(Text(harmless(table.title), style="bold"))
        parts += [Text(harmless(line), style="dim") for line in table.caption]
        parts += [_drawn(table, widths) for widths in _layout(table, width)]
        if any(cell.best for row in table.rows for cell in row):
            parts.append(Text("* the best of its column", style="dim"))
        parts += [Text(harmless(f"[{symbol}] {note}"), style="dim") for symbol, note in table.footnotes]
        parts += [Text(harmless(line), style="yellow") for line in table.below]
        parts.append(Text(""))
    return Group(*parts)


def _terminal_cell(cell: Cell) -> str:
    """The cell's first line as drawn: `*` for the best, because colours are off in a file."""
    return cell.text + ("*" if cell.best else "") + (f" [{','.join(cell.marks)}]" if cell.marks else "")


def _layout(table: Table, width: int) -> list[dict[int, int]]:
    """The tables that one is drawn as: columns by number with their widths. What a row is called begins each of them."""
    # A row is called by its first column, and in a table of pairs by two: all texts at the beginning.
    called = next((index for index, column in enumerate(table.columns) if not column.left), len(table.columns)) or 1
    natural, least = _widths(table)
    least[:called] = [min(characters, max(width // (2 * called) - _GAP, 8)) for characters in least[:called]]
    if _total(natural) <= width:
        return [dict(enumerate(natural))]
    keys, parts = list(range(called)), []
    for detail in (False, True):
        columns = [index for index in range(called, len(table.columns)) if table.columns[index].detail is detail]
        parts += _split(columns, least, width - _total([least[index] for index in keys]))
    return [_stretched([*keys, *part], natural, least, width) for part in parts or [[]]]


def _split(columns: Sequence[int], least: Sequence[int], room: int) -> list[list[int]]:
    """The columns in as few parts as fit into `room`, as even as they can be."""

    def parts_within(limit: int) -> list[list[int]]:
        parts: list[list[int]] = []
        for index in columns:
            if not parts or _total([least[known] for known in (*parts[-1], index)]) > limit:
                parts.append([])
            parts[-1].append(index)
        return parts

    fewest = len(parts_within(room))
    narrowest = next((limit for limit in range(max(room, 0)) if len(parts_within(limit)) <= fewest), room)
    return parts_within(narrowest)


_GAP = 3  # characters between two columns
_TEXT = 24  # characters that a text may be folded to


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * len(widths)


def _widths(table: Table) -> tuple[list[int], list[int]]:
    """Of each column: without folding anything, and the least that can be read (numbers stay whole, texts and heads fold)."""
    natural, least = [], []
    for index, column in enumerate(table.columns):
        cells = [max(len(_terminal_cell(row[index])), len(row[index].second)) for row in table.rows]
        broadest = max(cells, default=0)
        word = max((len(word) for word in column.title.split()), default=0)
        natural.append(max(len(column.title), broadest))
        least.append(max(min(word, _TEXT), min(broadest, _TEXT) if column.left else broadest))
    return natural, least


def _stretched(indices: Sequence[int], natural: Sequence[int], least: Sequence[int], width: int) -> dict[int, int]:
    """The least widths of columns, and the rest of the line for those that lack most."""
    widths = {index: least[index] for index in indices}
    for _ in range(width - _total(list(widths.values()))):
        lacking = max(indices, key=lambda index: natural[index] - widths[index])
        if widths[lacking] >= natural[lacking]:
            break
        widths[lacking] += 1
    return widths


def _drawn(table: Table, widths: Mapping[int, int]) -> RichTable:
    from rich import box
    from rich.table import Table as Drawing
    from rich.text import Text

    drawing = Drawing(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, width in widths.items():
        column = table.columns[index]
        justify: Literal["left", "right"] = "left" if column.left else "right"
        drawing.add_column(Text(harmless(column.title)), justify=justify, overflow="fold", width=width)
    for row in table.rows:
        texts = []
        for cell in (row[index] for index in widths):
            text = Text(harmless(_terminal_cell(cell)), style="bold green" if cell.best else "")
            if cell.second:
                text.append(f"\n{cell.second}", style="dim")
            texts.append(text)
        drawing.add_row(*texts)
    return drawing


def _terminal_text(tables: Sequence[Table], width: int | None) -> str:
    import os
    import sys

    from rich.console import Console

    buffer = io.StringIO()
    real = Console(file=sys.stdout)
    if width is None:
        # A file has no width; rich would assume 80 columns and fold every cell.
        width = real.width if real.is_terminal or os.environ.get("COLUMNS", "").isdigit() else FILE_WIDTH
    console = Console(file=buffer, width=width, force_terminal=real.is_terminal, no_color=real.no_color)
    console.print(terminal(tables, width))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).rstrip("\n")
