"""Weight files: where they are looked for, how they are read safely, and their hashes.

Order: the path the user gave (file or folder), $INPBENCH_WEIGHTS/<file>, and timm's hub only when the user asked for a download.
Files are read with `weights_only=True` (or safetensors), so that a hostile pickle cannot run code. Identities: `sha256:...` of the
file, `random` where random weights were asked for by name, `builtin:v1` for what ships with the package,
`package:NAME-VERSION` for what another package fetches by itself.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpbench.harness.api import WeightSpec
from inpbench.harness.errors import WeightsError
from inpbench.harness.tensor_files import HostileFileError, load, problem
from inpbench.harness.user_paths import expanded

if TYPE_CHECKING:
    from torch import Tensor

FOLDER_VARIABLE = "INPBENCH_WEIGHTS"
RANDOM = "random"
IN_CHECKPOINT = "in the checkpoint"  # stands for the hash of a file that an official checkpoint makes needless
TO_DOWNLOAD = "to be downloaded"  # stands for the hash in a dry run, which fetches nothing
# Where published checkpoints keep the network: MAE, DeiT, BEiT, D-iGPT use `model`, MoCo and iBOT `state_dict`,
# InCTRL `model_state`.
_CONTAINERS = ("model", "state_dict", "teacher", "model_state")
# Files that hold a network in two parts (PMAD's flow): each tensor's name begins with that of its part.
_PARTS = ("encoder_state_dict", "decoder_state_dict")
_SUFFIXES = frozenset({".pth", ".pt", ".safetensors"})

_hashes: dict[tuple[str, int, int, int], str] = {}  # (path, mtime and ctime in ns, size) -> sha256


def file_sha256(path: Path) -> str:
    """The sha256 of a file as hex; computed once a process as long as the file does not change."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
    if key not in _hashes:
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                digest.update(chunk)
        _hashes[key] = digest.hexdigest()
    return _hashes[key]


class WouldDownloadError(WeightsError):
    """A file that a dry run would have to fetch."""


class WeightStore:
    """The bench's implementation of `api.Weights`.

    choice: a file, a folder, `random`, or None; download: whether timm's hub may be asked; dry: nothing is fetched, only planned.
    """

    def __init__(self, choice: str | None = None, *, download: bool = False, dry: bool = False) -> None:
        self.choice = choice
        self.download = download
        self.dry = dry

    def identity(self, spec: WeightSpec) -> str:
        """What goes into a record, see the module docstring; no torch is imported. Raises `WeightsError`."""
        if spec.source == "builtin":
            return f"builtin:v{spec.version}"
        if self.choice == RANDOM:
            return RANDOM
        if spec.source == "package":
            if not self.download:
                raise WeightsError(
                    f"{spec.name}: {spec.file} fetches these weights by itself, from its hub or that hub's cache on this machine.",
                    "Type: --download to let it, or --weights random to do without.",
                )
            return f"package:{spec.file}"
        try:
            return f"sha256:{file_sha256(self.find(spec))}"
        except WouldDownloadError:
            return TO_DOWNLOAD

    def find(self, spec: WeightSpec) -> Path:
        """The file of a spec, the first of the places that has it; raises `WeightsError` naming them all."""
        looked: list[str] = []
        for place in self._places(spec):
            if place.is_file():
                return place
            looked.append(str(place))
        if self.download and spec.timm:
            return _download(spec, self.dry)
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder:
            looked.append(f"${FOLDER_VARIABLE}/{spec.file} (not set)")
        message = f"The weights of {spec.name} are missing: {spec.file} was looked for as {', '.join(looked)}."
        raise WeightsError(message, self._advice(spec))

    def state(self, spec: WeightSpec) -> dict[str, Tensor] | None:
        """The tensors of the file under their own keys; None for random or built-in weights, {} for a package's."""
        if spec.source == "builtin" or self.choice == RANDOM:
            return None
        return {} if spec.source == "package" else read_tensors(self.find(spec))

    def hash_file(self, path: str | Path) -> str:
        """The identity `sha256:...` of a weight file or a folder of them; `WeightsError` where there is none."""
        files = _existing(path)
        if len(files) == 1:
            return f"sha256:{file_sha256(files[0])}"
        return f"sha256:{hashlib.sha256(' '.join(sorted(file_sha256(file) for file in files)).encode()).hexdigest()}"

    def read_file(self, path: str | Path) -> dict[str, Tensor]:
        """The tensors of a weight file, such as an official checkpoint, or of all the files of a folder (CRR has two).

        Raises `WeightsError` saying what is wrong, and where two files of a folder hold different tensors of one name.
        """
        tensors: dict[str, Tensor] = {}
        owner: dict[str, str] = {}
        for file in _existing(path):
            for key, value in read_tensors(file).items():
                if key in tensors and not _same(tensors[key], value):
                    raise WeightsError(
                        f"{owner[key]} and {file.name} in {file.parent} both hold {key}, with different values.",
                        "Leave one of them in the folder.",
                    )
                tensors[key], owner[key] = value, file.name
        return tensors

    def _places(self, spec: WeightSpec) -> list[Path]:
        name = Path(spec.file)
        places: list[Path] = []
        if self.choice:
            chosen = expanded(self.choice)
            if chosen.is_dir():
                places += [chosen / name] + ([chosen / name.name] if name.parent != Path() else [])
            else:
                places.append(chosen)
        folder = os.environ.get(FOLDER_VARIABLE)
        # A file that the user named and that is not there must not be replaced silently by another one.
        if folder and not (self.choice and not expanded(self.choice).is_dir()):
            places.append(expanded(folder) / name)
        return places

    def _advice(self, spec: WeightSpec) -> str:
        ways = []
        if spec.url:
            ways.append(f"Download {spec.url} and type: export {FOLDER_VARIABLE}=FOLDER")
        else:
            ways.append(f"Put {spec.file} of its authors into a folder and type: export {FOLDER_VARIABLE}=FOLDER")
        if spec.timm and not self.download:
            ways.append("or add --download")
        ways.append(f"{spec.without}.")
        return ", ".join(ways)


class BesideCheckpoint:
    """`api.Weights` for a method that an official checkpoint is loaded into: what the checkpoint holds is drawn, then replaced."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store

    def identity(self, spec: WeightSpec) -> str:
        """What goes into a record; no file is looked for that the checkpoint makes needless. Raises `WeightsError`."""
        return IN_CHECKPOINT if spec.source == "file" and spec.in_checkpoint else self._store.identity(spec)

    def state(self, spec: WeightSpec) -> dict[str, Tensor] | None:
        """The tensors of a file that no checkpoint holds; None for the others. Raises `WeightsError`."""
        return None if spec.in_checkpoint else self._store.state(spec)


def _existing(path: str | Path) -> list[Path]:
    """`path` with ~ expanded, or the weight files of that folder by name; raises `WeightsError` where there is none."""
    found = expanded(path)
    listed = sorted(file for file in found.iterdir() if file.suffix in _SUFFIXES) if found.is_dir() else [found]
    files = [file for file in listed if file.is_file()]
    if not files:
        raise WeightsError(f"There is no weight file {found}.", "Give the path of a .pth, .pt or .safetensors file.")
    return files


def _same(a: Tensor, b: Tensor) -> bool:
    import torch

    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _download(spec: WeightSpec, dry: bool) -> Path:
    """The file of a timm model from its hub, in the hub's own cache (a cached file needs no network); dry: from there alone."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if dry:
        cached = try_to_load_from_cache(f"timm/{spec.timm}", "model.safetensors")
        if isinstance(cached, str):
            return Path(cached)
        raise WouldDownloadError(f"The weights of {spec.name} would be downloaded from timm's hub ({spec.timm}).")
    try:
        return Path(hf_hub_download(repo_id=f"timm/{spec.timm}", filename="model.safetensors"))
    except Exception as error:  # network, proxy, disk, rights: whatever it is, the user must read it
        raise WeightsError(
            f"The weights of {spec.name} could not be downloaded from timm's hub ({spec.timm}): {type(error).__name__}: {error}",
            f"Download {spec.url or spec.file} by hand and type: export {FOLDER_VARIABLE}=FOLDER",
        ) from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return load(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file on the CPU, by key; raises `WeightsError` saying what is wrong.

    Official checkpoints of the methods (`model.pth`) are read by the same function.
    """
    try:
        content = _read(path)
    except Exception as error:  # a hostile or broken file can raise anything while it is parsed
        raise WeightsError(
            f"{path} cannot be read as weights ({path.stat().st_size} bytes): {_reason(path, error)}.",
            "Download the file again from its authors and compare its size; keep away from files of unknown origin.",
        ) from error
    found = _tensors(content)
    for key in _CONTAINERS:
        if not found and isinstance(content, Mapping):
            found = _tensors(content.get(key))
    if not found and isinstance(content, Mapping):
        found = {f"{part}.{key}": value for part in _PARTS for key, value in _tensors(content.get(part)).items()}
    if not found:
        described = (
            f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        )
        raise WeightsError(f"{path} holds no named tensors, found {described}.", "Give a state dict, or a checkpoint with one.")
    for key, value in found.items():
        if why := problem(value):
            raise WeightsError(f"{path}: {key} {why}.", "Download the file again from its authors.")
    return found


def _reason(path: Path, error: Exception) -> str:
    """Why a file could not be parsed, in words."""
    if isinstance(error, HostileFileError):
        return str(error)
    with path.open("rb") as stream:
        head = stream.read(4)
    if not head:
        return "it is empty"
    if path.suffix == ".safetensors":
        return f"it is truncated or no safetensors file ({error})"
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        return "it is no PyTorch file"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds Python objects other than tensors, which could run code and are never loaded"
    return f"it is truncated or damaged ({type(error).__name__})"


def _tensors(content: Any) -> dict[str, Tensor]:
    """`content` if it maps names to tensors only, else nothing."""
    import torch

    if not isinstance(content, Mapping) or not content:
        return {}
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()):
        return {}
    return dict(content)
