"""What makes a record another record: whatever may change a number enters the identity, and nothing else does."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import trees

from inpbench.harness import manifest, metrics, plan
from inpbench.harness.api import DatasetInfo, NoParams, Sample
from inpbench.harness.plan import Request, make_plan
from inpbench.harness.records import RecordStore
from inpbench.harness.registry import METHODS
from inpbench.harness.scoring import Scoring
from inpbench.harness.settings import SETTINGS
from inpbench.harness.weights import WeightStore

DRAWN = {"size": "64", "train": "3", "normal": "1", "defective": "1"}
BASE = Request(
    methods=("inp_former",),
    datasets=("synthetic",),
    categories=("weave", "nut"),
    preset="smoke",
    encoder="builtin",
    changes={"synthetic": DRAWN},
)
FEW, ZERO = replace(BASE, setting="few_shot", shots=(1,)), replace(BASE, setting="zero_shot", source="folder")
FILES = ("data_root", "data_roots", "source_root", "checkpoint", "prompts")  # compared by what is in them: below, test_prompt_files

# Each gives other numbers than BASE and than all the others.
OTHERS: dict[str, list[Request]] = {
    "methods": [replace(BASE, methods=("dinomaly",))],
    "datasets": [],  # with `data_root`, below
    "setting": [replace(BASE, setting="single_class")],
    "seeds": [replace(BASE, seeds=(2,)), replace(FEW, seeds=(2,))],
    "shots": [FEW, replace(FEW, shots=(2,))],
    "preset": [replace(BASE, preset="demo")],
    "encoder": [replace(BASE, encoder="dinov2reg_vit_small_14")],
    "changes": [
        replace(BASE, changes=BASE.changes | {"inp_former": {"lr": "0.5"}}),
        replace(BASE, changes={"synthetic": DRAWN | {"seed": "1"}}),
    ],
    "source": [],  # with `source_root`, below
    "categories": [replace(BASE, categories=("weave",))],
    "limit": [replace(BASE, limit=1), replace(BASE, limit=2)],
    "engine": [replace(BASE, engine="reference")],
    "variant": [replace(BASE, variant="paper")],
}
# Where and when work is done, and what is done with a broken file (which the record lists): the same record.
SAME: dict[str, Request] = {
    "phase": replace(BASE, phase="train"),
    "eval_batch": replace(BASE, eval_batch=3),
    "strict": replace(BASE, strict=False),
}


def id_of(request: Request, folder: Path, scoring: Scoring | None = None) -> str:
    """The id of a request's only cell."""
    (cell,) = make_plan(request, RecordStore(folder / "runs"), WeightStore("random"), scoring or Scoring())
    assert cell.status == "todo" and len(cell.id) == 64, cell.reason
    return cell.id


def test_every_option_of_a_request_is_looked_at() -> None:
    assert {*OTHERS, *SAME, *FILES} == {field.name for field in fields(Request)}


def test_what_may_change_a_number_makes_another_record(tmp_path: Path) -> None:
    data = trees.mvtec(tmp_path / "data", ("a", "b"))
    (tmp_path / "model.pth").write_bytes(b"one model")
    folder = replace(BASE, datasets=("folder",), data_root=data, categories=(), changes={})
    requests = [BASE, *(request for group in OTHERS.values() for request in group), folder]
    requests += [replace(ZERO, source_root=data), replace(BASE, checkpoint=tmp_path / "model.pth")]
    ids = [id_of(request, tmp_path) for request in requests]
    (tmp_path / "model.pth").write_bytes(b"another model")
    ids.append(id_of(requests[-1], tmp_path))
    trees.save(trees.picture(99, (40, 30)), data / "a" / "train" / "good" / "000.png")
    ids += [id_of(request, tmp_path) for request in (folder, replace(ZERO, source_root=data))]
    assert len(set(ids)) == len(ids), [request for request, id in zip(requests, ids, strict=False) if ids.count(id) > 1]


def test_every_constant_of_the_scoring_makes_another_record(tmp_path: Path) -> None:
    changed: dict[str, Any] = {"version": 2, "metric_size": (128, 128), "kernel": 3, "sigma": 3.0, "top_ratio": 0.0}
    changed |= {"mask_rule": "gt0", "align_to_crop": False, "align_to_metric": True, "kernel_dtype": "x", "padding": "x"}
    assert set(changed) == {field.name for field in fields(Scoring)}
    ids = {id_of(BASE, tmp_path, replace(Scoring(), **{name: value})) for name, value in changed.items()}
    assert len(ids | {id_of(BASE, tmp_path)}) == len(changed) + 1


@pytest.mark.parametrize("name", SAME)
def test_how_the_work_is_done_makes_no_other_record(name: str, tmp_path: Path) -> None:
    assert id_of(SAME[name], tmp_path) == id_of(BASE, tmp_path)


def test_a_data_set_that_moved_is_the_same_data_set(tmp_path: Path) -> None:
    one, other = (trees.mvtec(tmp_path / name / "data", ("a", "b")) for name in ("here", "there"))
    request = replace(BASE, datasets=("folder",), categories=(), changes={}, data_root=one)
    assert id_of(request, tmp_path) == id_of(replace(request, data_root=other), tmp_path)
    assert id_of(request, tmp_path) == id_of(replace(request, data_root=None, data_roots={"folder": other}), tmp_path)


def test_every_fact_of_an_image_enters_the_hash_of_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out: label, split, kind of defect, object and view, and what is in image and mask."""
    for number, name in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/0_mask.png")):
        trees.save(trees.picture(number), tmp_path / name)
    first, second = Sample("a/0.png", "a", "train", 0), Sample("b/0.png", "b", "test", 1, "b/0_mask.png", "hole")
    others = {
        "image": "a/1.png",
        "category": "c",
        "split": "val",
        "label": -1,
        "mask": None,
        "defect": "crack",
        "specimen": "x",
        "view": "1",
    }
    assert set(others) == {field.name for field in fields(Sample)}

    def hash_of(samples: list[Sample], version: int = 1) -> str:
        monkeypatch.setattr(manifest, "resolve", lambda _: lambda root, params, report: samples)
        info = DatasetInfo(name="facts", version=version, title="t", scan="x:y")
        return manifest.open_manifest(info, NoParams(), tmp_path).identity

    listed = [first, second]
    changed = [[first, replace(second, **{name: value})] for name, value in others.items()]
    hashes = [hash_of(samples) for samples in (listed, *changed, [second, first], [first])] + [hash_of(listed, version=2)]
    for number, name in enumerate(("b/0.png", "b/0_mask.png")):  # another content
        trees.save(trees.picture(7 + number), tmp_path / name)
        hashes.append(hash_of(listed))
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("what", ["identity", "method", "setting", "metrics"])
def test_every_version_makes_another_record(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = id_of(BASE, tmp_path)
    info, setting = METHODS.get("inp_former"), SETTINGS["multi_class"]
    if what == "identity":
        monkeypatch.setattr(plan, "IDENTITY_VERSION", 2)
    elif what == "method":
        monkeypatch.setattr(METHODS, "get", lambda name: replace(info, version=info.version + 1))
    elif what == "setting":
        monkeypatch.setitem(SETTINGS, "multi_class", replace(setting, version=setting.version + 1))
    else:
        monkeypatch.setattr(metrics, "SUITE_VERSION", metrics.SUITE_VERSION + 1)
    assert id_of(BASE, tmp_path) != before
