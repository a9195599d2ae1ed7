"""CRR as a method under test: stage I reconstructs and repairs, stage II segments what the reconstruction disagrees with.

Stage I is Dinomaly behind a feature mask, with a second term: the features of the clean image from those of a synthetic anomaly.
Stage II freezes it and trains a convolutional network on synthetic images alone. The map is 0.7 cosine + 0.3 segmentation.
Known deviations: masks are drawn on the device, and at test time once for all images (`CrrParams`). The published stage-I script
does not run, and stage II loads a folder that nothing writes: this is what both say they do. `synthesis` has its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import Context, Prediction, TrainingSet
from inpbench.harness.errors import WeightsError
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.crr import CrrParams
from inpbench.methods.crr.masking import MaskedMlp
from inpbench.methods.crr.segmentation import SegmentationNetwork, disagreement, focal_loss
from inpbench.methods.crr.synthetic_images import SyntheticBatch, SyntheticImages, segmentation_target
from inpbench.methods.features import FeatureSource
from inpbench.methods.fusion import Features, is_partition, mean_of
from inpbench.methods.noisy import NoisyReconstruction
from inpbench.methods.reconstruction import Reconstruction
from inpbench.methods.training import BatchOrder, Trainer

SEGMENTATION = "segmentation"  # the name of stage II in snapshots, and the prefix of its tensors in `state()`
STAGE_ONE = ("encoder.", "bottleneck.", "decoder.")  # keys of an official model.pth; all others are the segmentation network's


class Crr(NoisyReconstruction):
    """`harness.api.Method` of CRR."""

    params: CrrParams

    def __init__(self, params: CrrParams, ctx: Context) -> None:
        super().__init__(params, ctx)
        self.segmentation: SegmentationNetwork | None = None
        if params.fusion != "cosine":
            channels = self.encoder.dim * len(params.encoder_groups)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(ctx.seed)
                width = params.segmentation_width or channels // 8
                self.segmentation = SegmentationNetwork(channels, width, params.segmentation_size)
            self.segmentation.to(device=ctx.device, dtype=ctx.dtype).eval()
        self._freeze_mask()

    def bottleneck(self) -> MaskedMlp:
        """The dropout MLP behind the mask."""
        return MaskedMlp(self.encoder.dim, self.params.dropout, self.params.mask_share)

    @property
    def mask(self) -> MaskedMlp:
        """The bottleneck of the network."""
        mask = self.network.bottleneck[0]  # type: ignore[index]
        assert isinstance(mask, MaskedMlp)
        return mask

    def _freeze_mask(self, tokens: int | None = None) -> None:
        """One mask for all images of so many tokens; none: those of the crop."""
        tokens = tokens or self.grid[0] * self.grid[1] + (self.encoder.prefix if self.keep_prefix else 0)
        self.mask.freeze(self.params.mask_at_test, (tokens, self.encoder.dim), self.params.mask_seed)

    # --- training -------------------------------------------------------------------------------------------------------

    def fit(self, train: TrainingSet) -> None:
        """Train both stages; goes on from `ctx.snapshots` in whichever it was."""
        self.mask.thaw()
        snapshot = self.ctx.snapshots.load()
        if snapshot is not None and snapshot.get("kind") == SEGMENTATION:
            load_strictly(self.network, snapshot["kept"], "CRR's stage I")
        else:
            self._train_reconstruction(train)
        if self.segmentation is not None:
            self._train_segmentation(train, self.segmentation)
        self._freeze_mask()

    def _train_reconstruction(self, train: TrainingSet) -> None:
        """Stage I. The features of the clean images are kept like Dinomaly's; those of the anomalies are new at each step."""
        order = BatchOrder(len(train), self.params.batch_size, self.ctx.seed)
        partition = is_partition(self.params.encoder_groups, len(self.params.layers))
        source = FeatureSource(train, self.encode, self.params.batch_size, self.ctx, partition)
        steps = self.total_steps(order.per_epoch)
        synthetic = SyntheticImages(train, self.params, self.ctx, 1, steps)

        def loss(indices: list[int], step: int) -> Tensor:
            coming = order.batch(step + 1)
            changed = self.encode(synthetic.batch(indices, step, coming).images)
            normal, repair = self.repair_losses(source.batch(indices, coming), changed, step)
            return normal + repair

        try:
            self.train_network(order, loss, steps)
        finally:
            synthetic.close()

    def repair_losses(self, clean: Features, changed: Features, step: int) -> tuple[Tensor, Tensor]:
        """The clean image from itself and from its changed version, each with a mask, dropout and mining of its own."""
        output = self.decode(clean)
        repaired = self.decode(changed)
        return self.mined(output.targets, output.outputs, step), self.mined(output.targets, repaired.outputs, step)

    def _train_segmentation(self, train: TrainingSet, network: SegmentationNetwork) -> None:
        """Stage II: Adam at a constant rate, no clipping, stage I frozen but for its masks."""
        params = self.params
        order = BatchOrder(len(train), params.segmentation_batch, self.ctx.seed)
        steps = params.segmentation_steps or params.SEGMENTATION_STEPS.get(
            self.ctx.setting, params.SEGMENTATION_STEPS["multi_class"]
        )
        synthetic = SyntheticImages(train, params, self.ctx, 2, steps)
        self.network.eval()
        trainer = Trainer(
            module=network,
            optimiser=self.segmentation_optimiser(),
            schedule=lambda step: params.segmentation_lr,
            loss=lambda indices, step: self.segmentation_loss(synthetic.batch(indices, step, order.batch(step + 1))),
            order=order,
            steps=steps,
            clip_norm=math.inf,
            ctx=self.ctx,
            advice="Type: --set crr.segmentation_lr=1e-5",
            stage=SEGMENTATION,
            kept=self.network.state_dict(),
        )
        try:
            trainer.run()
        finally:
            synthetic.close()

    def segmentation_optimiser(self) -> torch.optim.Optimizer:
        """Adam over the segmentation network."""
        assert self.segmentation is not None
        return torch.optim.Adam(self.segmentation.parameters(), lr=self.params.segmentation_lr)

    def segmentation_loss(self, batch: SyntheticBatch) -> Tensor:
        """The focal loss of a batch with synthetic anomalies."""
        logits = self.logits(self.disagreement(batch.images))
        target = segmentation_target(batch.masks, self.params.segmentation_size)
        return focal_loss(logits.softmax(dim=1), target)

    # --- the road of an image ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def disagreement(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> what the segmentation network sees (B, G D, h, w), without gradient."""
        output = self.decode(self.encode(images))
        return disagreement(output.targets, output.outputs)

    def logits(self, disagreement: Tensor) -> Tensor:
        """(B, G D, h, w) -> (B, 2, *segmentation_size) of the context's dtype."""
        assert self.segmentation is not None
        with self._autocast():
            logits: Tensor = self.segmentation(disagreement)
        return logits.to(self.ctx.dtype)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Images (B, 3, H, W) -> the fused map (B, *map_size), or with `cosine` that of stage I on the token grid."""
        self.network.eval()
        features = self.encode(images)
        if self.mask.frozen is None or (self.mask.frozen.ndim == 2 and self.mask.frozen.shape[0] != features.fused.shape[1]):
            self._freeze_mask(features.fused.shape[1])
        output = self.decode(features)
        if self.segmentation is None:
            return Prediction(mean_of(self.distances(output))[:, 0])
        return Prediction(self.fuse(self.cosine_map(output), self.segmentation_map(output))[:, 0])

    def cosine_map(self, output: Reconstruction) -> Tensor:
        """(B, 1, *map_size): the groups' mean of 1 - cos, enlarged in one step."""
        size = self.params.map_size
        return mean_of([F.interpolate(d, size=size, mode="bilinear", align_corners=True) for d in self.distances(output)])

    def segmentation_map(self, output: Reconstruction) -> Tensor:
        """(B, 1, *map_size): the probability of an anomaly."""
        assert self.segmentation is not None
        self.segmentation.eval()
        probability = self.logits(disagreement(output.targets, output.outputs)).softmax(dim=1)[:, 1:]
        if probability.shape[-2:] == torch.Size(self.params.map_size):
            return probability
        return F.interpolate(probability, size=self.params.map_size, mode="bilinear", align_corners=False)

    def fuse(self, cosine: Tensor, probability: Tensor) -> Tensor:
        """Both maps as one, by the rule of `fusion`."""
        weight = self.params.cosine_weight
        if self.params.fusion == "weighted":
            return weight * cosine + (1.0 - weight) * probability
        if self.params.fusion == "sum":
            return cosine + probability
        return torch.maximum(cosine, probability) if self.params.fusion == "max" else torch.minimum(cosine, probability)

    # --- tensors ------------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The trained tensors of both stages, without the encoder."""
        state = super().state()
        if self.segmentation is not None:
            state |= {f"{SEGMENTATION}.{key}": value for key, value in self.segmentation.state_dict().items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; raises `WeightsError` naming the first keys or shapes that differ."""
        prefix = f"{SEGMENTATION}."
        super().load_state({key: value for key, value in state.items() if not key.startswith(prefix)})
        if self.segmentation is not None:
            second = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            load_strictly(self.segmentation, second, "CRR's segmentation network")

    def official_files(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each official file by its name; the encoder is in the first."""
        files = {"model.pth": super().official_state()}
        if self.segmentation is not None:
            files["Seg_model_last.pth"] = dict(self.segmentation.state_dict())
        return files

    def official_state(self) -> dict[str, Tensor]:
        """The tensors of both official files together: no key is in both."""
        return {key: value for file in self.official_files().values() for key, value in file.items()}

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of `model.pth` and `Seg_model_*.pth` together; strict, raises `WeightsError` naming what differs."""
        first = {key: value for key, value in state.items() if key.startswith(STAGE_ONE)}
        second = {key: value for key, value in state.items() if key not in first}
        if not first:
            raise WeightsError(
                "The checkpoint has a segmentation network, but not CRR's stage I.",
                "Give a folder that holds model.pth and one Seg_model_*.pth: --checkpoint FOLDER",
            )
        super().load_official(first)
        if self.segmentation is None:
            return
        if not second:
            raise WeightsError(
                "The checkpoint is CRR's stage I (or Dinomaly's model: both have the same keys) without a segmentation network.",
                "Give a folder that holds model.pth and one Seg_model_*.pth, or type: --set crr.fusion=cosine",
            )
        load_strictly(self.segmentation, second, "CRR's segmentation network")
