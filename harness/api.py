"""The contracts between the bench, the methods and the data sets; importing this file imports no torch.

Vocabulary of shapes, here and everywhere: B batch, N tokens, D channels, H x W pixels, h x w grid, M prototypes, L layers,
C classes. `score` and `amap`: higher is more anomalous; only their order matters to the bench. `label`: 0 normal, 1 anomalous,
-1 unknown. A method sees tensors and its `Context`, never a file, a data set or a record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from inpbench.harness.ranks import Alone as Alone
from inpbench.harness.ranks import Ranks as Ranks
from inpbench.harness.ranks import shares as shares

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

Size = tuple[int, int]  # (height, width) in pixels
Split = Literal["train", "val", "test"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# --- data sets ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One image of a data set. Paths are POSIX, relative to the data root; nothing is decoded here."""

    image: str
    category: str
    split: Split
    label: int  # 0 normal, 1 anomalous, -1 unknown (private test sets)
    mask: str | None = None  # None: no mask on disk (a normal image, or a set without masks)
    defect: str = "good"
    specimen: str | None = None  # the physical object, where one has several views
    view: str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing an adapter or the audit noticed about one file."""

    file: str  # POSIX path relative to the data root ("" for the root itself)
    status: str  # a word of FINDINGS
    message: str

    @property
    def severity(self) -> str:
        """`error` stops a strict run, `warning` never stops one."""
        return FINDINGS[self.status]


# Every status a finding can have. An `error` means that a number would be computed from other data than the user thinks.
FINDINGS: Mapping[str, str] = {
    "unreadable": "error",  # zero bytes, truncated, not an image
    "missing_image": "error",  # listed in a csv or json, not on disk
    "missing_mask": "error",  # an anomalous image of a set with masks has none
    "unreadable_mask": "error",
    "bad_path": "error",  # absolute, or leaves the root
    "bad_entry": "error",  # a csv row or json entry that does not follow the schema
    "count": "error",  # counts differ from the published ones
    "missing_category": "error",
    "size_mismatch": "warning",  # mask and image differ in size; the mask is resized (nearest)
    "empty_mask": "warning",  # legitimate in some sets: counts as negative pixels only
    "mask_without_image": "warning",
    "duplicate": "warning",  # the same bytes twice
    "mode": "warning",  # an unusual image mode (16-bit, CMYK, palette, alpha) and how it was read
    "ignored": "warning",  # a file or folder that is no part of the layout
    "lacking": "warning",  # a category that nothing can be trained on, or measured on
}

Report = Callable[[Finding], None]
"""Called by an adapter for each finding. In strict mode it raises `DataError` on an error; in lenient mode it collects."""


# `field(default=..., metadata=LATER)`: a parameter that came after the first release. It enters a record's identity only where it
# differs from its default, so that the records made before it existed keep their id.
LATER: Mapping[str, bool] = {"later": True}


@dataclass(frozen=True)
class NoParams:
    """The parameters of a method or data set that has none."""


class Counts(NamedTuple):
    """Published numbers of images of a category."""

    train: int
    test_normal: int
    test_anomalous: int


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file that the authors of a data set publish at an open address."""

    url: str  # http or https
    file: str  # its name; .zip and .tar* are unpacked, others (.gz) are kept as they are
    sha256: str = ""  # "": not known; the first download's is remembered and later ones must have the same


class Piece(NamedTuple):
    """One file of a data set that `bench data prepare` writes."""

    path: str  # POSIX, relative to the new root
    content: Path | NDArray[np.uint8]  # a file to copy byte for byte, or pixels (H, W) or (H, W, 3) to store as PNG


class Decoder(Protocol):
    """How a converter reads pictures below the raw folder: by the bench's rules for odd modes (16-bit, CMYK, palette, alpha)."""

    def image(self, path: str) -> NDArray[np.uint8]:
        """(H, W, 3) RGB. Raises `DataError` naming the file."""
        ...

    def size(self, path: str) -> Size:
        """(height, width) from the header. Raises `DataError` naming the file."""
        ...

    def mask(self, path: str, image: str | None = None) -> NDArray[np.bool_]:
        """(H, W), True where defective, at the size of `image` where that is given. Raises `DataError` naming the file."""
        ...


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What the bench knows about a data set without touching the disk.

    scan: "module:attr" of `scan(root: Path, params, report: Report) -> list[Sample]`; the list is sorted by category in the
        official order, then split, then path. It raises `DataError` when the root is not of this layout at all.
    generate: "module:attr" of `generate(folder: Path, params) -> None` for a set that is drawn, not found: no root is asked
        for.
    prepare: "module:attr" of `prepare(raw: Path, params, read: Decoder, report: Report) -> Iterator[Piece]`, which turns what is
        published into the layout that `scan` reads; a generator, the same pieces in the same order for the same files.
    params: a frozen dataclass; it may have a property `published` (the counts under these parameters, instead of `counts`) and a
        property `alone` (bool: anomalies of one category are normal in others, so that each needs a model of its own).
    archives: what `bench data download` fetches; empty where the authors ask for a form, an account or a click (`obtain` says it).
    """

    name: str
    version: int
    title: str
    scan: str
    generate: str | None = None
    params: type = NoParams
    categories: tuple[str, ...] = ()  # official order; empty: taken from disk
    textures: frozenset[str] = frozenset()
    counts: Mapping[str, Counts] = field(default_factory=dict)
    licence: str = ""
    homepage: str = ""
    expected_tree: str = ""  # what the root looks like, for error messages and `bench data show`
    prepare: str | None = None
    archives: tuple[Archive, ...] = ()
    obtain: str = ""  # how a person gets the data


# --- methods --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes a method's input: RGB -> resize (PIL, antialiased) -> centre crop -> [0, 1] -> normalise."""

    resize: Size  # both sides, aspect ratio not kept; with `shorter_side` the first number is the length of the shorter side
    crop: Size
    shorter_side: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    own_mode: bool = False  # resize and crop in the file's own mode (grey, palette, alpha), convert to RGB last: CLIP's order


class Prediction(NamedTuple):
    """What `predict` returns for a batch."""

    amap: Tensor  # (B, h, w), any resolution; the bench enlarges and smooths it (one of the metrics' size is smoothed alone)
    score: Tensor | None = None  # (B,), or None: the bench takes the mean of the highest 1 % of the smoothed map


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """A weight file a method needs. `source`: `file` (looked up, hashed), `builtin` (ships with the package), `package` (another
    package fetches it by itself: asks for --download, is not hashed, and `file` names the package and its version).
    """

    name: str  # the encoder's name, e.g. dinov2reg_vit_base_14
    file: str  # official file name
    url: str = ""  # where its authors publish it
    timm: str = ""  # timm model whose hub weights are the same network ("" if none)
    source: Literal["file", "builtin", "package"] = "file"
    version: int = 1  # of built-in weights; enters the identity
    in_checkpoint: bool = True  # official checkpoints of the method hold it; False: a file of its own, looked for beside them
    without: str = "or use --encoder builtin, which needs no file"  # what to type where there is no file, for the message


class TrainingSet(Protocol):
    """The training images of one model, decoded by the bench."""

    @property
    def samples(self) -> Sequence[Sample]:
        """In the manifest's order; index i below is a position in this list."""
        ...

    @property
    def categories(self) -> Sequence[str]:
        """Categories present, in the official order."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W), normalised, of the context's dtype, on the context's device."""
        ...

    def masks(self, indices: Sequence[int]) -> Tensor:
        """Binary ground truth (B, H, W) at crop size, bool, on the device; all False for normal images."""
        ...

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """The decoded images (B, 3, h, w), uint8, at resize size: before the crop and the normalisation. For augmentations."""
        ...


class Snapshots(Protocol):
    """Where a training loop leaves its state, so that a killed cell goes on from there. Written atomically."""

    def due(self) -> bool:
        """Whether enough time has passed since the last `save` (or the start) to write another."""
        ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Write tensors, numbers, strings, lists and dicts; replaces the earlier snapshot."""
        ...

    def load(self) -> dict[str, Any] | None:
        """The last complete snapshot of this very cell, or None."""
        ...


class Weights(Protocol):
    """Where encoders get their tensors; the bench hashes what it hands out into the record."""

    def state(self, spec: WeightSpec) -> dict[str, Tensor] | None:
        """The tensors of the file as published (its own keys), or None where random weights were asked for by name; {} for a file
        that another package may fetch.

        Raises `WeightsError` naming the file, the places looked at, and what to type.
        """
        ...


class Progress(Protocol):
    """A progress line that works in a terminal and in a log file."""

    def __call__(self, done: int, total: int, text: str = "", **numbers: float) -> None:
        """Say how far it is; the first word of `text` names the stage, `numbers` (loss, lr) are shown as they are."""
        ...


class Scratch(Protocol):
    """Where a method puts temporary tensors that memory cannot hold."""

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """An uninitialised tensor in a memory-mapped file, or None where the disk has no room."""
        ...


class ImageFolder(Protocol):
    """The images of a folder that a parameter names (`MethodInfo.folders`), with all below it, decoded when asked for."""

    def __len__(self) -> int: ...

    def pixels(self, index: int) -> Tensor:
        """Image (3, h, w), uint8 RGB of its own size, on the host; raises `DataError` naming a file that cannot be read."""
        ...

    def find(self, path: str) -> int | None:
        """The place of the image with this POSIX path relative to the folder, whatever its extension; None where there is none."""
        ...


@dataclass
class Context:
    """Everything a method may know about where it runs. `torch` types are named, not imported."""

    device: torch.device
    dtype: torch.dtype  # of parameters and inputs: float32, or float64 in fidelity tests
    seed: int
    setting: str
    weights: Weights
    snapshots: Snapshots
    progress: Progress
    shots: int = 0
    engine: Literal["fast", "reference"] = "fast"  # reference: the originals' way, nothing cached, no autocast
    cache: Literal["auto", "device", "host", "file", "none"] = "auto"  # where the fast engine keeps frozen features
    cache_bytes: int | None = None  # most host memory that they may take with `auto`; none: half of what is free
    array: Scratch | None = None  # large temporary tensors in files; none: there is no place for them
    compile: bool = True  # whether the fast engine may use torch.compile (CUDA)
    images: Callable[[str], ImageFolder] | None = None  # opens a folder that a parameter names; None: there is no reader
    ranks: Ranks = field(default_factory=Alone)  # the processes that train together (`MethodInfo.parallel`)


class Method(Protocol):
    """A method under test: a plain class. `INFO` lives in methods/<name>/__init__.py and imports no torch."""

    def __init__(self, params: Any, ctx: Context) -> None: ...

    def fit(self, train: TrainingSet) -> None:
        """Train, or do nothing. Resumes from `ctx.snapshots` if there is one."""
        ...

    def predict(self, images: Tensor) -> Prediction:
        """images: (B, 3, H, W) float, normalised, on `ctx.device`; not modified. No gradient is kept."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What was learned, for resume and export (not the frozen encoder)."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; strict, raises `WeightsError` naming the first keys or shapes that differ."""
        ...


class CategoryAware(Protocol):
    """What a method offers besides `Method` when it must know what it looks at: the category's name, and normal images of it.

    Such a method says so (`MethodInfo.told_category`), and every table does.
    """

    def enter(self, category: str, references: TrainingSet | None) -> None:
        """Called after `fit` or `load_state`, before the test images of `category` are predicted; `predict` then speaks of it.

        references: normal images of this category alone, as the setting allows: the k drawn ones where it has shots (few_shot,
        generalist), none (None) in zero_shot, the category's training images elsewhere. With None, what `state()` kept of an
        earlier `enter` or `fit` for this category is used; `UsageError` where the method needs references and has none.
        """
        ...


class Oracle(Protocol):
    """What a method offers besides `Method` to reproduce an evaluation that was tuned on the test labels.

    Asked for by a parameter whose value makes `params.selection` (a property) "oracle" instead of "last". Such numbers are marked
    in every table and never ranked with others.
    """

    def consult(self, test: TrainingSet) -> None:
        """Called after `enter`: all test images of the category with their labels (`test.samples`) and masks, in test order."""
        ...


class Explaining(Protocol):
    """What a method may offer besides `Method`: pictures of how it came to its map, for sheets (`--save-maps`)."""

    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, 3, H, W) as for `predict`. Returns name -> (B, M, h, w), M parts of one kind on one scale."""
        ...


def no_weights(params: Any) -> tuple[WeightSpec, ...]:
    """`MethodInfo.weights` of a method without a pretrained part."""
    return ()


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """A method as the registry knows it, without importing its code.

    params: a frozen dataclass with the paper's constants as defaults; it has a property `preprocess -> Preprocess` and may have a
        method `check() -> None` that raises `UsageError` for values that do not go together. A property `batch_dependent` that is
        True says that a score depends on the images of its batch: then the identity holds `--eval-batch`.
    presets: named changes to the defaults; `paper` is {} by definition.
    """

    name: str
    version: int  # raised when a default or the mathematics changes a number
    title: str
    target: str  # "module:Class"
    params: type
    settings: frozenset[str]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"paper": {}})
    weights: Callable[[Any], tuple[WeightSpec, ...]] = no_weights
    folders: frozenset[str] = frozenset()  # parameters (str | None) that name a folder of images; identities hold its content
    paper: str = ""
    extra: str | None = None  # the pip extra that its imports need
    baseline: bool = False  # a yardstick, not a contender: marked in tables
    told_category: bool = False  # it is `CategoryAware`: told the category of each test image, which the others are not
    parallel: bool = False  # `fit` may run on several processes at once (`Context.ranks`), with the loss of one
    # Settings in which it learns from no image at all: `fit` is not called there, and zero_shot needs no source.
    untrained: frozenset[str] = frozenset()

    SETTINGS_ALL: ClassVar[frozenset[str]] = frozenset(
        {"multi_class", "single_class", "few_shot", "zero_shot", "super_multi_class", "cross_class", "generalist"}
    )


@dataclass(frozen=True, kw_only=True)
class MethodFamily:
    """Methods of another package behind one adapter, called `<family>.<member>`; that package is imported when one of them runs."""

    name: str
    title: str
    package: str  # the distribution that it needs
    install: str  # the command that installs it
    members: tuple[str, ...]  # the names known beforehand; `member` may take more
    member: Callable[[str], MethodInfo]  # raises `UsageError` for an unknown one


class Scan(Protocol):
    """The type of the function that `DatasetInfo.scan` names."""

    def __call__(self, root: Path, params: Any, report: Report) -> list[Sample]:
        """List the images below `root`."""
        ...


class Prepare(Protocol):
    """The type of the function that `DatasetInfo.prepare` names."""

    def __call__(self, raw: Path, params: Any, read: Decoder, report: Report) -> Iterator[Piece]:
        """The files of the prepared set, from the published ones below `raw`."""
        ...
