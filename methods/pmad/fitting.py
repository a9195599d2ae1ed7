"""The two trainings of a fit, on the loop that all gradient methods share.

The fast engine computes once what never changes: the tokens of each image and, without augmentation, its patch vectors (where
memory has room for them). The reference engine computes them at every step. No number depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inpbench.harness.api import Context, TrainingSet
from inpbench.methods.features import available_memory
from inpbench.methods.pmad.flow import ProtoFlow
from inpbench.methods.pmad.flow_training import FlowSchedule, augmented
from inpbench.methods.pmad.masks import MVTEC_RATIOS, MaskPlan
from inpbench.methods.pmad.model import ReconstructionModel, initialise
from inpbench.methods.pmad.params import PATCH, SIDE, PmadParams, beit_file
from inpbench.methods.pmad.proposal import count_of
from inpbench.methods.pmad.prototypes import residuals
from inpbench.methods.pmad.recon_training import ReconstructionTraining, parameter_groups
from inpbench.methods.pmad.stages import Stage
from inpbench.methods.pmad.transformer import TrunkShape
from inpbench.methods.schedule import WarmCosine
from inpbench.methods.training import BatchOrder, Trainer

if TYPE_CHECKING:
    from inpbench.methods.pmad.method import Pmad

BATCH = 16  # images at a time where nothing depends on it
_STEP_STRIDE = 1_000_003


def build_model(params: PmadParams, vocabulary: int, ctx: Context) -> ReconstructionModel:
    """The reconstruction model before training: by the official rule from torch's generator, then BEiT's tensors where asked for.

    BEiT's head has 8192 tokens; with another vocabulary the head is drawn.
    """
    shape = TrunkShape(
        dim=params.dim, depth=params.depth, heads=params.heads, layer_scale=params.layer_scale, drop_path=params.drop_path
    )
    model = ReconstructionModel(shape, vocabulary)
    initialise(model)
    state = ctx.weights.state(beit_file(params)) if params.begins == "beit" else None
    if state is not None:
        own = model.state_dict()
        head = state.get("lm_head.weight")
        if head is None or len(head) != vocabulary:
            state = {**state, "lm_head.weight": own["lm_head.weight"], "lm_head.bias": own["lm_head.bias"]}
        model.load_official(state)
    return model.to(device=ctx.device, dtype=ctx.dtype).eval()


class Embedded:
    """Patch vectors of images by index: kept in host memory where an image is asked for more than once and there is room."""

    def __init__(self, method: Pmad, images: TrainingSet, again: bool) -> None:
        ctx = method.ctx
        self._method, self._images = method, images
        self._kept: Tensor | None = None  # (n, C, h, w)
        self._done = torch.zeros(len(images), dtype=torch.bool)
        self._again = again and ctx.engine == "fast" and ctx.cache != "none"

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Patch vectors (B, C, h, w) on the device."""
        rows = list(indices)
        if self._kept is not None and bool(self._done[rows].all()):
            return self._kept[rows].to(self._method.ctx.device)
        found = self._method.embed(self._images.batch(rows))
        if self._again:
            self._keep(rows, found)
        return found

    def _keep(self, rows: list[int], found: Tensor) -> None:
        if self._kept is None:
            ctx = self._method.ctx
            room = ctx.cache_bytes if ctx.cache_bytes is not None else available_memory() // 2
            if found[0].numel() * found.element_size() * len(self._images) > room:
                self._again = False
                return
            self._kept = found.new_empty((len(self._images), *found.shape[1:]), device="cpu")
        self._kept[rows] = found.cpu()
        self._done[rows] = True


def train_flow(method: Pmad, flow: ProtoFlow, train: TrainingSet, vectors: Embedded, used: Sequence[tuple[int, str]]) -> None:
    """Train the flow on the images (index, category) `used`, each against the prototypes of its category."""
    params, ctx = method.params, method.ctx
    order = BatchOrder(len(used), params.flow_batch, ctx.seed)
    per_epoch = order.per_epoch * params.flow_passes

    def loss(chosen: list[int], step: int) -> Tensor:
        rows = [used[i][0] for i in chosen]
        if params.flow_augment:
            generator = torch.Generator().manual_seed(ctx.seed * _STEP_STRIDE + step)
            embedded = method.embed(augmented(train.pixels(rows), ctx.dtype, generator))
        else:
            embedded = vectors.batch(rows)
        left = [residuals(one[None], method.banks[used[i][1]].prototypes).maps for one, i in zip(embedded, chosen, strict=True)]
        return flow.loss(torch.cat(left))

    trainer = Trainer(
        module=flow,
        optimiser=torch.optim.Adam([value for value in flow.parameters() if value.requires_grad], lr=params.flow_lr),
        schedule=FlowSchedule(lr=params.flow_lr, meta_epochs=params.flow_epochs, per_epoch=per_epoch),
        loss=loss,
        order=order,
        steps=params.flow_epochs * per_epoch,
        clip_norm=float("inf"),
        ctx=_context(method, "flow"),
        advice="Lower the flow's learning rate: --set pmad.flow_lr=1e-4",
    )
    trainer.run()


def train_reconstruction(method: Pmad, model: ReconstructionModel, train: TrainingSet) -> None:
    """Train the reconstruction model to name the tokens of hidden patches."""
    params, ctx = method.params, method.ctx
    number = {category: k for k, category in enumerate(train.categories)}
    shares = [MVTEC_RATIOS.get(c, params.hide) if params.hide_by == "mvtec_ad" else params.hide for c in train.categories]
    plan = MaskPlan(SIDE, PATCH, params.block_cap, params.frequency)
    counts = [count_of(share, SIDE**2) for share in shares]
    training = ReconstructionTraining(model, plan, counts, ctx.seed, params.dynamic_from).to(ctx.device)
    order = BatchOrder(len(train), params.batch_size, ctx.seed)
    known = _tokens(method, train) if ctx.engine == "fast" and ctx.cache != "none" else None

    def loss(chosen: list[int], step: int) -> Tensor:
        epoch = step // order.per_epoch
        training.begin(epoch)
        images = train.batch(chosen)
        ids = method.ids(images) if known is None else known[chosen]
        categories = [number[train.samples[i].category] for i in chosen]
        host = images.cpu()
        masks = torch.stack([training.mask(host[k], index, categories[k], epoch) for k, index in enumerate(chosen)])
        with method.autocast():
            return training.loss(images, ids, masks.to(ctx.device), categories, epoch)

    total, warm = params.epochs * order.per_epoch, params.warmup_epochs * order.per_epoch
    trainer = Trainer(
        module=training,
        optimiser=torch.optim.AdamW(parameter_groups(model, params.weight_decay), lr=params.lr, betas=(0.9, 0.999), eps=1e-8),
        schedule=WarmCosine(base=params.lr, final=params.final_lr, total=total, warmup=warm),
        loss=loss,
        order=order,
        steps=total,
        clip_norm=params.clip_norm,
        ctx=_context(method, "reconstruction"),
        advice="Lower the learning rate: --set pmad.lr=5e-4",
    )
    trainer.run()
    model.eval()


def _tokens(method: Pmad, train: TrainingSet) -> Tensor:
    """The tokens of all training images (n, N) int64 on the device: 1.6 kB an image."""
    found = []
    for start in range(0, len(train), BATCH):
        indices = list(range(start, min(start + BATCH, len(train))))
        found.append(method.ids(train.batch(indices)))
        method.ctx.progress(indices[-1] + 1, len(train), "tokens")
    return torch.cat(found)


def _context(method: Pmad, stage: str) -> Context:
    """The method's context; its snapshots and its progress say which training they are of."""
    ctx = method.ctx

    def progress(done: int, total: int, text: str = "", **numbers: float) -> None:
        ctx.progress(done, total, f"{stage} {text}", **numbers)

    return replace(ctx, snapshots=Stage(ctx.snapshots, stage, method.state), progress=progress)
