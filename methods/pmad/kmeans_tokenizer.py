"""A tokenizer that a harness computes itself: k-means of the unit patch tokens of a frozen encoder, fitted on the seen categories.

    token = unit(last block of the encoder at 14 x 14 patches);  id = centre of the largest cosine
It stands in where the authors' tokenizers are not at hand; a result with it is a variant of PMAD, not PMAD. Mini-batches
(scikit-learn, seed 0) over at most 200,000 tokens, each image giving the same number of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness.api import IMAGENET_MEAN, IMAGENET_STD, Context, TrainingSet
from inpbench.harness.errors import DataError
from inpbench.methods.encoder_table import get_encoder
from inpbench.methods.encoders import build_encoder

LARGEST_SAMPLE = 200_000  # tokens that the centres are fitted on
_BATCH = 16


class KmeansTokenizer(nn.Module):
    """Images to ids. encoder: a name of the encoder table; codes: K."""

    centres: Tensor  # (K, D), unit vectors

    def __init__(self, encoder: str, codes: int, side: int, ctx: Context) -> None:
        super().__init__()
        entry = get_encoder(encoder)
        self.vocabulary, self.side, self.input_size = codes, side, side * entry.patch
        self._ctx, self._last = ctx, entry.depth - 1
        network = build_encoder(encoder, ctx, (self.input_size, self.input_size))
        self._encoder = [network]  # no part of the state: it is frozen, and its file is in the record
        self.register_buffer("centres", torch.zeros(codes, network.dim, dtype=ctx.dtype, device=ctx.device))

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> unit tokens (B, N, D)."""
        network = self._encoder[0]
        layer = network.layers(imagenet(images), [self._last])[0]
        return F.normalize(layer[:, network.prefix :], dim=-1)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, input_size, input_size) in [0, 1] -> ids (B, N) int64, row by row."""
        return (self.tokens(images) @ self.centres.T).argmax(dim=-1)

    def fit(self, train: TrainingSet, pixels: Callable[[Tensor], Tensor]) -> None:
        """Fit the centres on the training images; pixels: a batch of them -> what `forward` takes."""
        from sklearn.cluster import MiniBatchKMeans

        patches = self.side**2
        share = max(1, min(patches, LARGEST_SAMPLE // len(train)))
        generator = torch.Generator().manual_seed(0)
        found = []
        for start in range(0, len(train), _BATCH):
            indices = list(range(start, min(start + _BATCH, len(train))))
            for tokens in self.tokens(pixels(train.batch(indices))).cpu():
                found.append(tokens[torch.randperm(patches, generator=generator)[:share]])
            self._ctx.progress(indices[-1] + 1, len(train), "tokens for k-means")
        sample = torch.cat(found).float()
        if len(sample) < self.vocabulary:
            raise DataError(
                f"{len(sample)} patches cannot make {self.vocabulary} token codes.",
                f"Type: --set pmad.codes={max(2, len(sample) // 4)}",
            )
        means = MiniBatchKMeans(self.vocabulary, random_state=0, n_init=1, batch_size=4096).fit(sample.numpy()).cluster_centers_
        self.centres.copy_(F.normalize(torch.from_numpy(means), dim=-1))


def imagenet(images: Tensor) -> Tensor:
    """[0, 1] -> ImageNet-normalised."""
    return (images - images.new_tensor(IMAGENET_MEAN)[:, None, None]) / images.new_tensor(IMAGENET_STD)[:, None, None]
