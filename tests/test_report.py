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

from inpbench.harness.metrics import METRICS
from inpbench.harness.metrics.bootstrap import pixel_counts
from inpbench.harness.records import RecordStore
from inpbench.harness.report.content import gather
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


def many(folder: Path) -> RecordStore:
    """Nine methods on seven data sets, close to one another but for the yardstick; one data set has no masks."""
    store = RecordStore(folder)
    names = [
        "inp_former",
        "dinomaly",
        "patchcore",
        "crr",
        "winclip",
        "pmad",
        "inctrl",
        "anomalib.reverse_distillation",
        "raw_pixel",
    ]
    for place, name in enumerate(names):
        for number in range(7):
            value = 0.5 if name == "raw_pixel" else 0.95 - place / 1000 + number / 500
            pixels = {metric: None for metric in METRICS if number == 6 and metric.startswith(("p_", "aupro"))}
            cost = {"predict_images_per_s": 900.0 if name == "raw_pixel" else 40.0 + place}
            changes: dict[str, Any] = {"p_auroc": 1.2 - value} | pixels
            store.write(recordkit.record(value, label=name, method=name, dataset=f"set{number}", cost=cost, **changes))
    return store


def test_data_sets_are_compared_by_every_metric(tmp_path: Path) -> None:
    store = many(tmp_path)
    [group] = gather(store, store.all().records, images=0)["overall"]
    assert list(group["metrics"]) == list(METRICS)
    images, pixels = group["metrics"]["i_auroc"], group["metrics"]["p_auroc"]
    assert len(images["datasets"]) == 7 and len(pixels["datasets"]) == 6
    assert images["rows"][0]["name"] == "inp_former" and images["rows"][-1]["name"] == "raw_pixel"
    assert pixels["rows"][0]["name"] == "raw_pixel", "another metric, another order"
    for row in images["rows"]:
        for score, ids in zip(row["scores"], row["records"], strict=True):
            assert [store.find(id_).mean("i_auroc") for id_ in ids] == [score]


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: str, two: str) -> float:
    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_seen_on_both_papers() -> None:
    """WCAG 2.2: 4.5 for text, 3 for what is drawn."""
    folder = Path(page.__code__.co_filename).parent
    style = (folder / "page.css").read_text(encoding="utf-8")
    [found] = re.findall(r"COLOURS = \[(.*?)\]", (folder / "tables.js").read_text(encoding="utf-8"))
    lines = re.findall(r"#\w{6}", found)
    papers = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r"\{\s*(--paper.*?)\}", style, re.S)]
    assert len(lines) == 8 and len(papers) == 3 and papers[1] == papers[2]
    for paper in papers:
        for text in ("ink", "soft", "accent", "good"):
            assert min(contrast(paper[text], paper["card"]), contrast(paper[text], paper["paper"])) >= 4.5, (text, paper)
        for line in lines:
            assert contrast(line, paper["card"]) >= 3, (line, paper["card"], contrast(line, paper["card"]))


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def shown_by_a_browser(file: Path, profile: Path) -> str:
    """The document that the script leaves, without the script."""
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--dump-dom",
        file.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return re.sub(r"<script.*?</script>", "", dom, flags=re.S)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_in_a_browser(written: Path, tmp_path: Path) -> None:
    """The script runs to its end: both methods, the curves and the pictures are in the document it leaves."""
    shown = shown_by_a_browser(written, tmp_path)
    assert shown.count('class="value') >= 14 and "raw_pixel:" in shown and "Per-region overlap" in shown
    assert shown.count("<polyline") >= 5 and "data:image/jpeg" in shown and "in pairs" in shown


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize(
    ("words", "methods", "datasets"),
    [
        ("", 3, 7),
        ("inp_former", 1, 7),
        ("set3 SET", 3, 1),
        ("inp_former set5", 1, 1),
        ("multi_class", 3, 7),  # of the title
        ("nobody", 0, 0),
        ("dinomaly nobody", 0, 0),
    ],
)
def test_the_filter_acts_on_the_section_over_data_sets(tmp_path: Path, words: str, methods: int, datasets: int) -> None:
    store = many(tmp_path / "runs")
    typed = f"<script>filter.value = {words!r}; update();</script></body>"
    file = tmp_path / "report.html"
    records = [record for record in store.all().records if record.label in ("inp_former", "dinomaly", "raw_pixel")]
    file.write_text(page(gather(store, records, images=0)).replace("</body>", typed), encoding="utf-8")
    shown = shown_by_a_browser(file, tmp_path / "profile")
    [section] = re.findall(r'<section id="overall-0"( hidden)?.*?>(.*?)</section>', shown, re.S)
    hidden = re.search(r'<section id="overall-0"[^>]* hidden', shown) is not None
    assert hidden == (methods == 0) == (re.search(r'href="#overall-0"[^>]* hidden', shown) is not None)
    assert ('<p class="note" hidden="">No method' in shown) == (methods > 0)
    if methods:
        [table] = re.findall(r'<table aria-label="I-AUROC over \d data sets".*?</table>', section[1], re.S)
        assert table.count('scope="row"') == methods and len(re.findall(r'title="Sort by set\d"', table)) == datasets
        [pairs] = re.findall(r"<summary>(\d+) pairs?,", section[1]) or [0]
        assert int(pairs) == methods * (methods - 1) // 2
        assert ("Filtered: ranks" in section[1]) == (methods * datasets < 21)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_no_label_of_the_speed_picture_covers_anything(tmp_path: Path) -> None:
    """Eight methods at almost one place: each name can be read, and the yardstick takes no room from them."""
    store = many(tmp_path / "runs")
    file = tmp_path / "report.html"
    file.write_text(page(gather(store, store.all(dataset=["set0"]).records, images=0)), encoding="utf-8")
    shown = shown_by_a_browser(file, tmp_path / "profile")
    [picture] = re.findall(r'<svg[^>]*aria-label="Speed against.*?</svg>', shown, re.S)
    points = [tuple(map(float, found)) for found in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', picture)]
    labels = re.findall(r'class="label" x="([\d.-]+)" y="([\d.-]+)" text-anchor="(\w+)">(.*?)</text>', picture)
    assert len(points) == len(labels) == 9 and "raw_pixel →↓ 50.0 %" in picture
    assert max(x for x, _ in points[:-1]) - min(x for x, _ in points[:-1]) > 100, "the contenders make the scale"
    boxes = []
    for x, y, anchor, text in labels:
        wide = 6 * len(text)
        start = float(x) - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        boxes.append((start, float(y) - 9, start + wide, float(y)))
    for place, box in enumerate(boxes):
        assert not [point for point in points if box[0] < point[0] < box[2] and box[1] < point[1] < box[3]], labels[place]
        for other in boxes[:place]:
            assert box[2] <= other[0] or box[0] >= other[2] or box[3] <= other[1] or box[1] >= other[3], labels[place]
