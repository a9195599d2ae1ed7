"""Stand-ins for anomalib and Lightning with the interfaces that the adapter uses, for machines where they are not installed.

What they do is the facts of anomalib 2.7: a model is built with its components, `trainer_arguments` says what it asks of Lightning,
a memory bank is completed in a validation hook, the pre-processor normalises in a hook of the batch, and `model.model(x)` gives
`pred_score` and a map (B, 1, h, w).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.transforms import v2


class Score(Enum):
    FRE = "fre"
    NLL = "nll"


class Found(NamedTuple):
    pred_score: Tensor | None = None
    anomaly_map: Tensor | None = None


class PreProcessor(nn.Module):
    def __init__(self, transform: Any = None) -> None:
        super().__init__()
        self.transform = transform


class ImageItem(NamedTuple):
    image: Tensor
    gt_label: Tensor


class ImageBatch(NamedTuple):
    image: Tensor
    gt_label: Tensor

    @staticmethod
    def collate(items: list[ImageItem]) -> ImageBatch:
        return ImageBatch(torch.stack([i.image for i in items]), torch.stack([i.gt_label for i in items]))


class Network(nn.Module):
    """Distance from the mean image; in training it only remembers."""

    mean: Tensor

    def __init__(self, with_map: bool, with_score: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.with_map, self.with_score = with_map, with_score

    def forward(self, images: Tensor) -> Found:
        assert not self.training, "a memory bank returns embeddings, not maps, in train mode"
        amap = (images - self.mean).abs().mean(1, keepdim=True)
        return Found(amap.amax((1, 2, 3))[:, None] if self.with_score else None, amap if self.with_map else None)


class Padim(nn.Module):
    maps, scores = True, True

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: Sequence[str] = ("layer1",),
        n_features: int | None = None,
        score_type: Score | str = Score.FRE,
        pre_processor: Any = True,
        post_processor: Any = True,
        evaluator: Any = True,
        visualizer: Any = True,
    ) -> None:
        super().__init__()
        assert (post_processor, evaluator, visualizer) == (False, False, False)
        self.backbone = timm.create_model(backbone, pretrained=True, features_only=True)
        self.arguments = {"layers": layers, "n_features": n_features, "score_type": score_type}
        self.pre_processor = pre_processor
        self.model = Network(self.maps, self.scores)
        self.seen: list[Tensor] = []

    @staticmethod
    def configure_pre_processor() -> PreProcessor:
        steps = [v2.Resize((512, 512)), v2.CenterCrop(448), v2.Normalize([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])]
        return PreProcessor(v2.Compose(steps))

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        return {"max_epochs": 7, "devices": 4, "num_sanity_val_steps": 2, "gradient_clip_val": 0.1}

    def training_step(self, batch: ImageBatch) -> None:
        assert self.model.training, "Lightning trains what is in train mode"
        self.seen.append(batch.image)

    def on_validation_start(self) -> None:
        self.model.mean = torch.cat(self.seen).mean((0, 2, 3))[:, None, None]


class Ganomaly(Padim):
    maps = False


class Nothing(Ganomaly):
    scores = False


class Unreachable(Padim):
    def training_step(self, batch: ImageBatch) -> None:
        raise ConnectionError("no route\nto host")


class Trainer:
    last: Trainer
    global_step = 0
    current_epoch = 0

    def __init__(self, **options: Any) -> None:
        self.options = options
        Trainer.last = self

    def fit(self, module: Any, datamodule: Any) -> None:
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        self.batches = []
        for epoch in range(self.options["max_epochs"]):
            self.current_epoch = epoch
            for batch in datamodule.train_dataloader():
                self.batches.append(len(batch.image))
                module.training_step(batch._replace(image=module.pre_processor.transform(batch.image)))
                self.global_step += 1
            module.eval()
            self.validated = sum(len(batch.image) for batch in datamodule.val_dataloader())
            module.on_validation_start()
            module.train()
            for callback in self.options["callbacks"]:
                callback.on_train_epoch_end(self, module)


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins where `import anomalib` and `import lightning` look, for the length of a test."""
    modules = {
        "anomalib": {},
        "anomalib.models": {"Padim": Padim, "Ganomaly": Ganomaly, "Nothing": Nothing, "Unreachable": Unreachable},
        "anomalib.pre_processing": {"PreProcessor": PreProcessor},
        "anomalib.data": {"ImageBatch": ImageBatch, "ImageItem": ImageItem},
        "lightning": {},
        "lightning.pytorch": {"LightningDataModule": object, "Callback": object, "Trainer": Trainer},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        for key, value in members.items():
            setattr(module, key, value)
        patch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    patch.delitem(sys.modules, "inpbench.methods.anomalib.training", raising=False)
    patch.setattr("inpbench.methods.anomalib.version", lambda name: "2.7.0")
