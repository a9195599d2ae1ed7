"""The app: sources are read once, pictures keep their geometry and scale, errors are said; and the page in a real browser."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import bench
from methodkit import make_context
from PIL import Image

from inpbench.harness import app_page
from inpbench.harness.app_page import HOST, Page, serve
from inpbench.harness.app_sources import Source, checkpoint_source
from inpbench.harness.colours import make_scale
from inpbench.harness.errors import WeightsError
from inpbench.harness.overlays import CONTOUR, LEGEND_PX, overlay_picture
from inpbench.harness.weights import WeightStore
from inpbench.methods.inp_former import InpFormerParams
from inpbench.methods.inp_former.method import InpFormer

SMALL: dict[str, Any] = {"encoder": "builtin", "input_size": (128, 128), "crop_size": (112, 112), "inp_num": 3}
TEXTS = {"encoder": "builtin", "input_size": "128", "crop_size": "112", "inp_num": "3"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained INP-Former in the official format."""
    path = tmp_path_factory.mktemp("app") / "model.pth"
    torch.save(InpFormer(InpFormerParams(**SMALL), make_context(dtype=torch.float32)).official_state(), path)
    return path


def source_of(checkpoint: Path, **changes: str) -> Source:
    return checkpoint_source(checkpoint, "inp_former", "paper", {**TEXTS, **changes}, WeightStore(), torch.device("cpu"))


@pytest.fixture(scope="module")
def picture(checkpoint: Path) -> Path:
    """A wide image, 300 x 150."""
    rng = np.random.default_rng(0)
    pixels = np.full((150, 300, 3), 128) + rng.normal(0, 5, (150, 300, 1))
    pixels[60:90, 200:240] = (220, 30, 30)
    path = checkpoint.parent / "wide.png"
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


# --- pictures -------------------------------------------------------------------------------------------------------


def test_the_contour_lies_inside_the_region_and_the_scale_is_fixed() -> None:
    red = np.full((200, 200, 3), (255, 0, 0), np.uint8)
    scale = make_scale(0.0, 1.0)
    dark = np.asarray(overlay_picture(red, np.full((200, 200), 0.01, np.float32), scale, 0.01, None))
    assert dark[100, 100, 0] > 200 > 60 > dark[100, 100, 2], "red stays red, and a low map stays dark"
    step = np.zeros((200, 200), np.float32)
    step[50:100, 50:100] = 0.9
    marked = np.asarray(overlay_picture(red, step, scale, 0.9, 0.5, contour=0.5))
    assert tuple(marked[50, 70]) == tuple(marked[51, 70]) == CONTOUR and tuple(marked[99, 60]) == CONTOUR
    assert all(tuple(marked[row, 75]) != CONTOUR for row in (30, 49, 52, 75, 100))
    plain = np.asarray(overlay_picture(red, step, scale, 0.9, 0.5))
    assert not (plain[:200] == CONTOUR).all(axis=-1).any()


# --- sources --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_once(checkpoint: Path, picture: Path) -> None:
    source = source_of(checkpoint)
    assert source.modes() == ("zero_shot", "reconstruction") and source.marks == ("built-in encoder",)
    image = Image.open(picture)
    answers = [source.ask(image, mode) for mode in ("zero_shot", "reconstruction", "zero_shot")]
    assert source.reads == 1
    assert answers[0].score == answers[2].score != answers[1].score, "the two modes are different quantities"
    assert answers[0].amap.shape == (150, 300)


def test_checkpoint_of_another_architecture(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="prototype_token"):
        source_of(checkpoint, inp_num="6").method()
    with pytest.raises(WeightsError, match="no weight file"):
        source_of(checkpoint.with_name("absent.pth")).method()
    monkeypatch.setattr("inpbench.harness.app_page.find_spec", lambda name: object())
    settings = [argument for key, value in TEXTS.items() for argument in ("--set", f"inp_former.{key}={value}")]
    outcome = bench("app", "--checkpoint", checkpoint, *settings, "--set", "inp_former.inp_num=6")
    assert outcome.code == 3 and "prototype_token" in outcome.err


def test_command_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_page, "find_spec", lambda name: object())
    empty = bench("app", "--results", tmp_path)
    assert empty.code == 4 and "bench run --methods inp_former" in empty.err and "--checkpoint" in empty.err
    unknown = bench("app", "0123456789", "--results", tmp_path)
    assert unknown.code == 4 and "No record" in unknown.err
    lonely = bench("app", "--encoder", "builtin", "--results", tmp_path)
    assert lonely.code == 2 and "--checkpoint" in lonely.err
    monkeypatch.setattr(app_page, "find_spec", lambda name: None)
    missing = bench("app", "--results", tmp_path)
    assert missing.code == 3 and "inpbench[app]" in missing.err


def test_page_without_a_browser(checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    page = Page([source_of(checkpoint)], [picture], tmp_path)
    name = next(iter(page.sources))
    shown, drawn, score, message, files = page.run(str(picture), name, "zero_shot", 1.0, 0.5)
    assert drawn.size == (300, 150 + LEGEND_PX) and f"{score:.4f}" in message and "300 x 150" in message
    raw = np.load(files[0])
    assert raw.shape == (150, 300) and np.isnan(raw[0, 0])
    np.testing.assert_array_equal(np.asarray(Image.open(files[1])), raw)
    again = page.draw(shown, 1.0, 2.0)
    assert "not above the threshold" in again[2] and again[1] == score
    assert "above 0" in page.draw(shown, 0.0, 0.5)[2]
    (tmp_path / "broken.png").write_bytes(b"no image")
    nothing = page.run(str(tmp_path / "broken.png"), name, "zero_shot", 1.0, 0.5)
    assert nothing[1] is None and "broken.png: not an image" in nothing[3] and "Choose a PNG" in nothing[3]
    assert "Choose an image" in page.run(None, name, "zero_shot", 1.0, 0.5)[3]
    assert "Not comparable with published results: built-in encoder" in page.about(name).replace("&#45;", "-")


def test_the_threshold_begins_where_normal_images_end(
    checkpoint: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = [tmp_path / f"{level}.png" for level in (90, 120, 150)]
    for level, path in zip((90, 120, 150), calm, strict=True):
        Image.new("RGB", (80, 60), (level, level, level)).save(path)
    source = source_of(checkpoint)
    page = Page([source], [picture], tmp_path, calm)
    name = next(iter(page.sources))
    for mode in ("zero_shot", "reconstruction"):
        scores = [source.ask(Image.open(path).convert("RGB"), mode).score for path in calm]  # type: ignore[arg-type]
        high, threshold = page.choose_mode(name, mode)
        assert high == app_page.SCALES[mode] and max(scores) <= threshold <= max(scores) + app_page.STEP
    assert Page([source], [], tmp_path).threshold(name, "zero_shot") == app_page.THRESHOLD
    (tmp_path / "bad").mkdir()
    monkeypatch.setattr(app_page, "find_spec", lambda name: object())
    nothing = bench("app", "--checkpoint", checkpoint, "--normal", tmp_path / "bad")
    assert nothing.code == 3 and "holds no image file" in nothing.err


# --- the page in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio", reason="pip install 'inpbench[app]'")
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1300,1100"):
        options.add_argument(argument)
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


def wait(condition: Any, what: str, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.mark.slow
def test_in_a_browser(browser: Any, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    source = source_of(checkpoint)
    demo = serve([source], [picture], None, block=False)
    try:
        browser.get(f"http://{HOST}:{demo.server_port}")

        def find(css: str) -> list[Any]:
            return browser.find_elements("css selector", css)

        def said() -> str:
            return str(find("#message textarea")[0].get_attribute("value"))

        def upload(path: Path) -> None:
            for cross in find("#upload button[aria-label='Clear']"):
                cross.click()
            wait(lambda: find("#upload input[type=file]"), "the upload appears")
            find("#upload input[type=file]")[0].send_keys(str(path))
            wait(lambda: path.stem in find("#upload")[0].text, "the file is up")
            find("#go")[0].click()

        wait(lambda: find("#upload input[type=file]"), "the page appears")
        assert "built-in encoder" in find("#about")[0].text
        upload(picture)
        wait(lambda: "wide.png, 300 x 150 pixels" in said(), "the map is shown")
        wait(lambda: find("#picture img"), "the picture is drawn")
        image = find("#picture img")[0]
        wait(lambda: image.get_attribute("naturalHeight") == str(150 + LEGEND_PX), "the picture keeps the aspect ratio")
        assert all(
            name in find("#files")[0].text.replace("\n", "") for name in ("wide_map.npy", "wide_map.tiff", "wide_overlay.png")
        )
        first = said()
        find("#mode input[value=reconstruction]")[0].click()
        wait(lambda: said() not in ("", first), "another mode, another map")
        assert "scale from 0 to 0.5" in said()
        (tmp_path / "broken.png").write_bytes(b"no image")
        upload(tmp_path / "broken.png")
        wait(lambda: "not an image of a known format" in said(), "an unreadable upload is said")
        assert source.reads == 1, "clicks do not read the weights again"
    finally:
        demo.close()
