"""`bench app`: anomaly maps in the browser, on this machine only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inpbench.harness.cli.options import Results, Set, results_folder
from inpbench.harness.cli.run_options import Download, Encoder, Weights
from inpbench.harness.errors import NothingError, UsageError

if TYPE_CHECKING:
    from inpbench.harness.records import Record
    from inpbench.harness.weights import WeightStore


def app(
    records: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECORD]...", help="Records whose kept models to offer (default: all of INP-Former)."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", metavar="FILE", help="An official model.pth to offer.")] = None,
    method: Annotated[str, typer.Option("--method", help="Method of the checkpoint.")] = "inp_former",
    preset: Annotated[str, typer.Option("--preset", help="Parameters of the checkpoint's method.")] = "paper",
    encoder: Encoder = None,
    set_: Set = None,
    normal: Annotated[
        Path | None, typer.Option("--normal", metavar="DIR", help="Normal images: the threshold begins at their 0.995 quantile.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port (default: the first free from 7860).")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    weights: Weights = None,
    download: Download = False,
    results: Results = None,
) -> None:
    """Show anomaly maps of your images in the browser; nothing leaves this machine.

    bench app

    bench app --checkpoint model.pth
    """
    from inpbench.harness.app_page import HOST, require_gradio, serve
    from inpbench.harness.app_sources import NEXT, checkpoint_source, record_sources
    from inpbench.harness.cli.where import find_device
    from inpbench.harness.image_files import find_images
    from inpbench.harness.params import split_settings
    from inpbench.harness.records import RecordStore
    from inpbench.harness.weights import WeightStore

    require_gradio()
    calm: list[Path] = []
    if normal is not None:
        root, files = find_images(normal)
        calm = [root / file for file in files]
    if checkpoint is None and (encoder or set_ or preset != "paper"):
        raise UsageError("--encoder, --preset and --set describe a checkpoint; none is given.", "Type: bench app --checkpoint FILE")
    store = RecordStore(results_folder(results))
    where = find_device(device)

    def weights_of(record: Record) -> WeightStore:
        recorded_random = "random" in record.identity["weights"].values()
        return WeightStore(weights or ("random" if recorded_random else None), download=download)

    sources = []
    if checkpoint is not None:
        changes = {**split_settings(set_ or []).get(method, {}), **({"encoder": encoder} if encoder else {})}
        sources.append(checkpoint_source(checkpoint, method, preset, changes, WeightStore(weights, download=download), where))
    if checkpoint is None or records:
        sources += record_sources(store, records or [], weights_of, where)
    if not sources:
        raise NothingError(f"No INP-Former record with a kept model in {store.folder}.", NEXT)
    typer.echo(f"reading {sources[0].about}", err=True)
    sources[0].method()  # a checkpoint of another architecture is an error now, not at the first click
    demo = serve(sources, _examples(), port, normal=calm, block=False)
    typer.echo(f"http://{HOST}:{demo.server_port}  (this machine only; Ctrl-C ends it)", err=True)
    demo.block_thread()


def _examples() -> list[Path]:
    """Four drawn images: two objects, one normal and one defective each."""
    from inpbench.harness import params
    from inpbench.harness.registry import DATASETS
    from inpbench.harness.roots import drawn

    info = DATASETS.get("synthetic")
    changes = {"size": "256", "train": "1", "normal": "1", "defective": "1", "categories": "weave,nut"}
    root = drawn(info, params.build(info.name, info.params, changes))
    return [
        next(iter(sorted((root / category / "test" / kind).glob("*.png"))))
        for category in ("weave", "nut")
        for kind in ("good", "scratch")
    ]
