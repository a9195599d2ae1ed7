"""The default tokenizer: BEiT v2's VQ-KD encoder, whose patch codes are looked up in a code book by distance.

    z = unit(task(LN(ViT(2 x - 1))));  id = argmin_e |z|^2 + |e|^2 - 2 z . e     (first on ties, code book rows as stored)
The decoder is not used by PMAD; it is here because an official file holds it and is loaded strictly.
Known deviations: the original scales a batch by 255 only if its largest value is at most 1, here pixels are always in [0, 1]; its
usage counter of the code book moves at every call even in eval mode, here only where `count_usage` asks for it; no id depends on
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness.errors import WeightsError
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.pmad.transformer import NORM_EPS, Trunk, TrunkShape

USAGE_DECAY = 0.99
COMMITMENT = 1.0  # weight of the commitment loss
BASE = TrunkShape(absolute=True, shared_bias=False, layer_scale=None)
_NOT_OURS = ("loss", "teacher", "scaling")  # beginnings of keys of an official file that are no part of the tokenizer


class _Half(Trunk):
    """A transformer whose patch tokens are normalised at the end."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__(shape)
        self.fc_norm = nn.LayerNorm(shape.dim, eps=NORM_EPS)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> patch tokens (B, N, D)."""
        tokens: Tensor = self.fc_norm(self.run(self.patch_embed(maps))[:, 1:])
        return tokens


class _CodeBook(nn.Module):
    """Codes (V, c) under the official names, with the buffers of its training."""

    cluster_size: Tensor
    embed_avg: Tensor
    initted: Tensor

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(codes, width))
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.register_buffer("embed_avg", torch.zeros(codes, width))
        self.register_buffer("initted", torch.ones(1))


class _Quantiser(nn.Module):
    cluster_size: Tensor  # running share of each code in the images seen

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.embedding = _CodeBook(codes, width)

    def distances(self, z: Tensor) -> Tensor:
        """Squared distances (..., V) of unit codes z (..., c) to the code book."""
        book = self.embedding.weight
        return z.square().sum(-1, keepdim=True) + book.square().sum(1) - 2.0 * z @ book.T


class VqTokenizer(nn.Module):
    """Images to ids. codes: V; width: numbers of a code; target: numbers a decoded patch has."""

    def __init__(
        self, encoder: TrunkShape = BASE, codes: int = 8192, width: int = 32, decoder_depth: int = 1, target: int = 512
    ) -> None:
        super().__init__()
        decoder = replace(encoder, image=encoder.side, patch=1, channels=width, depth=decoder_depth)
        dim = encoder.dim
        self.vocabulary, self.side, self.input_size = codes, encoder.side, encoder.image
        self.encoder, self.decoder = _Half(encoder), _Half(decoder)
        self.quantize = _Quantiser(codes, width)
        self.encode_task_layer = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, width))
        self.decode_task_layer = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, target))
        self.count_usage = False

    def codes(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> codes before they are made unit vectors (B, N, c)."""
        codes: Tensor = self.encode_task_layer(self.encoder(images * 255.0 / 127.5 - 1.0))
        return codes

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> ids (B, N) int64, row by row."""
        return self.quantise(self.codes(images))[0]

    def quantise(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (B, N, c) -> ids (B, N), their entries of the code book as a map (B, c, h, w), commitment loss (scalar)."""
        z = F.normalize(codes, dim=-1)
        ids = self.quantize.distances(z).argmin(dim=-1)
        found = self.quantize.embedding.weight[ids]
        if self.count_usage:
            counts = torch.bincount(ids.flatten(), minlength=self.vocabulary).to(z.dtype)
            self.quantize.cluster_size.mul_(USAGE_DECAY).add_(counts, alpha=1.0 - USAGE_DECAY)
        grid = found.transpose(1, 2).reshape(len(found), -1, self.side, self.side)
        return ids, grid, COMMITMENT * F.mse_loss(found.detach(), z)

    def decode(self, grid: Tensor) -> Tensor:
        """A map of code book entries (B, c, h, w) -> decoded patches (B, N, target)."""
        decoded: Tensor = self.decode_task_layer(self.decoder(grid))
        return decoded

    def official_state(self) -> dict[str, Tensor]:
        """The tensors under their official names."""
        return dict(self.state_dict())

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load an official file; raises `WeightsError` naming what differs, and for a code book that was never trained."""
        kept = {key: value for key, value in state.items() if not key.startswith(_NOT_OURS)}
        load_strictly(self, kept, "the VQ-KD tokenizer")
        if float(self.quantize.embedding.initted) != 1.0:
            raise WeightsError(
                "The tokenizer's code book was never initialised (initted is 0).", "Give the trained tokenizer of BEiT v2 or PMAD."
            )
