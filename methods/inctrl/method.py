"""InCTRL as a method under test: trained on a source's normal and anomalous images, told k normal images of each category it tests.

The score of an image is computed from it and its prompts alone (`test_residuals=per_image`, the official evaluation since 2024-09).
The map M on the token grid is shown and measured too, although its authors claim no localisation.
Known deviations: prompts of the training (sampler.py); nothing is evaluated during training, so that `epochs` alone chooses the
checkpoint (the original's script ends with the 9th of 10 by the order of file names). With the fast engine the frozen features
of all training images are computed once (float32): the same numbers to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import Context, Prediction, TrainingSet
from inpbench.harness.errors import DataError, UsageError, WeightsError
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.clip import KeptReferences, build_towers, text_score
from inpbench.methods.clip_prompts import inctrl_prompts, object_name
from inpbench.methods.features import FeatureSource
from inpbench.methods.fusion import Features, from_grid, to_grid
from inpbench.methods.inctrl import InCtrlParams
from inpbench.methods.inctrl.model import (
    Encoded,
    InCtrlHeads,
    InCtrlOutput,
    batch_residuals,
    inctrl_loss,
    repeated,
    residuals,
)
from inpbench.methods.inctrl.sampler import BalancedOrder, PromptDraw
from inpbench.methods.training import LossFunction, Order, Trainer

HEADS = ("adapter.", "diff_head.", "diff_head_ref.")  # beginnings of the official keys of what is trained


class InCtrl:
    """`harness.api.Method` and `CategoryAware` of InCTRL."""

    def __init__(self, params: InCtrlParams, ctx: Context) -> None:
        params.check()
        self.params, self.ctx = params, ctx
        architecture = params.architecture
        self.side = architecture.side
        with torch.random.fork_rng(devices=[]):  # towers first, then heads: the official order
            torch.manual_seed(ctx.seed)
            self.towers = build_towers(params, ctx)
            self.heads = InCtrlHeads(self.side**2, architecture.embed)
        self.heads.to(device=ctx.device, dtype=ctx.dtype).eval()
        self._kept = KeptReferences("inctrl")
        self._texts: dict[str, Tensor] = {}
        self._text: Tensor | None = None  # (2, E) of the category that was entered
        self._prompts: Encoded | None = None  # its K normal images

    # --- features -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """Images (B, 3, H, W) -> the frozen features of each."""
        tokens = self.towers.tokens(images, self.params.layers)
        return Encoded(torch.stack([F.normalize(block[:, 1:], dim=-1) for block in tokens.blocks]), tokens.pooled)

    @torch.no_grad()
    def prototypes(self, category: str) -> Tensor:
        """(2, E): what the words for normal and anomalous mean, by category; computed once."""
        if category not in self._texts:
            self._texts[category] = self.towers.prototypes(inctrl_prompts(object_name(category)))
        return self._texts[category]

    def text_scores(self, pooled: Tensor, categories: list[str]) -> Tensor:
        """(B,): the text score of each embedding of (B, E) with the words of its category."""
        return torch.stack([text_score(row, self.prototypes(name), 100.0) for row, name in zip(pooled, categories, strict=True)])

    # --- the training -------------------------------------------------------------------------------------------------

    def fit(self, train: TrainingSet) -> None:
        """Train adapter and heads on normal and anomalous images of all categories of `train`.

        Raises `DataError` without anomalous images, or with fewer normal ones of a category than shots.
        """
        params, ctx = self.params, self.ctx
        labels = torch.tensor([sample.label for sample in train.samples], device=ctx.device)
        normal, anomalous = ([i for i, s in enumerate(train.samples) if s.label == label] for label in (0, 1))
        if not normal or not anomalous:
            raise DataError(
                f"inctrl learns from normal and anomalous images, and was given {len(normal)} and {len(anomalous)}.",
                "Type: --setting generalist --source NAME",
            )
        draw = PromptDraw(train.samples, ctx.shots, ctx.seed)
        order = BalancedOrder(normal, anomalous, params.batch_size, params.epochs, params.steps_per_epoch, ctx.seed)
        source = FeatureSource(train, self._features, params.batch_size, ctx, exact=True)
        steps = params.epochs * params.steps_per_epoch

        def wanted(step: int) -> list[int]:
            queries = order.batch(step)
            return queries + draw.of_step(step, queries)

        def loss(indices: list[int], step: int) -> Tensor:
            features = source.batch(wanted(step), wanted(step + 1) if step + 1 < steps else ())
            every = Encoded(torch.stack([from_grid(group) for group in features.groups]), features.fused[:, 0])
            count = len(indices)
            queries = Encoded(every.layers[:, :count], every.pooled[:count])
            prompts = Encoded(every.layers[:, count:], every.pooled[count:])
            output = self.compare(queries, prompts, [train.samples[i].category for i in indices])
            return inctrl_loss(output, labels[indices], params.gamma)

        self.trainer(loss, order, steps).run()

    def compare(self, queries: Encoded, prompts: Encoded, categories: list[str]) -> InCtrlOutput:
        """Training's forward pass: B queries, prompt s of query i at s * B + i, the category of each query."""
        with torch.no_grad():
            found, pooled = batch_residuals(queries, prompts, official=self.params.train_residuals == "official")
            text = self.text_scores(queries.pooled, categories)
        output: InCtrlOutput = self.heads(queries.pooled, pooled, found.amap, text)
        return output

    def trainer(self, loss: LossFunction, order: Order, steps: int) -> Trainer:
        """The loop: AdamW on everything that is trained, constant rate, no clipping."""
        params = self.params
        optimiser = torch.optim.AdamW(self.heads.parameters(), lr=params.lr, weight_decay=params.weight_decay)
        return Trainer(
            module=self.heads,
            optimiser=optimiser,
            schedule=lambda step: params.lr,
            loss=loss,
            order=order,
            steps=steps,
            clip_norm=float("inf"),
            ctx=self.ctx,
            advice="Type: --set inctrl.lr=5e-4",
        )

    def _features(self, images: Tensor) -> Features:
        """`encode` as the cache of features stores it."""
        found = self.encode(images)
        return Features(found.pooled[:, None], tuple(to_grid(layer, (self.side, self.side)) for layer in found.layers))

    # --- the category and the prediction ------------------------------------------------------------------------------

    def enter(self, category: str, references: TrainingSet | None) -> None:
        """Encode the category's words and prompts; `UsageError` without prompts."""
        size = (self.towers.architecture.image,) * 2
        blank = torch.empty(0, 3, *size, device=self.ctx.device, dtype=self.ctx.dtype)
        images = self._kept.enter(category, references, blank, needed=True)
        self._text = self.prototypes(category)
        found = [self.encode(image[None]) for image in images]
        self._prompts = Encoded(torch.cat([f.layers for f in found], dim=1), torch.cat([f.pooled for f in found]))

    def score(self, images: Tensor) -> tuple[InCtrlOutput, Tensor]:
        """Images (B, 3, H, W) of the entered category -> everything, and the map (B, N)."""
        if self._text is None or self._prompts is None:
            raise UsageError("inctrl does not know what it looks at.", "Name the category: --category NAME")
        queries, prompts, batch = self.encode(images), self._prompts, len(images)
        if self.params.test_residuals == "official":
            found, pooled = batch_residuals(queries, repeated(prompts, batch), official=True)
        else:
            found, pooled = residuals(queries, prompts), prompts.pooled.expand(batch, -1, -1)
        text = text_score(queries.pooled, self._text, 100.0)
        return self.heads(queries.pooled, pooled, found.amap, text), found.amap

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Images (B, 3, H, W) of the entered category -> map (B, h, w) and score (B,)."""
        self.heads.eval()
        output, amap = self.score(images)
        return Prediction(amap.reshape(-1, self.side, self.side), output.score)

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Adapter and heads, and the prompts of the categories entered so far."""
        return {**self.heads.state_dict(), **self._kept.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; call `enter` next. Raises `WeightsError` naming what differs."""
        load_strictly(self.heads, self._kept.split(state), "inctrl")
        self._text = self._prompts = None

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """An official checkpoint: both towers without `logit_scale`, adapter and heads. Raises `WeightsError` naming what differs.

        The original loads what fits and silently leaves the rest: here every key and shape must agree.
        """
        heads = {key: value for key, value in state.items() if key.startswith(HEADS)}
        towers = {key: value for key, value in state.items() if key not in heads}
        if not heads:
            raise WeightsError(
                f"The file holds no adapter.* and diff_head.*, found {', '.join(list(state)[:3])}.",
                "Give a checkpoint of InCTRL; CLIP's own file goes to --weights.",
            )
        load_strictly(self.heads, heads, "inctrl")
        self.towers.load_official({"logit_scale": self.towers.model.logit_scale, **towers})
        self._texts.clear()
        self._text = self._prompts = None
