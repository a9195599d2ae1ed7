"""Graphs: what a file computes is what the bench computes, for any batch; a file that differs is not written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY, bench
from interpreter import PYTHON
from methodkit import make_context
from PIL import Image

from inpbench.harness import export_files, export_graph
from inpbench.harness.api import Prediction, Preprocess
from inpbench.harness.errors import ExportError, PrerequisiteError, UsageError
from inpbench.harness.export_files import compare, require, write_graph
from inpbench.harness.export_graph import ScoredMethod
from inpbench.harness.images import image_at_crop
from inpbench.harness.scoring import image_scores, smooth_maps
from inpbench.methods.dinomaly import DinomalyParams
from inpbench.methods.dinomaly.method import Dinomaly
from inpbench.methods.inp_former import InpFormerParams
from inpbench.methods.inp_former.method import InpFormer

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL: dict[str, Any] = {
    "encoder": "builtin",
    "input_size": (64, 64),
    "crop_size": (56, 56),
    "target_layers": (2, 7),
    "encoder_groups": ((0,), (1,)),
    "decoder_depth": 2,
    "decoder_groups": ((0,), (1,)),
}


@pytest.fixture(scope="module")
def inp_former() -> InpFormer:
    return InpFormer(InpFormerParams(**SMALL, inp_num=3), make_context(dtype=torch.float32))


class Blobs:
    """The smallest method that can be exported, with a score of its own."""

    def predict(self, images: torch.Tensor) -> Prediction:
        amap = images.abs().mean(1)
        return Prediction(amap, amap.flatten(1).amax(1))


PLAIN = Preprocess(resize=(32, 32), crop=(32, 32))


def reference(method: Any, images: torch.Tensor, zero_shot: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """What the bench measures for normalised images."""
    amap = method.zero_shot_map(images) if zero_shot else method.predict(images).amap
    smoothed = smooth_maps(amap, (int(images.shape[-2]), int(images.shape[-1])))
    return smoothed, image_scores(smoothed)


@pytest.mark.parametrize("mode", ["reconstruction", "zero_shot"])
def test_graph_is_the_bench(inp_former: InpFormer, mode: Any) -> None:
    preprocess = inp_former.params.preprocess
    unit = ScoredMethod(inp_former, preprocess, mode=mode)
    normalised = ScoredMethod(inp_former, preprocess, mode=mode, pixels="normalised")
    images = unit.example(3)
    assert images.min() >= 0 and images.max() <= 1
    shifted = (images - torch.tensor(preprocess.mean)[:, None, None]) / torch.tensor(preprocess.std)[:, None, None]
    expected = reference(inp_former, shifted, mode == "zero_shot")
    for found in (unit(images), normalised(shifted)):
        for value, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(value, wanted)


def test_own_score_is_kept() -> None:
    graph = ScoredMethod(Blobs(), PLAIN, pixels="normalised")  # type: ignore[arg-type]
    images = graph.example(2)
    torch.testing.assert_close(graph(images)[1], images.abs().mean(1).flatten(1).amax(1))
    with pytest.raises(UsageError, match="no zero-shot map"):
        ScoredMethod(Blobs(), PLAIN, mode="zero_shot")  # type: ignore[arg-type]


@pytest.mark.parametrize("format_", ["torchscript", "torch_export"])
def test_torch_formats(inp_former: InpFormer, format_: Any, tmp_path: Path) -> None:
    graph = ScoredMethod(inp_former, inp_former.params.preprocess)
    if format_ == "torch_export":
        graph = ScoredMethod(Blobs(), PLAIN)  # type: ignore[arg-type]  # its exporter is slow; ONNX goes the same way with the network
    differences = write_graph(graph, tmp_path / "m", format_, {"record": "abc"})
    assert max(differences) < 1e-5
    load = torch.jit.load if format_ == "torchscript" else lambda path: torch.export.load(path).module()
    extra = {"metadata.json": ""}
    if format_ == "torchscript":
        torch.jit.load(str(tmp_path / "m"), _extra_files=extra)
        assert json.loads(extra["metadata.json"]) == {"record": "abc"}
    (tmp_path / "m").rename(tmp_path / "m.pt2")
    images = graph.example(5)
    for value, wanted in zip(load(str(tmp_path / "m.pt2"))(images), graph(images), strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-5)


def test_a_file_that_differs_is_not_written(inp_former: InpFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ScoredMethod(inp_former, inp_former.params.preprocess)

    def wrong(graph: ScoredMethod, file: Path, metadata: object) -> Any:
        file.write_bytes(b"wrong")
        return lambda images: (graph(images)[0] + 1.9e-4, graph(images)[1])

    monkeypatch.setattr(export_files, "_torchscript", wrong)
    with pytest.raises(ExportError, match=r"differs from torch by 1"):
        write_graph(graph, tmp_path / "m", "torchscript", {})
    assert not list(tmp_path.iterdir())
    for bad in (lambda i: (graph(i)[0] * float("nan"), graph(i)[1]), lambda i: (graph(i)[0][:1], graph(i)[1])):
        with pytest.raises(ExportError):
            compare(graph, bad)


def test_untraceable_method_is_an_error(tmp_path: Path) -> None:
    class Refuses(Blobs):
        def predict(self, images: torch.Tensor) -> Prediction:
            return Prediction(images.mean(1) * float(images.sum().item() > 0) if images.mean().item() > 0 else images.mean(1))

    graph = ScoredMethod(Refuses(), PLAIN)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="cannot be written as torch_export"):
        write_graph(graph, tmp_path / "m", "torch_export", {})
    assert not list(tmp_path.iterdir())


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export_files, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(PrerequisiteError, match="onnxruntime") as caught:
        require("onnx")
    assert "inpbench[export]" in caught.value.hint
    require("torchscript")
    outcome = bench("export", "0123456789", "--format", "onnx", "--out", tmp_path / "m", "--results", tmp_path)
    assert outcome.code == 3 and "pip install" in outcome.err


def test_old_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_files, "find_spec", lambda name: object())
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    with pytest.raises(PrerequisiteError, match=r"torch 2\.6 or newer, found 2\.4\.1"):
        require("onnx")


# --- ONNX -----------------------------------------------------------------------------------------------------------


def needs_onnx() -> None:
    for name in export_files.ONNX_PACKAGES:
        pytest.importorskip(name, reason="pip install 'inpbench[export]'")


@pytest.mark.slow
def test_onnx_of_a_record_without_torch(tmp_path: Path) -> None:
    """`bench export`, then the example in a process that cannot import torch: the same scores and maps."""
    needs_onnx()
    small = {"input_size": 64, "crop_size": 56, "steps": 2, "inp_num": 3, "target_layers": "2,7", "decoder_depth": 2}
    small |= {"encoder_groups": "0;1", "decoder_groups": "0;1"}
    settings = [argument for key, value in small.items() for argument in ("--set", f"inp_former.{key}={value}")]
    run = ["run", "-m", "inp_former", "--encoder", "builtin", "--preset", "smoke", *settings, *TINY]
    assert bench(*run, "--results", tmp_path).code == 0
    id12 = next(tmp_path.rglob("inp_former/*.json")).stem
    model = tmp_path / "model.onnx"
    outcome = bench("export", id12, "--format", "onnx", "--out", model, "--results", tmp_path)
    assert outcome.code == 0 and "against torch on 4 images" in outcome.err, outcome.err

    rng = np.random.default_rng(0)
    pictures = []
    for index, size in enumerate([(90, 120), (64, 64), (200, 70)]):
        pictures.append(tmp_path / f"picture{index}.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(pictures[-1])
    blocked = "import sys, runpy; sys.modules['torch'] = None; sys.modules['inpbench'] = None; sys.argv = sys.argv[1:]; "
    code = blocked + "runpy.run_path(sys.argv[0], run_name='__main__')"
    script = REPOSITORY / "examples" / "onnx_inference.py"
    done = subprocess.run(
        [*PYTHON, "-c", code, script, model, *pictures, "--out", tmp_path / "maps", "--batch", "2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]

    import onnxruntime

    how = json.loads(onnxruntime.InferenceSession(str(model)).get_modelmeta().custom_metadata_map["preprocessing"])
    assert how["pixels"] == "unit" and how["crop"] == [56, 56]
    preprocess = Preprocess(resize=(64, 64), crop=(56, 56))
    from inpbench.harness.cli.export import _method
    from inpbench.harness.models import load_model
    from inpbench.harness.records import RecordStore
    from inpbench.harness.weights import WeightStore

    store = RecordStore(tmp_path)
    record = store.find(id12)
    assert record is not None
    graph = ScoredMethod(_method(record, WeightStore(), load_model(store, record, None)[1]), preprocess)
    for index, picture in enumerate(pictures):
        pixels = image_at_crop(Image.open(picture), preprocess)
        amap, score = graph(torch.from_numpy(pixels)[None].float() / 255)
        assert rows[index]["score"] == pytest.approx(float(score), abs=1e-4)
        found = np.load(tmp_path / "maps" / f"{index:04d}_{picture.stem}.npy")
        np.testing.assert_allclose(found, amap[0].numpy(), atol=1e-4)


@pytest.mark.slow
def test_onnx_of_dinomaly_on_a_transformer(tmp_path: Path) -> None:
    needs_onnx()
    params = DinomalyParams(**{**SMALL, "encoder": "dinov2reg_vit_small_14", "target_layers": (0, 1)}, dropout=0.3)
    graph = ScoredMethod(Dinomaly(params, make_context(dtype=torch.float32)), params.preprocess)
    assert max(write_graph(graph, tmp_path / "m.onnx", "onnx", {})) < 1e-4


def test_graph_options_need_a_graph(tmp_path: Path) -> None:
    assert export_graph.preprocessing(PLAIN, "unit")["resize"] == [32, 32]
    outcome = bench("export", "0123456789", "--scoring", "zero_shot", "--out", tmp_path / "m", "--results", tmp_path)
    assert outcome.code == 2 and "--format onnx" in outcome.err
