"""What every reconstruction method does: encode, decode, compare, train.

    features = encode(images)       frozen encoder; Features(fused tokens, grouped maps)
    output   = decode(features)     the trainable network; `targets` and `outputs` are groups of maps (B, D, h, w)
    map      = mean over groups of 1 - cos(target, output) over channels
A method supplies the network, the loss and the number of steps. Official checkpoints are the network's tensors and, under
`encoder.`, the encoder's.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inpbench.harness.api import Context, Prediction, TrainingSet
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.compiled_update import CompiledUpdate
from inpbench.methods.compiling import CompiledOnce, compiles
from inpbench.methods.encoders import build_encoder
from inpbench.methods.features import FeatureSource
from inpbench.methods.fusion import Features, gather, is_partition, mean_of
from inpbench.methods.losses import Passes, cosine_distance, mixture, point_sums
from inpbench.methods.optim import StableAdamW
from inpbench.methods.reconstruction_params import ReconstructionParams
from inpbench.methods.schedule import WarmCosine
from inpbench.methods.shards import Shard, spread
from inpbench.methods.training import BatchOrder, LossFunction, Trainer


class Reconstruction(Protocol):
    """What a network returns, at least."""

    @property
    def targets(self) -> tuple[Tensor, ...]:
        """Grouped encoder maps, each (B, D, h, w)."""
        ...

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Grouped decoder maps, each (B, D, h, w)."""
        ...


def _by_shape(function: CompiledOnce, first: Tensor, *others: Tensor) -> Any:
    """The function, compiled for the shape of its first argument."""
    return function(tuple(first.shape), first, *others)


class _Whole(nn.Module):
    """Encoder and network as one module, for the official state dict."""

    def __init__(self, encoder: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        for name, child in network.named_children():
            setattr(self, name, child)
        for name, parameter in network.named_parameters(recurse=False):
            setattr(self, name, parameter)


class ReconstructionMethod(ABC):
    """Base of INP-Former, Dinomaly and CRR: a `harness.api.Method` but for `build`, `loss` and `total_steps`."""

    keep_prefix: bool = False  # whether class and register tokens go through the network
    advice: str = "Lower the learning rate or lengthen the warm-up."  # where the loss is not finite

    def __init__(self, params: ReconstructionParams, ctx: Context) -> None:
        params.check()
        self.params, self.ctx = params, ctx
        self.shard = Shard()  # of each batch; `fit` sets it where several processes train together
        self.encoder = build_encoder(params.encoder, ctx, params.crop_size)
        self.grid = self.encoder.grid(params.crop_size)
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU in float32, whatever the device
            torch.manual_seed(ctx.seed)
            self.network = self.build()
        self.network.to(device=ctx.device, dtype=ctx.dtype).eval()
        if ctx.engine == "fast":
            for module in self.network.modules():
                if hasattr(module, "narrow"):
                    setattr(module, "narrow", True)  # noqa: B010 - its type is unknown
        if ctx.engine == "reference":
            for module in self.encoder.modules():
                if hasattr(module, "fused_attn"):  # timm's: attention by its explicit matrix, as the originals
                    setattr(module, "fused_attn", False)  # noqa: B010 - its type is unknown
        compiled = compiles(ctx)
        self._layers = CompiledOnce(self.encoder.layers, "the encoder in training", compiled)
        self._test_layers = CompiledOnce(self.encoder.layers, "the encoder", compiled)  # another batch, and in inference mode
        self._train_network = CompiledOnce(self.network, "the network in training", compiled)
        self._test_network = CompiledOnce(self.network, "the network", compiled)
        sums, gradient = (CompiledOnce(part, f"the loss's {part.__name__}", compiled) for part in (point_sums, mixture))
        self.passes = Passes(partial(_by_shape, sums), partial(_by_shape, gradient))

    # --- supplied by a method ---------------------------------------------------------------------------------------

    @abstractmethod
    def build(self) -> nn.Module:
        """The trainable network, initialised from torch's CPU generator."""

    @abstractmethod
    def loss(self, output: Reconstruction, step: int) -> Tensor:
        """The training loss of a batch at a step (0-based), with its gradient hooks registered."""

    @abstractmethod
    def total_steps(self, per_epoch: int) -> int:
        """Optimiser steps of a run whose epoch has `per_epoch` steps."""

    # --- the road of an image -----------------------------------------------------------------------------------------

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 products on CUDA with the fast engine; the parameters and the losses stay float32."""
        if self.ctx.engine == "fast" and self.ctx.device.type == "cuda" and self.ctx.dtype == torch.float32:
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Features:
        """Images (B, 3, H, W) -> the frozen features of each."""
        run = self._test_layers if torch.is_inference_mode_enabled() else self._layers
        with self._autocast():
            layers = run(tuple(images.shape), images, self.params.layers)
        layers = [layer.to(self.ctx.dtype) for layer in layers]
        return gather(layers, self.params.encoder_groups, self.encoder.grid((images.shape[-2], images.shape[-1])), self.keep_prefix)

    def decode(self, features: Features) -> Reconstruction:
        """Reconstruct the groups of encoder layers from the features."""
        with self._autocast():
            network = self._train_network if torch.is_grad_enabled() else self._test_network
            output: Reconstruction = network(tuple(features.fused.shape), features)
        return output

    def distances(self, output: Reconstruction) -> tuple[Tensor, ...]:
        """The map (B, 1, h, w) of each group."""
        return tuple(cosine_distance(a, b) for a, b in zip(output.targets, output.outputs, strict=True))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Images (B, 3, H, W) -> the mean of the groups' maps on the token grid (B, h, w)."""
        self.network.eval()
        output = self.decode(self.encode(images))
        return Prediction(mean_of(self.distances(output))[:, 0])

    # --- training -------------------------------------------------------------------------------------------------------

    def optimiser(self) -> StableAdamW:
        """StableAdamW over all trainable tensors in one group; its learning rate is set at each step."""
        params = self.params
        return StableAdamW(
            self.network.parameters(),
            lr=params.lr,
            weight_decay=params.weight_decay,
            eps=params.eps,
            amsgrad=True,
            foreach=self.ctx.engine == "fast",
            compiled=CompiledUpdate() if compiles(self.ctx) else None,
        )

    def schedule(self, steps: int) -> WarmCosine:
        """The learning rate of each step."""
        params = self.params
        return WarmCosine(base=params.lr, final=params.final_lr, total=steps, warmup=params.warmup)

    def fit(self, train: TrainingSet) -> None:
        """Train the network; goes on from `ctx.snapshots` if there is one."""
        order = BatchOrder(len(train), self.params.batch_size, self.ctx.seed)
        self.shard = Shard(self.ctx.ranks, order.size)
        spread(self.network, self.shard)
        partition = is_partition(self.params.encoder_groups, len(self.params.layers))
        source = FeatureSource(train, self.encode, self.params.batch_size, self.ctx, partition, shard=self.shard)

        def loss(indices: list[int], step: int) -> Tensor:
            return self.loss(self.decode(source.batch(indices, order.batch(step + 1))), step)

        self.train_network(order, loss, self.total_steps(order.per_epoch))

    def train_network(self, order: BatchOrder, loss: LossFunction, steps: int) -> None:
        """The training loop of the network with the parameters' optimiser, schedule and clipping."""
        trainer = Trainer(
            module=self.network,
            optimiser=self.optimiser(),
            schedule=self.schedule(steps),
            loss=loss,
            order=order,
            steps=steps,
            clip_norm=self.params.clip_norm,
            ctx=self.ctx,
            advice=self.advice,
            shard=self.shard,
        )
        trainer.run()

    # --- tensors --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The trained tensors, without the encoder."""
        return dict(self.network.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; raises `WeightsError` naming the first keys or shapes that differ."""
        load_strictly(self.network, state, type(self).__name__)

    def official_state(self) -> dict[str, Tensor]:
        """Everything under the names of an official `model.pth`, the encoder included."""
        return dict(_Whole(self.encoder, self.network).state_dict())

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load an official `model.pth`, encoder included; strict, raises `WeightsError` naming what differs."""
        load_strictly(_Whole(self.encoder, self.network), state, f"{type(self).__name__} with encoder {self.params.encoder}")
