"""What a cell costs, measured; and the tables of it, which never mix two kinds of hardware."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import TINY, bench
from interpreter import PYTHON
from recordkit import record

from inpbench.harness.api import Prediction
from inpbench.harness.cost import Cost, count_cost
from inpbench.harness.cost_table import QUANTITIES, cost_tables
from inpbench.harness.leaderboard import build_tables
from inpbench.harness.snapshots import Fitting
from inpbench.harness.tables import FORMATS, render

CPU = torch.device("cpu")
GPU_CLASS = "cuda-h100"


def costly(value: float, seed: int = 0, hardware: str = "cpu-x86_64-2", **cost: Any) -> Any:
    made = record(value, seed=seed, hardware=hardware)
    made.cost = {
        "fit_s": 10.0,
        "predict_s": 2.0,
        "predict_images_per_s": 25.0,
        "parameters_total": 5_000_000,
        "parameters_trainable": 2_000_000,
        "flops_per_image": 3_000_000_000,
        "peak_memory_mb": 1500.0,
    } | cost
    made.stamp["eval_batch"] = 16
    return made


def test_a_cost_is_the_sum_over_categories_and_models() -> None:
    cost = Cost()
    for seconds in (2.0, 3.5):
        cost.add_fit(Fitting(seconds))
    tested = [SimpleNamespace(images=30, predict_s=2.0, enter_s=0.0), SimpleNamespace(images=50, predict_s=6.0, enter_s=0.5)]
    found = cost.as_dict(iter(tested))  # type: ignore[arg-type]
    assert (found["fit_s"], found["predict_s"], found["enter_s"], found["predict_images_per_s"]) == (5.5, 8.0, 0.5, 10.0)
    nothing = cost.as_dict(())
    assert nothing["predict_images_per_s"] is None and "enter_s" not in nothing


class Bank:
    """A frozen layer of 12 parameters and a memory of 2 x 4; one product with each."""

    def __init__(self) -> None:
        self.encoder = torch.nn.Linear(3, 4, bias=False)
        self.bank = torch.ones(2, 4)
        self.shared = self.encoder.weight

    def predict(self, images: torch.Tensor) -> Prediction:
        return Prediction((self.encoder(images.flatten(2).transpose(1, 2)) @ self.bank.T).sum(2)[:, None])

    def state(self) -> dict[str, torch.Tensor]:
        return {"bank": self.bank}


class Tuned(Bank):
    """The same, its encoder learned as well."""

    def state(self) -> dict[str, torch.Tensor]:
        return {"bank": self.bank, "encoder.weight": self.encoder.weight.detach()}


@pytest.mark.parametrize(("kind", "total", "learned"), [(Bank, 20, 8), (Tuned, 20, 20)])
def test_parameters_and_operations_are_counted(kind: type[Bank], total: int, learned: int) -> None:
    cost = Cost()
    count_cost(kind(), (5, 7), SimpleNamespace(device=CPU, dtype=torch.float32), cost)  # type: ignore[arg-type]
    assert (cost.parameters_total, cost.parameters_trainable) == (total, learned)
    assert cost.flops == 2 * 35 * 3 * 4 + 2 * 35 * 4 * 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets the highest memory")
def test_memory_is_that_of_the_cell() -> None:
    """In a process of its own: one that has done other work may keep what it frees."""
    code = (
        "import torch\n"
        "from inpbench.harness.cost import Cost, peak_memory_mb\n"
        "cpu = torch.device('cpu')\n"
        "Cost.begin(cpu)\n"
        "before = peak_memory_mb(cpu)\n"
        "large = torch.ones(100_000_000, dtype=torch.uint8)\n"
        "during = peak_memory_mb(cpu)\n"
        "del large\n"
        "Cost.begin(cpu)\n"
        "print(during - before, during - peak_memory_mb(cpu))"
    )
    done = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    grown, given_back = map(float, done.stdout.split())
    assert grown > 90 and given_back > 50


def test_each_kind_of_hardware_has_a_table() -> None:
    made = [costly(0.9), costly(0.8, hardware=GPU_CLASS, predict_images_per_s=900.0)]
    made[1].identity["params"] = {"inp_num": 4}
    one, other = cost_tables(made)
    assert one.title.endswith("cost on cpu-x86_64-2") and other.title.endswith(f"cost on {GPU_CLASS}")
    assert [len(table.rows) for table in (one, other)] == [1, 1]
    assert [cell.text for cell in one.rows[0]][3:] == ["16", "5.00", "2.00", "3.00", "25.0", "1.50", "10.0"]
    assert other.rows[0][7].text == "900.0"


def test_seeds_on_two_machines_are_never_averaged() -> None:
    made = [costly(0.9), costly(0.9, seed=1, fit_s=20.0), costly(0.9, seed=2, hardware=GPU_CLASS, fit_s=1.0)]
    one, other = cost_tables(made)
    assert (one.data[0]["fit_s"], one.data[0]["seeds"]) == (15.0, [0, 1]) and "Means over the seeds" in one.caption
    assert (other.data[0]["fit_s"], other.data[0]["seeds"]) == (1.0, [2])
    (table,) = build_tables(made)
    row = table.data[0]
    assert row["fit_s"] is row["predict_images_per_s"] is row["peak_memory_mb"] is None
    assert row["flops_per_image"] == 3e9 and row["hardware"] == ["cpu-x86_64-2", GPU_CLASS]
    assert any("different hardware" in text for _, text in table.footnotes)


def test_costs_that_were_not_measured_are_dashes() -> None:
    made = costly(0.9, flops_per_image=None)
    made.stamp.pop("eval_batch")
    (table,) = cost_tables([made])
    assert [table.rows[0][index].text for index in (3, 6)] == ["-", "-"]


def test_every_format_has_the_units_or_the_full_precision() -> None:
    tables = cost_tables([costly(0.9, predict_images_per_s=1234.56789)])
    for name in FORMATS:
        text = render(tables, name, width=200)
        assert ("1,234.6" if name in ("terminal", "markdown", "latex") else "1234.56789") in text, name
    assert all(quantity.title in render(tables, "markdown") for quantity in QUANTITIES)
    rows = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    assert rows[0]["peak_memory_mb"] == "1500.0" and rows[0]["hardware"] == "cpu-x86_64-2"
    assert json.loads(render(tables, "json"))[0]["protocol"]["hardware"] == "cpu-x86_64-2"


def test_by_the_command_line(tmp_path: Path) -> None:
    assert bench("run", *TINY, "--methods", "raw_pixel", "--preset", "smoke", "--results", tmp_path).code == 0
    (table,) = bench("leaderboard", "--cost", "--json", "--results", tmp_path).json()
    row = table["rows"][0]
    assert row["parameters_trainable"] == row["parameters_total"] == 2 * 3 * 64 * 64
    assert row["fit_s"] > 0 and row["predict_images_per_s"] > 0 and row["peak_memory_mb"] > 10
    refused = bench("leaderboard", "--cost", "--reported", "--results", tmp_path)
    assert refused.code == 2 and "--cost is a table of its own" in refused.err
