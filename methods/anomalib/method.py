"""A model of anomalib as a method of the bench: our pixels in, its raw (un-normalised) map and score out.

The bench resizes and crops; of the model's pre-processor only the normalisation is left, and Lightning applies it in training as
`predict` does here. Post-processor, metrics and pictures of anomalib are off: its sigmoid, its clamp and its thresholds on test
data never touch a number. Memory-bank models finish fitting in a validation hook, and EfficientAd sets its scale there: the last
tenth of the training images is the validation set, and is trained on as well. The state is the whole network, frozen parts too.
Deviations from `anomalib train`: pixels are resized as bytes, seeds are set before the model is built, test data is never seen.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from inpbench.harness.api import Context, Prediction, TrainingSet
from inpbench.harness.errors import PrerequisiteError, UsageError, WeightsError, did_you_mean
from inpbench.methods.anomalib import AnomalibParams, weights_of
from inpbench.methods.anomalib.arguments import constructor_arguments
from inpbench.methods.checkpoint import load_strictly

GEOMETRY = {"Resize", "CenterCrop", "SquarePad"}  # what the bench has done already
log = logging.getLogger("inpbench")


class AnomalibModel:
    """`harness.api.Method` of one model of anomalib."""

    def __init__(self, params: AnomalibParams, ctx: Context) -> None:
        params.check()
        self.params, self.ctx = params, ctx
        specs = weights_of(params, encoder="weights")
        with _quiet():
            kind = _model_class(params)
            arguments = constructor_arguments(kind, params.given, f"anomalib.{params.model}")
            random = all(ctx.weights.state(spec) is None for spec in specs)
            with _without_pretrained() if random else contextlib.nullcontext(), _fetching(params.model):
                self.module = kind(
                    **arguments,
                    pre_processor=_pre_processor(kind, params),
                    post_processor=False,
                    evaluator=False,
                    visualizer=False,
                )
        self.module.to(ctx.device)  # still in the mode it was built in: Lightning keeps it, and frozen parts are in eval already
        self._told = False

    def fit(self, train: TrainingSet) -> None:
        """Train with Lightning, on the training set's images alone."""
        from inpbench.methods.anomalib.training import fit

        with _quiet(), _fetching(self.params.model), torch.inference_mode(False), torch.enable_grad():
            fit(self.module, train, self.params, self.ctx)
        self.module.to(self.ctx.device).eval()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Map (B, h, w) and score (B,) of images (B, 3, H, W) from 0 to 1, as the network gives them.

        A model without a map has its score as a map of one value an image: its pixel metrics then say nothing about places.
        """
        found = self.module.model(self.module.pre_processor.transform(images))
        score, amap = found.pred_score, found.anomaly_map
        score = None if score is None else score.reshape(len(images), -1).amax(dim=1)
        if amap is not None:
            return Prediction(amap.reshape(len(images), *amap.shape[-2:]), score)
        if score is None:
            raise UsageError(f"{self.params.model} of anomalib returns neither a map nor a score.", "Choose another model.")
        if not self._told:
            log.warning("%s of anomalib returns no map: its pixel metrics are those of its image score.", self.params.model)
            self._told = True
        return Prediction(score[:, None, None], score)

    def state(self) -> dict[str, Tensor]:
        """All tensors of the network; what of it is frozen only anomalib knows."""
        return dict(self.module.model.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; raises `WeightsError` naming what differs. Memory banks may have any size."""
        network = self.module.model
        own = network.state_dict()
        if own.keys() != state.keys():
            load_strictly(network, state, f"anomalib's {self.params.model}")  # raises, naming the keys
        try:
            network.load_state_dict(dict(state), strict=True)
        except RuntimeError as error:
            raise WeightsError(
                f"The weights do not fit anomalib's {self.params.model}: {' '.join(str(error).split())[:300]}",
                "Give the state of the same model, parameters and version of anomalib.",
            ) from error
        self.module.eval()


def _model_class(params: AnomalibParams) -> Any:
    import anomalib.models

    kind = getattr(anomalib.models, params.model, None)
    if not hasattr(kind, "configure_pre_processor"):
        names = [name for name in dir(anomalib.models) if hasattr(getattr(anomalib.models, name), "configure_pre_processor")]
        raise UsageError(
            f"anomalib {params.version} has no model '{params.model}'. {did_you_mean(params.model, names)}",
            "Type: bench list methods",
        )
    return kind


def _pre_processor(kind: Any, params: AnomalibParams) -> Any:
    """The model's own pre-processor without its geometry.

    A resize to the size that images have already stays at its head, where models read their input size from.
    """
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms import v2

    default = kind.configure_pre_processor()
    transform = getattr(default, "transform", None)
    steps = list(getattr(transform, "transforms", [transform] if transform is not None else []))
    kept = [step for step in steps if type(step).__name__ not in GEOMETRY]
    return PreProcessor(transform=v2.Compose([v2.Resize(params.crop_size, antialias=True), *kept]))


@contextlib.contextmanager
def _without_pretrained() -> Iterator[None]:
    """Make timm build its networks with random weights: what `--weights random` asked for by name."""
    import timm

    original = timm.create_model

    def create_model(model_name: str, pretrained: bool = False, **others: Any) -> Any:
        return original(model_name, pretrained=False, **others)

    timm.create_model = create_model  # type: ignore[assignment]
    try:
        yield
    finally:
        timm.create_model = original


@contextlib.contextmanager
def _fetching(model: str) -> Iterator[None]:
    """Say in two lines that a file which anomalib fetches by itself did not come."""
    try:
        yield
    except OSError as error:  # urllib's, requests' and the hub's failures all are
        raise PrerequisiteError(
            f"anomalib's {model} needs a file that it could not read or fetch: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}",
            "Run it once with a network, or put the file where anomalib looks for it (its documentation of the model says where).",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's and anomalib's remarks about devices, workers and loggers are no part of the bench's output."""
    loggers = [logging.getLogger(name) for name in ("anomalib", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
