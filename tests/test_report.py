"""`bench report`: its curves against the metrics, its choice of pictures, and the page in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordkit
from commands import TINY, bench
from PIL import Image
from sklearn.metrics import roc_auc_score

from inpbench.harness.metrics.bootstrap import pixel_counts
from inpbench.harness.records import RecordStore
from inpbench.harness.report.curves import histogram, image_curves, pixel_curves, thin
from inpbench.harness.report.gallery import choose, input_picture
from inpbench.harness.report.page import page


def area(points: list[list[float]]) -> float:
    x, y = np.array(points).T
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())


def test_image_curves_have_the_area_of_the_metric() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    scores = np.round(rng.normal(size=300) + labels, 1)  # ties
    curves = image_curves(scores, labels)
    assert area(curves["roc"]) == pytest.approx(roc_auc_score(labels, scores), abs=0.004)
    assert curves["roc"][0] == [0, 0] and curves["roc"][-1] == [1, 1] and curves["pr"][-1] == [1, 0.5]
    assert image_curves(scores, np.zeros(300, int)) == {}


def test_pixel_curves_have_the_areas_of_the_metrics() -> None:
    from inpbench.harness.metrics.category import CategoryMetrics

    rng = np.random.default_rng(1)
    masks = np.zeros((6, 32, 32), bool)
    masks[3:, 4:9, 5:12] = True
    maps = (rng.normal(size=masks.shape) + 1.5 * masks).astype(np.float32)
    metrics = CategoryMetrics()
    import torch

    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    metrics.update(torch.from_numpy(maps), torch.arange(6.0), torch.from_numpy(masks), labels)
    values = metrics.compute().values
    curves = pixel_curves(pixel_counts(maps, masks))
    assert area(curves["roc"]) == pytest.approx(values["p_auroc"], abs=0.004)
    assert area(curves["pro"]) / 0.3 == pytest.approx(values["aupro"], abs=0.01) and curves["pro"][-1][0] == 0.3
    assert pixel_curves(pixel_counts(maps, masks & False)) == {}


def test_thinned_curves_keep_ends_and_corners() -> None:
    x = np.linspace(0, 1, 5000)
    y = (x > 0.5).astype(float)
    points = thin(x, y)
    assert len(points) <= 122 and points[0] == [0, 0] and points[-1] == [1, 1] and area(points) == pytest.approx(0.5, abs=0.01)


def test_histogram_counts_every_image() -> None:
    scores, labels = np.array([0.0, 0.5, 1.0, 1.0]), np.array([0, 0, 1, 1])
    bars = histogram(scores, labels)
    assert sum(bars["normal"]) == 2 and bars["anomalous"][-1] == 2 and (bars["low"], bars["high"]) == (0.0, 1.0)
    assert sum(histogram(np.ones(3), np.zeros(3, int))["normal"]) == 3


def test_choice_of_pictures() -> None:
    labels = [0, 0, 1, 1, 1]
    one, two = [0.1, 0.8, 0.2, 0.9, 0.5], [0.2, 0.9, 0.1, 0.8, 0.15]
    chosen = choose([one, two], labels, 4)
    assert list(chosen) == [2, 1, 3, 0] and chosen[2].startswith("missed") and chosen[0].startswith("disputed")
    assert len(choose([one], labels, 2)) == 2 and choose([[0.5]], [0], 4) == {0: "false alarm: ranked high by most"}


def test_the_outline_of_a_mask_stands_on_the_picture() -> None:
    mask = np.zeros((256, 256), bool)
    mask[64:128, 64:128] = True
    uri = input_picture(np.zeros((160, 160, 3), np.uint8), mask)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), np.int16)
    assert picture[40, 60, 1] > 150 > picture[60, 60, 1] and picture[10, 10, 1] < 40


def test_nothing_of_the_data_ends_the_script() -> None:
    text = page({"a": "</script><script>alert(1)</script><!--"})
    assert text.count("</script>") == 2 and "alert(1)\\u003c/script>" in text
    content = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert content is not None and json.loads(content[1])["a"].startswith("</script>")
    assert not re.search(r'(?:src|href)="https?:', text), "nothing is loaded"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run = ["run", "-m", "raw_pixel", "--preset", "smoke", *TINY, "--display", "none", "--results", folder / "runs"]
    assert bench(*run, "--save-maps").code == 0
    assert bench(*run, "--set", "raw_pixel.floor=0.5").code == 0
    outcome = bench("report", "--results", folder / "runs", "--out", folder / "report.html")
    assert outcome.code == 0, outcome.err
    return folder / "report.html"


def content_of(path: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_what_the_records_hold(written: Path) -> None:
    content = content_of(written)
    [family] = content["families"]
    records = {record.id: record for record in RecordStore(written.parent / "runs").all()}
    assert set(content["records"]) == set(records) and len(family["rows"]) == 2
    for row in family["rows"]:
        assert row["i_auroc"] == records[row["records"][0]].mean("i_auroc")
    assert [row["difference"] for row in family["pairs"]["p_ap"]]
    kept = next(i for i, row in enumerate(family["rows"]) if "floor" not in row["name"])
    nut = family["drawn"]["nut"]
    assert nut["curves"][kept]["pixel"]["pro"] and not nut["curves"][1 - kept]["pixel"]
    assert [list(picture["rows"]) for picture in nut["pictures"]] == [[str(kept)]] * len(nut["pictures"]) != []
    assert any("--save-maps" in reason for reason in family["reasons"])


def test_nothing_to_report(tmp_path: Path) -> None:
    outcome = bench("report", "--results", tmp_path, "--out", tmp_path / "r.html")
    assert outcome.code == 4 and not (tmp_path / "r.html").exists()
    store = RecordStore(tmp_path)
    record = recordkit.record(0.9)  # without a file of scores
    store.write(record)
    assert bench("report", "--results", tmp_path, "--out", tmp_path / "r.html").code == 0
    [family] = content_of(tmp_path / "r.html")["families"]
    assert family["reasons"] and family["rows"][0]["i_auroc"] == pytest.approx(0.9)


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_in_a_browser(written: Path, tmp_path: Path) -> None:
    """The script runs to its end: both methods, the curves and the pictures are in the document it leaves."""
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--dump-dom",
        written.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown = re.sub(r"<script.*?</script>", "", dom, flags=re.S)
    assert shown.count('class="value') >= 14 and "raw_pixel:smoke" in shown and "Per-region overlap" in shown
    assert shown.count("<polyline") >= 5 and "data:image/jpeg" in shown and "in pairs" in shown
