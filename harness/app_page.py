"""The page of `bench app`: an image in, its anomaly map on it, with a scale, a score and a threshold. Served to this machine only.

The scale is set by hand and stays as it is from image to image, so that a normal image stays dark. The threshold and the scale
redraw the picture without asking the model again. With normal images at hand the threshold begins at the 0.995 quantile of their
scores, for each source and kind of map. Whatever goes wrong with an upload is said in the page.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inpbench.harness.errors import BenchError, PrerequisiteError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from inpbench.harness.app_sources import Source

HOST = "127.0.0.1"
TITLE = "inpbench: zero-shot anomaly maps"
MODES = {
    "zero_shot": "zero-shot: distance of each patch to the nearest prototype of this image",
    "reconstruction": "reconstruction: what a trained model is tested with",
}
CHECKED = "#mode input:checked { background-color: #2563eb !important; }"  # gradio paints a focused choice as if it were not chosen
SCALES = {"zero_shot": 1.0, "reconstruction": 0.5}  # default top of the scale; 1 - cos lies in [0, 2]
THRESHOLD = 0.5  # where the slider stands when there are no normal images to choose it from
STEP = 0.001  # of the slider
QUANTILE = 0.995  # of the scores of normal images, where there are
ADVICE = (
    "The two kinds of map are different quantities. **Zero-shot** needs no training on your object, and marks what is unlike the "
    "rest of the image: holes and edges of a part light up too. To judge a **trained** model on its own object, choose "
    "**reconstruction**. The grey rim lies outside the model's centre crop and was not looked at."
)


class Shown(NamedTuple):
    """What the page remembers of the last image."""

    image: Image.Image
    amap: NDArray[np.float32]
    score: float
    name: str
    mode: str


def require_gradio() -> None:
    """Raise `PrerequisiteError` where the extra is not installed."""
    if find_spec("gradio") is None:
        raise PrerequisiteError("The app needs gradio, not installed here.", "Type: pip install 'inpbench[app]'")


def serve(
    sources: Sequence[Source], examples: Sequence[Path], port: int | None, *, normal: Sequence[Path] = (), block: bool = True
) -> Any:
    """Build the page and serve it on localhost; returns the gradio app. Raises `UsageError` when the port is taken.

    normal: images without a defect, from which the threshold begins.
    """
    require_gradio()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing leaves this machine
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import gradio

    folder = tempfile.TemporaryDirectory(prefix="inpbench-app-")
    page = Page(sources, examples, Path(folder.name), normal)
    demo = page.build()
    demo.inpbench_folder = folder  # lives as long as the page
    try:
        demo.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            css=CHECKED,
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            max_file_size="200mb",
            footer_links=[],
        )
    except OSError as error:
        raise UsageError(f"Port {port} of this machine is taken.", "Type: bench app --port 7861") from error
    if block:
        demo.block_thread()
    return demo


class Page:
    """The page's parts and what they do."""

    def __init__(self, sources: Sequence[Source], examples: Sequence[Path], folder: Path, normal: Sequence[Path] = ()) -> None:
        self.sources = {source.name: source for source in sources}
        self.examples = {f"{path.parent.parent.parent.name} {path.parent.name}": path for path in examples}
        self.folder, self.normal = folder, normal
        self._thresholds: dict[tuple[str, str], float] = {}

    def threshold(self, name: str, mode: str) -> float:
        """Where the threshold of a source and mode begins; the normal images are asked once. Raises what reading one raises."""
        from inpbench.harness.images import read_image
        from inpbench.harness.thresholds import quantile_threshold

        if not self.normal:
            return THRESHOLD
        if (name, mode) not in self._thresholds:
            scores = [self.sources[name].ask(read_image(path, path.name), _mode(mode)).score for path in self.normal]
            self._thresholds[name, mode] = math.ceil(quantile_threshold(scores, QUANTILE) / STEP) * STEP  # the slider's next stop
        return self._thresholds[name, mode]

    # --- events -------------------------------------------------------------------------------------------------------

    def about(self, name: str) -> str:
        """What the chosen source is, in markdown."""
        source = self.sources[name]
        text = f"**Source:** {_plain(source.about)}"
        if source.marks:
            marks = "; ".join(source.marks)
            text += f"\n\n**Not comparable with published results: {_plain(marks)}.**"
        return text

    def run(self, file: str | None, name: str, mode: str, high: float, threshold: float) -> tuple[Any, ...]:
        """Ask the model; gives (state, picture, score, message, files)."""
        from inpbench.harness.images import read_image

        if not file:
            return None, None, None, "Choose an image or an example first.", None
        shown_name = Path(file).name
        try:
            image = read_image(Path(file), shown_name)
            answer = self.sources[name].ask(image, _mode(mode))
        except BenchError as error:
            hint = (
                "Choose a PNG, JPEG, BMP, TIFF or WebP file."
                if "image" in error.message or "bytes" in error.message
                else error.hint
            )
            return None, None, None, f"{error.message}\n{hint}", None
        shown = Shown(image, answer.amap, answer.score, shown_name, _mode(mode))
        return (shown, *self.draw(shown, high, threshold))

    def draw(self, shown: Shown | None, high: float, threshold: float) -> tuple[Any, ...]:
        """Draw again, without the model: (picture, score, message, files)."""
        import numpy as np

        from inpbench.harness.colours import make_scale
        from inpbench.harness.overlays import overlay_picture
        from inpbench.harness.predictions import map_bytes

        if shown is None:
            return None, None, "Choose an image or an example first.", None
        if not high or high <= 0:
            return None, shown.score, "The top of the scale must be above 0.", None
        pixels = np.asarray(shown.image)
        picture = overlay_picture(pixels, shown.amap, make_scale(0.0, high), shown.score, threshold, contour=threshold)
        stem = Path(shown.name).stem
        place = Path(tempfile.mkdtemp(dir=self.folder))
        files = [place / f"{stem}_map.npy", place / f"{stem}_map.tiff", place / f"{stem}_overlay.png"]
        files[0].write_bytes(map_bytes(shown.amap, "npy"))
        files[1].write_bytes(map_bytes(shown.amap, "tiff"))
        picture.save(files[2])
        seen = shown.amap[~np.isnan(shown.amap)]
        verdict = "above" if shown.score > threshold else "not above"
        message = (
            f"{shown.name}, {shown.image.width} x {shown.image.height}"
            f" pixels, {shown.mode.replace('_', '-')} map. Score {shown.score:.4f}, {verdict} the threshold "
            f"{threshold:.3f}. {100 * float((seen >= threshold).mean()):.1f} % of the pixels are above it. "
            f"Map from {seen.min():.4f} to {seen.max():.4f}; scale from 0 to {high:g}."
        )
        return picture, shown.score, message, [str(file) for file in files]

    def choose_source(self, name: str) -> tuple[Any, ...]:
        """Another source: what it is, and the modes that it has."""
        import gradio

        try:
            modes = self.sources[name].modes()
        except BenchError as error:
            return f"**{_plain(error.message)}** {_plain(error.hint)}", gradio.update(), gradio.update(), gradio.update()
        choices = [(MODES[mode], mode) for mode in modes]
        return self.about(name), gradio.update(choices=choices, value=modes[0]), *self.choose_mode(name, modes[0])

    def choose_example(self, name: str) -> str | None:
        """The file of an example."""
        return str(self.examples[name]) if name else None

    def choose_mode(self, name: str, mode: str) -> tuple[float, float]:
        """The top of the scale and the threshold that go with a mode."""
        return SCALES[_mode(mode)], self.threshold(name, _mode(mode))

    # --- parts --------------------------------------------------------------------------------------------------------

    def build(self) -> Any:
        """The gradio Blocks."""
        import gradio as gr

        first = next(iter(self.sources))
        modes = self.sources[first].modes()
        begin = self.threshold(first, modes[0])
        label = "threshold (contour and verdict)"
        if self.normal:
            label += f"; begins at the {QUANTILE} quantile of {len(self.normal)} normal images"
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
            state = gr.State(None)
            gr.Markdown(f"# {TITLE}")
            with gr.Row():
                with gr.Column(scale=1):
                    file = gr.File(label="image", type="filepath", elem_id="upload")
                    example = gr.Dropdown(["", *self.examples], value="", label="or a drawn example", elem_id="example")
                    source = gr.Dropdown(list(self.sources), value=first, label="method and source weights", elem_id="source")
                    about = gr.Markdown(self.about(first), elem_id="about")
                    mode = gr.Radio(
                        [(MODES[one], one) for one in modes], value=modes[0], label="what the map shows", elem_id="mode"
                    )
                    button = gr.Button("Show the map", variant="primary", elem_id="go")
                with gr.Column(scale=2):
                    picture = gr.Image(
                        show_label=False, format="png", interactive=False, elem_id="picture", buttons=["download", "fullscreen"]
                    )  # gradio's own third button would upload the picture
                    message = gr.Textbox(label="result", lines=2, interactive=False, elem_id="message")
                    with gr.Row():
                        score = gr.Number(label="image score", precision=4, interactive=False, elem_id="score")
                        high = gr.Number(SCALES[modes[0]], label="top of the colour scale", minimum=1e-6, elem_id="high")
                    threshold = gr.Slider(0, 2, value=begin, step=STEP, label=label, elem_id="threshold")
                    files = gr.File(label="download: raw map (npy, tiff) and overlay", interactive=False, elem_id="files")
            gr.Markdown(ADVICE)
            shown = [picture, score, message, files]
            asked = [file, source, mode, high, threshold]
            button.click(self.run, asked, [state, *shown])
            # A picture of the old choice under the new one would mislead: every change asks again.
            example.input(self.choose_example, example, file).then(self.run, asked, [state, *shown])
            source.input(self.choose_source, source, [about, mode, high, threshold]).then(self.run, asked, [state, *shown])
            mode.input(self.choose_mode, [source, mode], [high, threshold]).then(self.run, asked, [state, *shown])
            threshold.release(self.draw, [state, high, threshold], shown)
            high.submit(self.draw, [state, high, threshold], shown)
        return demo


def _mode(text: str) -> Any:
    return text if text in MODES else "reconstruction"


def _plain(text: str) -> str:
    """Text that markdown and HTML leave alone."""
    return text.translate({ord(sign): f"&#{ord(sign)};" for sign in "\\`*_[]<>&|#"})
