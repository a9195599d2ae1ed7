"""The parameters that all reconstruction methods have; importing this file imports no torch.

A reconstruction method reads `target_layers` of a frozen encoder, averages them in groups, and trains a decoder to reproduce the
groups. Defaults are those that INP-Former and Dinomaly share; each overrides what is its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from inpbench.harness.api import Preprocess, Size, WeightSpec
from inpbench.harness.errors import UsageError
from inpbench.methods.encoder_table import EncoderEntry, get_encoder

Groups = tuple[tuple[int, ...], ...]

# Presets that every reconstruction method has, to which each adds its own values.
FAST: Mapping[str, Any] = {"steps": 2000}
# For small data sets and the built-in encoder, two CPU cores and a minute: half the decoder, small crops, a steep schedule.
DEMO: Mapping[str, Any] = {
    "steps": 300,
    "batch_size": 8,
    "input_size": (224, 224),
    "crop_size": (196, 196),
    "decoder_depth": 4,
    "decoder_groups": ((0, 1), (2, 3)),
    "warmup": 20,
}
SMOKE: Mapping[str, Any] = {"steps": 6, "batch_size": 4, "input_size": (128, 128), "crop_size": (112, 112), "warmup": 2}


@dataclass(frozen=True, kw_only=True)
class ReconstructionParams:
    """See the module docstring. Where no source is given, both official repositories have the value."""

    NAME: ClassVar[str] = "METHOD"  # of the method, for messages
    AT_LEAST: ClassVar[dict[str, float]] = {  # smallest legal values
        "decoder_depth": 1,
        "steps": 1,
        "batch_size": 1,
        "lr": 0.0,
        "final_lr": 0.0,
        "warmup": 0,
        "weight_decay": 0.0,
        "eps": 0.0,
    }

    encoder: str = "dinov2reg_vit_base_14"  # a name of the encoder table
    input_size: Size = (448, 448)  # resize, aspect ratio not kept
    crop_size: Size = (392, 392)  # centre crop; sides are multiples of the encoder's patch
    target_layers: tuple[int, ...] | None = None  # encoder blocks, 0-based; none: 2-9, or 4,6,...,18 of a large encoder
    encoder_groups: Groups = ((0, 1, 2, 3), (4, 5, 6, 7))  # positions in target_layers
    decoder_groups: Groups = ((0, 1, 2, 3), (4, 5, 6, 7))  # positions in the reversed list of decoder blocks
    decoder_depth: int = 8  # decoder blocks
    steps: int | None = None  # optimiser steps; none: the paper's
    batch_size: int = 16  # images a step; the last, smaller batch of an epoch is dropped
    lr: float = 1e-3  # highest learning rate
    final_lr: float = 1e-4  # learning rate at the end of the cosine
    warmup: int = 100  # steps of linear warm-up from 0
    weight_decay: float = 1e-4  # on every trainable tensor
    eps: float = 1e-10  # epsilon of StableAdamW
    clip_norm: float = 0.1  # largest L2 norm of all gradients

    @property
    def preprocess(self) -> Preprocess:
        """Resize and centre crop, ImageNet normalisation for every encoder."""
        return Preprocess(resize=self.input_size, crop=self.crop_size)

    @property
    def entry(self) -> EncoderEntry:
        """The encoder's entry in the table."""
        return get_encoder(self.encoder)

    @property
    def layers(self) -> tuple[int, ...]:
        """The encoder blocks whose outputs are used."""
        return self.target_layers if self.target_layers is not None else self.entry.target_layers

    @property
    def grid(self) -> Size:
        """(h, w) tokens of a crop."""
        return self.entry.grid(self.crop_size)

    def check(self) -> None:
        """Raise `UsageError` for values that do not go together."""
        for name, least in self._limits().items():
            value = getattr(self, name)
            if value is not None and value < least:
                self._refuse(name, f"at least {least:g}", value)
        if self.clip_norm <= 0.0:
            self._refuse("clip_norm", "above 0", self.clip_norm)
        if any(crop > side for crop, side in zip(self.crop_size, self.input_size, strict=True)):
            self._refuse("crop_size", f"at most input_size {self.input_size[0]}x{self.input_size[1]}", self.crop_size)
        depth = self.entry.depth
        if not self.layers or len(set(self.layers)) != len(self.layers) or not all(0 <= layer < depth for layer in self.layers):
            self._refuse("target_layers", f"different blocks from 0 to {depth - 1}", self.layers)
        self._check_groups("encoder_groups", self.encoder_groups, len(self.layers))
        self._check_groups("decoder_groups", self.decoder_groups, self.decoder_depth)
        if len(self.encoder_groups) != len(self.decoder_groups):
            self._refuse("decoder_groups", f"as many groups as encoder_groups ({len(self.encoder_groups)})", self.decoder_groups)
        try:
            self.entry.grid(self.crop_size)
        except UsageError as error:
            raise UsageError(error.message, error.hint.replace("METHOD", self.NAME)) from None

    def _limits(self) -> dict[str, float]:
        known = {field.name for field in fields(self)}
        limits = {name: least for kind in reversed(type(self).__mro__) for name, least in getattr(kind, "AT_LEAST", {}).items()}
        return {name: least for name, least in limits.items() if name in known}

    def _check_groups(self, name: str, groups: Sequence[Sequence[int]], count: int) -> None:
        if not groups or not all(groups) or not all(0 <= index < count for group in groups for index in group):
            self._refuse(name, f"non-empty groups of positions from 0 to {count - 1}", groups)

    def _refuse(self, name: str, expected: str, found: object) -> None:
        raise UsageError(f"{self.NAME}.{name}: expected {expected}, found {found}.", f"Type: --set {self.NAME}.{name}=VALUE")


def encoder_weights(params: ReconstructionParams) -> tuple[WeightSpec, ...]:
    """The weight files of a parameter set: its encoder's."""
    return (params.entry.weights,)
