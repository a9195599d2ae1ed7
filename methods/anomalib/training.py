"""Lightning's loop over the bench's training set: the data module that anomalib's models expect, and the trainer they ask for.

Images are read one by one from the training set, in this process. What a model asks of its trainer (gradient clipping, intervals of
validation) is kept; the training's length is a parameter of the method, because most models name none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from anomalib.data import ImageBatch, ImageItem
from lightning import pytorch as lightning
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from inpbench.harness.api import Context, TrainingSet
from inpbench.methods.anomalib import AnomalibParams

# What the adapter decides itself, whatever the model asks for.
DECIDED = ("max_epochs", "max_steps", "devices", "accelerator", "num_sanity_val_steps", "logger")


class Images(Dataset):  # type: ignore[type-arg]
    """Normal training images as anomalib's items: pixels from 0 to 1, label 0."""

    def __init__(self, train: TrainingSet, indices: Sequence[int]) -> None:
        self.train, self.indices = train, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        image = self.train.batch([self.indices[position]])[0].cpu()
        return ImageItem(image=tv_tensors.Image(image), gt_label=torch.tensor(0))


class Data(lightning.LightningDataModule):  # type: ignore[misc]
    """The attributes and loaders that anomalib's models read from a data module."""

    name, category = "inpbench", ""

    def __init__(self, train: TrainingSet, batch_size: int) -> None:
        super().__init__()
        count = len(train)
        self.train_data = Images(train, range(count))
        self.val_data = Images(train, range(count - max(1, count // 10), count))
        self.train_batch_size = self.eval_batch_size = min(batch_size, count)

    def train_dataloader(self) -> DataLoader[Any]:
        """All images, shuffled by torch's generator, which the bench has seeded; the last, smaller batch is kept."""
        return DataLoader(self.train_data, self.train_batch_size, shuffle=True, collate_fn=ImageBatch.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        """The last tenth of the training images."""
        return DataLoader(self.val_data, self.eval_batch_size, collate_fn=ImageBatch.collate)


class Reporter(lightning.Callback):  # type: ignore[misc]
    """The bench's progress line, once an epoch."""

    def __init__(self, params: AnomalibParams, ctx: Context) -> None:
        self.params, self.ctx = params, ctx

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Say how far the training is, in steps or in epochs."""
        if self.params.max_steps is not None:
            self.ctx.progress(trainer.global_step, self.params.max_steps, "steps")
        elif self.params.max_epochs is not None:
            self.ctx.progress(trainer.current_epoch + 1, self.params.max_epochs, "epochs")


def fit(module: Any, train: TrainingSet, params: AnomalibParams, ctx: Context) -> None:
    """Train `module` on the context's device."""
    asked = {key: value for key, value in module.trainer_arguments.items() if key not in DECIDED}
    on_gpu = ctx.device.type == "cuda"
    trainer = lightning.Trainer(
        **asked,
        max_epochs=params.max_epochs if params.max_epochs is not None else -1,
        max_steps=params.max_steps if params.max_steps is not None else -1,
        accelerator="gpu" if on_gpu else "cpu",
        devices=[ctx.device.index or 0] if on_gpu else 1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Reporter(params, ctx)],
    )
    trainer.fit(module, datamodule=Data(train, params.batch_size))
