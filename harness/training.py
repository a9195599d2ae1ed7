"""What the models of a cell are trained on, and the models that several cells share.

zero_shot, generalist and super_multi_class test one model on several data sets. It is trained once, under the name of its training
(`sources.training_id`) in `<results>/trained/<method>/<id12>/`, with its snapshots; every cell of that training loads it, today or
next month, and a zero_shot cell also finds the kept model of its source's multi_class record. It stays until the folder is deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from inpbench.harness.api import Progress, Sample, TrainingSet
from inpbench.harness.claims import claim
from inpbench.harness.errors import DataError, PrerequisiteError, WeightsError
from inpbench.harness.loading import TrainingImages
from inpbench.harness.models import read_model, save_model, shared_folder, trained_file
from inpbench.harness.snapshots import Fitting, FolderSnapshots, TeamSnapshots
from inpbench.harness.sources import training_id
from inpbench.harness.support import drawn_samples

if TYPE_CHECKING:
    from pathlib import Path

    from inpbench.harness.manifest import Manifest
    from inpbench.harness.plan import Cell
    from inpbench.harness.records import RecordStore
    from inpbench.harness.runner import Options

log = logging.getLogger("inpbench")


class SeveralSets:
    """The training images of several data sets one after the other, unbalanced, as one `harness.api.TrainingSet`.

    Categories are called `<data set>/<category>`: two sets may both have a `toothbrush`.
    """

    def __init__(self, parts: Sequence[tuple[str, TrainingImages]]) -> None:
        self._parts = [part for _, part in parts]
        self._categories = [f"{name}/{category}" for name, part in parts for category in part.categories]
        self._samples = [replace(s, category=f"{name}/{s.category}") for name, part in parts for s in part.samples]
        self._place = [(number, index) for number, part in enumerate(self._parts) for index in range(len(part))]

    @property
    def samples(self) -> Sequence[Sample]:
        """Of all sets, in the order of the sets; paths are relative to the root of each."""
        return self._samples

    @property
    def categories(self) -> Sequence[str]:
        """Of all sets, in the order of the sets."""
        return self._categories

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """(B, 3, H, W), normalised, on the device."""
        return self._gathered(indices, TrainingImages.batch)

    def masks(self, indices: Sequence[int]) -> Tensor:
        """(B, H, W) bool at crop size, on the device."""
        return self._gathered(indices, TrainingImages.masks)

    def pixels(self, indices: Sequence[int]) -> Tensor:
        """(B, 3, h, w) uint8 at resize size, on the device."""
        return self._gathered(indices, TrainingImages.pixels)

    def _gathered(self, indices: Sequence[int], read: Callable[[TrainingImages, list[int]], Tensor]) -> Tensor:
        """What `read` gives for each index, each set read at once, in the order of the indices."""
        places = [self._place[index] for index in indices]
        pieces, rows = [], []
        for number, part in enumerate(self._parts):
            mine = [row for row, (owner, _) in enumerate(places) if owner == number]
            if mine:
                pieces.append(read(part, [places[row][1] for row in mine]))
                rows += mine
        gathered = torch.cat(pieces)
        out = torch.empty_like(gathered)
        out[torch.tensor(rows, device=out.device)] = gathered
        return out


class Trained(NamedTuple):
    """A model that several cells share."""

    state: dict[str, Tensor]
    fitting: Fitting


def support_of(cell: Cell) -> list[Sample] | None:
    """The drawn support images of a cell with shots; None where there are none (or where a checkpoint saw unknown ones)."""
    drawn = cell.identity.get("support")
    if drawn is None:
        return None
    assert cell.manifest is not None
    return drawn_samples(cell.manifest, drawn)


def decoded_for_training(cell: Cell) -> Sequence[Sample] | None:
    """The training images of the tested set that a cell decodes beforehand, to train on or as references.

    Its support where it has one, none where it learned from another set or from a checkpoint, else (None) all of them.
    """
    assert cell.request is not None
    support = support_of(cell)
    unread = (cell.request.checkpoint is not None and not cell.method.told_category) or cell.request.prompts is not None
    return () if support is None and (cell.setting.source or unread) else support


def images_of(
    cell: Cell,
    manifest: Manifest,
    categories: Sequence[str],
    options: Options,
    progress: Progress,
    samples: Sequence[Sample] | None = None,
) -> TrainingImages:
    """Images for the method of a cell: these samples, or the normal training images. Raises `DataError` for what cannot be read."""
    assert cell.request is not None
    return TrainingImages(
        manifest,
        categories,
        cell.params.preprocess,
        device=options.device,
        dtype=options.dtype,
        cache=options.pixel_cache and cell.request.engine == "fast",  # the reference decodes each epoch
        progress=progress,
        samples=samples,
    )


def support_images(cell: Cell, categories: Sequence[str], options: Options, progress: Progress) -> TrainingImages:
    """The drawn images of some categories. Raises `DataError` when one cannot be read: k would be another number."""
    assert cell.manifest is not None
    support = [sample for sample in support_of(cell) or () if sample.category in categories]
    images = images_of(cell, cell.manifest, categories, options, progress, support)
    if len(images) < len(support):
        readable = {sample.image for sample in images.samples}
        broken = next(sample.image for sample in support if sample.image not in readable)
        raise DataError(
            f"{cell.manifest.info.name}: the support image {broken} cannot be read: {cell.shots} shots would be fewer.",
            "Repair it, or draw others: --seeds N",
        )
    return images


def training_set(cell: Cell, categories: Sequence[str], options: Options, progress: Progress) -> TrainingSet:
    """What one model of a cell is trained on. Raises `DataError` for what cannot be read."""
    assert cell.manifest is not None
    if cell.setting.anomalies:
        return _all_labelled(cell, options, progress)
    if cell.trained_on:
        parts = [(each.info.name, images_of(cell, each, each.categories, options, progress)) for each in cell.trained_on]
        return parts[0][1] if len(parts) == 1 else SeveralSets(parts)
    if support_of(cell) is not None:
        return support_images(cell, categories, options, progress)
    return images_of(cell, cell.manifest, categories, options, progress)


def _all_labelled(cell: Cell, options: Options, progress: Progress) -> TrainingImages:
    """Every labelled image of the source, in the manifest's order: training and test images, normal and anomalous ones."""
    (source,) = cell.trained_on
    labelled = [sample for sample in source.samples if sample.label >= 0]
    return images_of(cell, source, source.categories, options, progress, labelled)


def snapshots_in(folder: Path, options: Options) -> FolderSnapshots:
    """Where a model leaves its snapshots."""
    if options.team is not None:
        return TeamSnapshots(folder, options.snapshot_every_s, options.team)
    return FolderSnapshots(folder, options.snapshot_every_s)


def fit(
    method: Any,
    cell: Cell,
    setting: str,
    categories: Sequence[str],
    snapshots: FolderSnapshots,
    options: Options,
    progress: Progress,
) -> Fitting:
    """Train a method on what `training_set` gives, and save what it learned; a team is called to it.

    setting: what the method was told. Returns what it took, earlier runs included.
    """
    images = training_set(cell, categories, options, progress)
    if options.team is None:
        method.fit(images)
        return _saved(method, snapshots)
    task = {"cell": cell.id, "setting": setting, "categories": list(categories), "folder": str(snapshots.folder)}
    with options.team.training(task, options.device):
        method.fit(images)
        options.team.check_same(method.state())
    return _saved(method, snapshots)


def _saved(method: Any, snapshots: FolderSnapshots) -> Fitting:
    seconds = snapshots.elapsed_s()
    snapshots.save_fitted(method.state())
    return Fitting(seconds, snapshots.facts)


Build = Callable[[str, FolderSnapshots], Any]
"""(setting that the method is told to be in, where it leaves snapshots) -> the method of a cell, untrained."""


def shared_model(cell: Cell, store: RecordStore, options: Options, progress: Progress, build: Build) -> Trained:
    """The model of the training behind a cell: taken from where it was kept, or trained now, in the setting of its source."""
    assert cell.request is not None
    folder, training = shared_folder(store, cell.identity), training_id(cell.identity)
    with claim(folder.with_suffix(".lock"), wait=True):  # another process may be training it: its model is ours
        found = trained_file(store, cell.identity)
        if found is not None and options.force and cell.request.phase != "test" and training not in options.renewed:
            log.warning("--force: the model of the training %s, which other records may share, is trained again.", training[:12])
            found = None
        options.renewed.add(training)
        if found is not None:
            path, fitting = found
            try:
                return Trained(read_model(path), fitting)
            except WeightsError as error:
                if cell.request.phase == "test":
                    raise
                log.warning("%s The model is trained again.", error.message)
        if cell.request.phase == "test":
            raise PrerequisiteError("The shared model is not kept, and --phase test trains nothing.", "Leave --phase out.")
        snapshots, setting = snapshots_in(folder, options), cell.identity["source"]["setting"]
        method = build(setting, snapshots)
        state = snapshots.load_fitted()
        if state is None:
            fitting = fit(method, cell, setting, (), snapshots, options, progress)
            state = method.state()
        else:
            fitting = Fitting(snapshots.earlier_s, snapshots.facts)
        save_model(folder, "all", training, state, fitting)
        snapshots.clear()
    return Trained({key: value.detach().cpu() for key, value in state.items()}, fitting)
