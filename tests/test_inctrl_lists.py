"""InCTRL's json lists, written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trees
from commands import bench

from inpbench.datasets.inctrl_lists import INCTRL_LISTS, lists, scan
from inpbench.harness.api import Finding, NoParams, Sample
from inpbench.harness.errors import DataError
from inpbench.harness.registry import DATASETS, resolve


def read(root: Path) -> tuple[list[Sample], list[Finding]]:
    found: list[Finding] = []
    return scan(root, NoParams(), found.append), found


def facts(samples: list[Sample]) -> set[tuple[str, str, str, int]]:
    return {(s.image, s.category, s.split, s.label) for s in samples}


def test_written_and_read_again(tmp_path: Path) -> None:
    """VisA's images end in .JPG, which the authors' script leaves out of the training list."""
    root = trees.visa_raw(tmp_path / "visa")
    outcome = bench("data", "lists", "visa", "--data-root", root, "--to", root / "AD_json")
    assert outcome.code == 0, outcome.err
    names = {p.name for p in (root / "AD_json").glob("*.json")} - {"provenance.json"}
    assert names == {f"{c}_{end}.json" for c in ("candle", "pcb1") for end in ("normal", "outlier", "val_normal", "val_outlier")}
    normal = json.loads((root / "AD_json" / "candle_normal.json").read_text())
    assert len(normal) == 5 and {tuple(entry) for entry in normal} == {("image_path", "target", "type")}
    assert all(Path(entry["image_path"]).is_file() and entry["type"] == "candle" and entry["target"] == 0 for entry in normal)
    samples, found = read(root)
    original = resolve(DATASETS.get("visa").scan)(root, DATASETS.get("visa").params(), found.append)
    assert found == [] and facts(samples) == facts(original)
    assert bench("data", "lists", "visa", "--data-root", root, "--to", root / "AD_json").code == 2, "never overwritten"
    assert "1 findings" not in bench("data", "verify", "inctrl_lists", "--data-root", root).out


def test_private_and_validation_images_are_in_no_list(tmp_path: Path) -> None:
    import raw_trees

    info = DATASETS.get("mvtec_ad_2")
    root = raw_trees.mvtec_ad_2(tmp_path, ("can",))
    samples = resolve(info.scan)(root, info.params(private=True), lambda finding: None)
    assert {name: len(entries) for name, entries in lists(root, samples).items()} == {
        "can_normal.json": 5, "can_outlier.json": 2, "can_val_normal.json": 2, "can_val_outlier.json": 2,
    }  # fmt: skip


def test_bad_lists_are_reported_entry_by_entry(tmp_path: Path) -> None:
    for place in ("train/good/0.png", "test/good/1.png", "test/hole/2.png"):
        trees.save(trees.picture(len(place)), tmp_path / "a" / place)

    def entry(path: object, target: object = 0) -> dict[str, object]:
        return {"image_path": path, "target": target, "type": "a"}

    good = [entry("./a/test/good/1.png"), entry("a/test/good/1.png"), entry("/etc/passwd"), entry("../x.png"), entry("a/none.png")]
    good += [entry("a/test/good/1.png", 1), entry(3), "text", entry("")]  # type: ignore[list-item]
    (tmp_path / "a_val_normal.json").write_text(json.dumps(good))
    (tmp_path / "a_val_outlier.json").write_text(json.dumps([entry("a/test/hole/2.png", 1)]))
    (tmp_path / "a_train_normal.json").write_text(json.dumps([entry("a/train/good/0.png"), entry("a/test/good/1.png")]))
    (tmp_path / "b_val_normal.json").write_text("{broken")
    (tmp_path / "c_val_normal.json").write_text("{}")
    samples, found = read(tmp_path)
    assert [(s.image, s.split, s.label, s.defect) for s in samples] == [
        ("a/train/good/0.png", "train", 0, "good"),
        ("a/test/good/1.png", "test", 0, "good"),
        ("a/test/hole/2.png", "test", 1, "hole"),
    ]
    assert [f.status for f in found if f.file.startswith("a")] == [
        "bad_entry", "bad_path", "bad_path", "missing_image", "bad_entry", "bad_entry", "bad_entry", "bad_path",
    ]  # fmt: skip
    assert [f.status for f in found if f.file.startswith("b")] == ["bad_entry", "missing_image", "ignored"]
    with pytest.raises(DataError, match="_val_normal"):
        read(tmp_path / "a")
    assert INCTRL_LISTS.expected_tree
