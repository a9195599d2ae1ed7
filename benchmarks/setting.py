"""What the speed scripts share: their options, synthetic photographs, the measured matrix rate, and the table's head and file."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inpbench.harness import params as parameters
from inpbench.harness.api import Context, Preprocess, Sample
from inpbench.harness.cost import Operations
from inpbench.harness.loading import Normaliser
from inpbench.harness.precision import keep_float32
from inpbench.harness.registry import METHODS, resolve
from inpbench.harness.weights import WeightStore

SIDE = 1024  # of the photographs, as MVTec AD's
LOADERS = 4  # threads that decode for the reference, as the originals' workers


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    device: torch.device
    preset: str
    encoder: str
    weights: str
    size: int
    batch: int
    steps: int
    cache: str
    compile: bool
    methods: tuple[str, ...]
    engines: tuple[Literal["reference", "fast"], ...]
    rounds: int
    clock: str
    out: Path | None

    def now(self) -> float:
        """Seconds by the wall's clock, or those that this process has had of the processors (a machine that others use too)."""
        return time.process_time() if self.clock == "processor" else time.perf_counter()

    @property
    def kinds(self) -> tuple[torch.dtype, ...]:
        """Number formats of the products: the reference's, and the fast engine's where it is another."""
        return (torch.float32, torch.bfloat16) if self.device.type == "cuda" else (torch.float32,)


class NoSnapshots:
    """Snapshots that are never due."""

    def due(self) -> bool:
        """Never."""
        return False

    def save(self, state: object) -> None:
        """Not called."""
        raise AssertionError("never due")

    def load(self) -> None:
        """Nothing."""
        return


def add_options(parser: argparse.ArgumentParser, name: str, steps_cpu: int, steps_cuda: int) -> Setting:
    """Parse the command line: a GPU measures the paper's setting, a CPU the preset that is made for it, `demo`.

    paper: ViT-B/14 with registers at 392, batch 16. demo: the built-in encoder at 196, batch 8, half the decoder.
    """
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", help="of the methods: paper (default on a GPU) or demo (default on a CPU)")
    parser.add_argument("--encoder", help="a name of `bench list encoders`")
    parser.add_argument("--weights", default="random", help="random, or a file or folder of weights: the speed is the same")
    parser.add_argument("--size", type=int, help="pixels of the crop")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--cache", default="auto", choices=("auto", "device", "host"), help="tier of the feature cache")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--methods", default="inp_former,dinomaly")
    parser.add_argument("--engines", default="reference,fast", help="sides to measure: reference,fast or one of them")
    parser.add_argument("--rounds", type=int, help="rounds in which the sides take turns, the best counts; 1 on a GPU, 3 on a CPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "processor"), help="processor: seconds of processor time, for a shared CPU"
    )
    parser.add_argument("--out", type=Path, help=f"also write the table here, e.g. results/speed/{name}.md")
    args = parser.parse_args()
    engines = tuple(args.engines.split(","))
    if not engines or set(engines) - {"reference", "fast"}:
        parser.error(f"--engines: expected reference, fast or both, found {args.engines}")
    torch.set_num_threads(args.threads)
    keep_float32()
    cuda = args.device.startswith("cuda")
    preset = args.preset or ("paper" if cuda else "demo")
    demo = preset == "demo"
    return Setting(
        device=torch.device(args.device),
        preset=preset,
        encoder=args.encoder or ("builtin" if demo else "dinov2reg_vit_base_14"),
        weights=args.weights,
        size=args.size or (196 if demo else 392),
        batch=args.batch or (8 if demo else 16),
        steps=args.steps or (steps_cuda if cuda else steps_cpu),
        cache=args.cache,
        compile=not args.no_compile,
        methods=tuple(args.methods.split(",")),
        engines=engines,  # type: ignore[arg-type]
        rounds=args.rounds or (1 if cuda else 3),
        clock=args.clock,
        out=args.out,
    )


def build(name: str, engine: Any, setting: Setting) -> Any:
    """The method `name` on this setting's encoder, size and batch."""
    info = METHODS.get(name)
    size = str(setting.size)
    changes = {"encoder": setting.encoder, "input_size": size, "crop_size": size, "batch_size": str(setting.batch)}
    context = Context(
        device=setting.device,
        dtype=torch.float32,
        seed=1,
        setting="multi_class",
        weights=WeightStore(setting.weights),
        snapshots=NoSnapshots(),
        progress=lambda done, total, text="", **numbers: None,
        engine=engine,
        cache=setting.cache,  # type: ignore[arg-type]
        compile=setting.compile,
    )
    return resolve(info.target)(parameters.build(name, info.params, info.presets[setting.preset], changes), context)


class Photographs:
    """Noise photographs as JPEG in memory; implements `harness.api.TrainingSet`."""

    categories: Sequence[str] = ("synthetic",)

    def __init__(self, setting: Setting, count: int, decode_each_time: bool) -> None:
        self.size, self.count = setting.size, count
        self.samples = [Sample(f"{index}.jpg", "synthetic", "train", 0) for index in range(count)]
        side = (setting.size, setting.size)
        self._normalise = Normaliser(Preprocess(resize=side, crop=side), setting.device, torch.float32)
        self._pool = ThreadPoolExecutor(LOADERS)
        self.files = list(self._pool.map(self._draw, range(count)))
        self._coming: dict[int, Future[np.ndarray]] = {}
        self._kept = None if decode_each_time else np.stack(list(self._pool.map(self._decode, range(count))))

    def _draw(self, seed: int) -> bytes:
        coarse = np.random.RandomState(seed).randint(0, 256, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
        return buffer.getvalue()

    def _decode(self, index: int) -> np.ndarray:
        image = Image.open(io.BytesIO(self.files[index])).convert("RGB")
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)

    def __len__(self) -> int:
        return self.count

    def expect(self, indices: Sequence[int]) -> None:
        """Begin to decode a coming batch."""
        if self._kept is None:
            for index in indices:
                if index not in self._coming:
                    self._coming[index] = self._pool.submit(self._decode, index)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """(B, 3, H, W), normalised, on the device."""
        if self._kept is not None:
            return self._normalise(self._kept[list(indices)])
        self.expect(indices)
        return self._normalise(np.stack([self._coming.pop(index).result() for index in indices]))

    def masks(self, indices: Sequence[int]) -> Tensor:
        """(B, H, W) all False."""
        return torch.zeros(len(indices), self.size, self.size, dtype=torch.bool)


# --- measuring ------------------------------------------------------------------------------------------------------


def sync(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gb(device: torch.device) -> float:
    """Highest GPU memory since it was last reset, in GB of 10^9 bytes; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def matrix_rates(setting: Setting) -> dict[torch.dtype, float]:
    """Operations a second of a large matrix product in each number format in use, the best of several.

    float32 is float32: TF32 is off for both engines, as in every run of the bench (`harness.precision`).
    """
    return {kind: _matrix_rate(setting, kind) for kind in setting.kinds}


def _matrix_rate(setting: Setting, kind: torch.dtype) -> float:
    side = 8192 if setting.device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=setting.device).to(kind) for _ in range(2))
    a @ b
    times = []
    for _ in range(16):
        sync(setting.device)
        start = setting.now()
        a @ b
        sync(setting.device)
        times.append(setting.now() - start)
    return float(2 * side**3 / min(times))


def operations(call: Callable[[], object], setting: Setting) -> float:
    """Operations of one call by torch's formulas; NaN where compiled code cannot be counted."""
    eager: Any = contextlib.nullcontext()
    if setting.device.type == "cuda" and setting.compile:
        if not hasattr(torch.compiler, "set_stance"):  # torch < 2.6
            return math.nan
        eager = torch.compiler.set_stance("force_eager")
    with eager, Operations() as counted:
        call()
    return float(counted.total)


def rates_note(peak: Mapping[torch.dtype, float]) -> str:
    """The measured matrix rates in a line."""
    rates = ", ".join(f"{str(kind).removeprefix('torch.')} {rate / 1e12:.3g} TFLOP/s" for kind, rate in peak.items())
    return f"* Measured matrix rate: {rates}."


def emit(setting: Setting, title: str, table: Sequence[str], notes: Sequence[str], show: bool = True) -> None:
    """Print the table (unless `show` is False) with where it was measured, and write it where `--out` says."""
    cuda = setting.device.type == "cuda"
    machine = torch.cuda.get_device_name(setting.device) if cuda else platform.processor() or platform.machine()
    threads = "" if cuda else f", {torch.get_num_threads()} threads"
    head = (
        f"{machine}{threads}, torch {torch.__version__}; preset {setting.preset}, {setting.encoder} at "
        f"{setting.size} x {setting.size}, batch {setting.batch}, {setting.steps} steps, weights {setting.weights}, "
        f"synthetic pixels; seconds by the {setting.clock} clock."
    )
    text = "\n".join([f"# {title}", "", head, "", *table, "", *notes, ""])
    if show:
        print(text, flush=True)
    if setting.out is not None:
        setting.out.parent.mkdir(parents=True, exist_ok=True)
        setting.out.write_text(text, encoding="utf-8")
