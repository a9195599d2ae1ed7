"""The options of `bench run`, one type an option; the verb's signature lists them with their defaults."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inpbench.harness.cli.options import Verb, split_ints, split_names
from inpbench.harness.errors import UsageError
from inpbench.harness.user_paths import expanded

if TYPE_CHECKING:
    from inpbench.harness.scale.shares import Wish


class MaskRule(str, Enum):
    """How a resized mask becomes binary (spec: which rule a published number used changes its pixel metrics)."""

    gt05 = "gt05"
    gt0 = "gt0"
    crr = "crr"


class Variant(str, Enum):
    """Definitions of the metrics."""

    exact = "exact"
    paper = "paper"
    dinomaly = "dinomaly"
    crr = "crr"


class Engine(str, Enum):
    """How a method trains: the same mathematics, with or without caches."""

    fast = "fast"
    reference = "reference"


class Phase(str, Enum):
    """Which half of the work is done."""

    both = "both"
    train = "train"
    test = "test"


class DisplayMode(str, Enum):
    """What is shown while running."""

    auto = "auto"
    full = "full"
    plain = "plain"
    none = "none"


Methods = Annotated[
    str, typer.Option("--methods", "-m", metavar="NAME,NAME", help="Methods, separated by commas (bench list methods).")
]
Datasets = Annotated[
    str, typer.Option("--dataset", "-d", metavar="NAME,NAME", help="Data sets, separated by commas (bench list datasets).")
]
SettingName = Annotated[str, typer.Option("--setting", "-s", metavar="NAME", help="What is trained on what (bench list settings).")]
Seeds = Annotated[
    str, typer.Option("--seeds", metavar="N,N", help="Seeds, separated by commas; the table shows mean and deviation.")
]
Shots = Annotated[str, typer.Option("--shots", metavar="K,K", help="Numbers of support images, for settings that have them.")]
DataRoots = Annotated[
    list[str] | None,
    typer.Option(
        "--data-root",
        metavar="DIR|NAME=DIR",
        help="Root of the data set, or NAME=DIR for each of several (default: $INPBENCH_DATA/NAME).",
        show_default=False,
    ),
]
Source = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="Data set that zero_shot and generalist train on (bench list datasets)."),
]
SourceRoot = Annotated[
    Path | None, typer.Option("--source-root", metavar="DIR", help="Root of --source (default: $INPBENCH_DATA/NAME).")
]
Preset = Annotated[str, typer.Option("--preset", metavar="NAME", help="Named parameter values: paper, fast, smoke, demo.")]
Encoder = Annotated[
    str | None,
    typer.Option("--encoder", metavar="NAME", help="Encoder of the methods that have one; `builtin` needs no download."),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", metavar="FILE|DIR|random", help="Encoder weights (default: $INPBENCH_WEIGHTS).", show_default=False),
]
Download = Annotated[bool, typer.Option("--download", help="Allow missing encoder weights to be fetched by timm.")]
Categories = Annotated[str, typer.Option("--categories", metavar="NAME,NAME", help="Only these categories, separated by commas.")]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="At most this many images of each category, split and defect; marked."),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", metavar="FILE|DIR", help="An official model.pth to test instead of training; a folder for several."
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts", metavar="DIR", help="<category>.pt files of normal images, as InCTRL's authors publish them, not drawn ones."
    ),
]
PhaseName = Annotated[
    Phase,
    typer.Option("--phase", help="train: train and keep the model, test later; test: a kept model or --checkpoint, never trains."),
]
VariantName = Annotated[Variant, typer.Option("--variant", help="Metric definitions (bench list metrics).")]
MaskRuleName = Annotated[MaskRule, typer.Option("--mask-rule", help="How resized masks become binary.")]
EngineName = Annotated[Engine, typer.Option("--engine", help="reference trains the originals' way, without caches.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
EvalBatch = Annotated[
    int,
    typer.Option("--eval-batch", min=1, max=65536, help="Images tested at once; changes no number (but inctrl's official one)."),
]
Strict = Annotated[
    bool,
    typer.Option("--strict/--lenient", help="Stop at the first bad file, or skip it and say so in the record."),
]
PixelCache = Annotated[bool, typer.Option("--pixel-cache/--no-pixel-cache", help="Keep decoded pixels on disk.")]
KeepModels = Annotated[
    bool, typer.Option("--keep-models/--no-keep-models", help="Keep what was learned beside the record (bench export).")
]
Intervals = Annotated[
    bool, typer.Option("--intervals/--no-intervals", help="Draw the bootstrap behind intervals and comparisons (bench compare).")
]
SaveMaps = Annotated[
    bool, typer.Option("--save-maps", help="Keep every map (npy) and a sheet of pictures a category, beside the record.")
]
SOME_MAPS = "best,worst,4"
MapsOfText = Annotated[
    str, typer.Option("--maps-of", metavar="best,worst,N", help="Images on a sheet: clearest, most mistaken, N others.")
]
Force = Annotated[bool, typer.Option("--force", help="Run finished cells again.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Display = Annotated[DisplayMode, typer.Option("--display", help="What is shown while running.")]
SnapshotEvery = Annotated[
    float, typer.Option("--snapshot-every", min=0.0, max=1e9, metavar="SECONDS", help="Time between two training snapshots.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="auto|local|HOST:PORT",
        help="Run each cell as a task of a Ray cluster; auto: the running one, else this machine (docs/scale.md).",
    ),
]
RayGpus = Annotated[
    float | None, typer.Option("--ray-gpus", metavar="SHARE", help="GPU of a cell, 0 to 1 (default: 1, where there are GPUs).")
]
RayCpus = Annotated[
    int | None,
    typer.Option(
        "--ray-cpus", metavar="N", min=1, help="Processors of a cell (default: its GPU's part of a node, or a whole node)."
    ),
]
RayRetries = Annotated[
    int | None,
    typer.Option("--ray-retries", metavar="N", min=0, help="How often a cell is begun anew whose worker was lost (default: 2)."),
]


# How `bench run --help` is read: forty options in one list are none.
GROUPS = {
    "What is compared": ("methods", "dataset", "setting", "seeds", "shots", "preset", "set_", "variant", "mask_rule"),
    "Weights and models": ("encoder", "weights", "download", "checkpoint", "prompts", "phase", "keep_models"),
    "Data": ("data_root", "source", "source_root", "categories", "limit", "strict", "pixel_cache"),
    "How it runs": ("engine", "device", "eval_batch", "force", "dry_run", "snapshot_every"),
    "What is kept and shown": ("results", "intervals", "save_maps", "maps_of", "display", "json_"),
    "On a Ray cluster": ("ray", "ray_gpus", "ray_cpus", "ray_retries"),
}


class RunVerb(Verb):
    """`bench run`, with its options in groups."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Typer's, each told its group, in the order of the groups; --help stays last."""
        params: dict[str | None, Any] = {param.name: param for param in super().get_params(ctx)}
        for title, names in GROUPS.items():
            for name in names:
                params[name].rich_help_panel = title
        order = [name for names in GROUPS.values() for name in names]
        return [*(params[name] for name in order), *(param for name, param in params.items() if name not in order)]


def ray_wish(address: str | None, gpus: float | None, cpus: int | None, retries: int | None) -> Wish | None:
    """What the options of `--ray` ask for; None without it. Raises `UsageError` for one of the others alone."""
    from inpbench.harness.scale.shares import Wish

    given = {"gpus": gpus, "cpus": cpus, "retries": retries}
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if address is not None and os.environ.get("TORCHELASTIC_RUN_ID"):
        raise UsageError(
            "--ray under torchrun: torchrun trains one cell on several GPUs, Ray runs a cell on each.", "Type one of the two."
        )
    if address is not None:
        return Wish(address=address, **chosen)
    if chosen:
        raise UsageError(f"--ray-{next(iter(chosen))} is of use only with --ray.", "Type: --ray auto")
    return None


def some_ints(text: str, option: str) -> tuple[int, ...]:
    """`"0,1,2"` as ints, at least one. Raises `UsageError` naming the option."""
    if not split_names(text):
        raise UsageError(f"{option} names no number.", f"Type: {option} 0,1,2")
    return split_ints(text, option)


def seconds(value: float, option: str) -> float:
    """The value, which is no NaN (that passes every bound). Raises `UsageError` naming the option."""
    if not 0 <= value < float("inf"):
        raise UsageError(f"{option} takes seconds, found {value}.", f"Type: {option} 30")
    return value


def wanted_maps(maps_of: str, save_maps: bool) -> str | None:
    """`--maps-of` where maps are kept; raises `UsageError` for one alone."""
    if maps_of != SOME_MAPS and not save_maps:
        raise UsageError("--maps-of chooses pictures of kept maps, and none are kept.", f"Type: --save-maps --maps-of {maps_of}")
    return maps_of if save_maps else None


def split_roots(given: list[str], names: Sequence[str]) -> tuple[Path | None, dict[str, Path]]:
    """`--data-root` as (the root that stands alone, roots by data set); `UsageError` when several stand alone.

    names: the data sets of the run. `NAME=DIR` is meant where NAME has no slash and no such folder exists.
    """
    alone: list[Path] = []
    named: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if equals and (name in names or ("/" not in name and not expanded(text).is_dir())):
            named[name] = Path(folder)
        else:
            alone.append(Path(text))
    if len(alone) > 1:
        example = names[0] if names else "NAME"
        raise UsageError(f"--data-root was given {len(alone)} times without a data set's name.", f"Type: --data-root {example}=DIR")
    return (alone[0] if alone else None), named
