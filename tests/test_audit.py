"""`bench data verify`: every bad file is found and named, sound trees give nothing, counts are compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trees

from inpbench.datasets.folder import FOLDER
from inpbench.datasets.mvtec import COUNTS, MVTEC_AD
from inpbench.datasets.real_iad import CATEGORIES, REAL_IAD
from inpbench.datasets.visa import VISA
from inpbench.harness.api import Counts, DatasetInfo, Sample
from inpbench.harness.audit import AuditReport, audit, compare, tally
from inpbench.harness.errors import DataError


def audited(info: DatasetInfo, root: Path, strict: bool = False, **params: object) -> AuditReport:
    return audit(info, info.params(**params), root, strict)


def test_a_sound_tree_has_nothing_to_report(tmp_path: Path) -> None:
    report = audited(FOLDER, trees.mvtec(tmp_path))
    assert report.ok and report.findings == () and report.stop() is None
    assert report.counts == {c: {"train": {"good": 4}, "test": {"good": 2, "hole": 2}} for c in ("bottle", "carpet")}
    assert report.sizes == {c: {"24x20": 8} for c in report.counts} and report.modes["bottle"] == {"RGB": 8}
    assert report.checked == 16 + 4
    data = json.loads(json.dumps(report.to_json()))
    assert data["ok"] is True and data["files"] == [] and data["dataset"] == "folder"


def test_every_nasty_file_is_named(tmp_path: Path) -> None:
    report = audited(FOLDER, trees.nasty(tmp_path / "nasty"), strict=True)
    found = {(f.file, f.status) for f in report.findings}
    assert {(f"part/{file}", status) for file, status in trees.NASTY.items()} <= found
    outside = {("empty", "ignored"), ("hollow", "ignored"), ("loop", "ignored")}
    assert found - outside == {(f"part/{file}", status) for file, status in trees.NASTY.items()}
    assert not report.ok
    stop = report.stop()
    assert isinstance(stop, DataError) and str(report.errors[0].file) in stop.message
    leak = next(f for f in report.findings if f.file.endswith("leak.png"))
    assert "part/train/good/001.png" in leak.message and "leaks" in leak.message
    for entry in report.to_json()["files"]:
        assert set(entry) == {"file", "status", "severity", "message"} and entry["message"]


def test_strict_is_not_ok_with_warnings(tmp_path: Path) -> None:
    trees.mvtec(tmp_path, ("a",))
    trees.save(trees.spot(), tmp_path / "a/ground_truth/hole/stray.png")
    assert audited(FOLDER, tmp_path).ok and audited(FOLDER, tmp_path).stop() is None
    assert not audited(FOLDER, tmp_path, strict=True).ok


def test_counts_are_compared_with_the_published(tmp_path: Path) -> None:
    report = audited(MVTEC_AD, trees.mvtec(tmp_path, ("carpet",)))
    assert {f.file for f in report.findings if f.status == "missing_category"} == set(COUNTS) - {"carpet"}
    (count,) = [f for f in report.findings if f.status == "count"]
    assert count.file == "carpet" and "280 / 28 / 89" in count.message and "4 / 2 / 2" in count.message
    assert report.to_json()["published"]["carpet"] == {"train": 280, "test_normal": 28, "test_anomalous": 89}


def test_published_counts_follow_the_parameters(tmp_path: Path) -> None:
    trees.visa_raw(tmp_path, ("candle",))
    (tmp_path / "split_csv/1cls.csv").rename(tmp_path / "split_csv/2cls_highshot.csv")
    report = audited(VISA, tmp_path, split="2cls_highshot")
    assert report.published["candle"] == Counts(660, 400, 40)
    assert report.sizes["candle"] == {"24x20": 7}


def test_totals_are_compared_when_all_categories_are_there() -> None:
    samples = [Sample(f"{c}/{i}", c, "train", 0) for c in CATEGORIES for i in range(2)]
    published = {"total": Counts(60, 0, 0)}
    assert compare(tally(samples), samples, published, REAL_IAD) == []
    (finding,) = compare(tally(samples), samples, {"total": Counts(61, 0, 0)}, REAL_IAD)
    assert finding.status == "count" and "found 60 / 0 / 0" in finding.message
    part = [s for s in samples if s.category != "zipper"]
    assert [f.status for f in compare(tally(part), part, published, REAL_IAD)] == ["missing_category"]


def test_real_iad_is_audited_through_its_lists(tmp_path: Path) -> None:
    report = audited(REAL_IAD, trees.real_iad(tmp_path, ("pcb",)))
    assert report.counts["pcb"] == {"train": {"good": 5}, "test": {"good": 6, "AK": 4}}
    assert {f.status for f in report.findings} == {"missing_category"} and report.checked == 15 + 4


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    audit(FOLDER, FOLDER.params(), trees.mvtec(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16) and [d for d, _ in seen] == list(range(1, 17))


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        audited(MVTEC_AD, tmp_path)


def test_categories_that_nothing_can_be_trained_or_measured_on(tmp_path: Path) -> None:
    """A folder has no published counts that would tell."""
    names = ("good/train/good/0", "good/test/good/1", "good/test/crack/2", "untrained/test/crack/3", "unmeasured/train/good/4")
    for number, name in enumerate(names):
        trees.save(trees.picture(number), tmp_path / f"{name}.png")
    report = audited(FOLDER, tmp_path)
    found = [(finding.file, finding.message.partition(":")[0]) for finding in report.findings if finding.status == "lacking"]
    assert found == [("unmeasured", "no anomalous test image"), ("untrained", "no normal training image")]
    assert report.ok
