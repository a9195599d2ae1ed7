"""What methods cost, from records: parameters, operations, speed, memory, time; one table for each protocol and kind of hardware.

Times of two machines never stand in one table, nor in one mean: a row whose seeds ran on two kinds of hardware is a row in both
tables. Nothing is ranked: which cost matters is the reader's question. Accuracy stands in `harness/leaderboard.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from inpbench.harness.families import Family, Row, families, rows_of
from inpbench.harness.leaderboard import input_of, names_of, row_data, row_marks
from inpbench.harness.records import Record
from inpbench.harness.tables import MISSING, Cell, Column, Footnotes, Table


class Quantity(NamedTuple):
    """A column: a key of a record's `cost`, and how it is printed."""

    key: str
    title: str
    unit: float  # what a printed 1 is of the recorded unit
    digits: int


QUANTITIES = (
    Quantity("parameters_total", "params (M)", 1e6, 2),
    Quantity("parameters_trainable", "learned (M)", 1e6, 2),
    Quantity("flops_per_image", "GFLOPs/image", 1e9, 2),
    Quantity("predict_images_per_s", "images/s", 1.0, 1),
    Quantity("peak_memory_mb", "peak memory (GB)", 1e3, 2),
    Quantity("fit_s", "fit (s)", 1.0, 1),
)
_MEANING = (
    "params: numbers of the frozen encoder and of what was learned (weights, or a memory bank); those of one model",
    "GFLOPs/image: 10^9 operations of one forward, a multiply-add counted twice; what torch has no formula for is left out",
    "images/s: prediction and smoothing of the test images, decoding and metrics left out; fit: all models of the cell, in seconds",
    "peak memory: 10^9 bytes, of the GPU's allocator on CUDA, else resident in the process",
)


def cost_tables(records: Iterable[Record]) -> list[Table]:
    """One table for each family of comparable records and each kind of hardware; families and hardware in a stable order."""
    tables = []
    for family in families(records):
        rows = rows_of(family)
        for hardware in sorted({kind for row in rows for kind in row.hardware}):
            here = [Row(tuple(r for r in row.records if r.hardware == hardware)) for row in rows if hardware in row.hardware]
            tables.append(_table(family, here, hardware))
    return tables


def _table(family: Family, rows: Sequence[Row], hardware: str) -> Table:
    notes = Footnotes()
    table = Table(
        title=f"{family.title}: cost on {hardware}",
        caption=[family.caption()[0], *_MEANING],
        columns=[Column("method", left=True), Column("seeds"), Column("input", left=True), Column("batch")],
        rows=[],
        protocol=family.protocol | {"hardware": hardware},
    )
    table.columns += [Column(quantity.title) for quantity in QUANTITIES]
    if any(len(row.records) > 1 for row in rows):
        table.caption.append("Means over the seeds")
    for row, name in zip(rows, names_of(rows), strict=True):
        values = {quantity.key: row.cost(quantity.key) for quantity in QUANTITIES}
        batches = _batches(row)
        cells = [Cell(name, tuple(row_marks(row, notes))), Cell(str(len(row.seeds))), Cell(input_of(row.first))]
        cells.append(Cell(", ".join(map(str, batches)) or MISSING))
        cells += [Cell(_text(quantity, values[quantity.key])) for quantity in QUANTITIES]
        table.rows.append(cells)
        table.data.append(row_data(family, row, name) | {"hardware": hardware, "eval_batch": batches} | values)
    table.footnotes = notes.listing()
    return table


def _batches(row: Row) -> list[int]:
    """Test images predicted at once; images/s depends on it."""
    found: list[Any] = [record.stamp.get("eval_batch") for record in row.records]
    return sorted({batch for batch in found if isinstance(batch, int)})


def _text(quantity: Quantity, value: float | None) -> str:
    return MISSING if value is None else f"{value / quantity.unit:,.{quantity.digits}f}"
