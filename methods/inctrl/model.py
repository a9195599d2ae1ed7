"""What InCTRL trains over a frozen CLIP, and how it compares a query with its prompts.

    M_l(i) = min over all tokens p of all prompts of (1 - cos(query_l(i), p)) / 2        layer l, patch i
    M      = mean over layers of M_l,  s_p = max over patches of M
    r      = mean over prompts of adapter(g) - adapter(f),  s_i = diff_head_ref(r)        g, f: pooled embeddings
    s_h    = diff_head(text score + s_i + M),  score = (s_h + s_p) / 2
Attribute names are those of the official checkpoints: `adapter.fc`, `diff_head`, `diff_head_ref`, `projection1..3`, `bn1..3`; order
of construction and default initialisation too, so that a seed gives the official start. `bn1` is never called, as there.
Kept from the original: the adapter ends in a ReLU and has no skip; the loss takes scores for logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.methods.clip import nearest_distance


class Encoded(NamedTuple):
    """Frozen features of B images."""

    layers: Tensor  # (L, B, N, W) patch tokens of unit length
    pooled: Tensor  # (B, E), not normalised


class Residuals(NamedTuple):
    """Distances to the prompts: constants of the training."""

    slots: Tensor  # (B, L, N)
    amap: Tensor  # (B, N), their mean


class InCtrlOutput(NamedTuple):
    """Everything between the features and the score of B queries."""

    adapted: Tensor  # (B, E), of the query
    prompt: Tensor  # (B, E), mean of the adapted prompts
    image_score: Tensor  # (B,), s_i
    holistic: Tensor  # (B, N), what diff_head sees
    head_score: Tensor  # (B,), s_h
    patch_score: Tensor  # (B,), s_p
    score: Tensor  # (B,)


class Adapter(nn.Module):
    """Linear, ReLU, Linear, ReLU without biases; no skip connection."""

    def __init__(self, width: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, width // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(width // reduction, width, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, E), not negative."""
        out: Tensor = self.fc(x)
        return out


class DiffHead(nn.Module):
    """From a residual of `width` numbers to a score in (0, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection1 = nn.Linear(width, 128)
        self.projection2 = nn.Linear(128, 64)
        self.projection3 = nn.Linear(64, 1)
        self.bn1 = nn.BatchNorm1d(width)  # never called
        self.bn2 = nn.BatchNorm1d(128)
        self.bn3 = nn.BatchNorm1d(64)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B,)."""
        x = self.bn2(F.relu(self.projection1(x)))
        x = self.bn3(F.relu(self.projection2(x)))
        return torch.sigmoid(self.projection3(x))[:, 0]


class InCtrlHeads(nn.Module):
    """All that is trained."""

    def __init__(self, patches: int, embed: int) -> None:
        super().__init__()
        self.adapter = Adapter(embed)
        self.diff_head = DiffHead(patches)
        self.diff_head_ref = DiffHead(embed)

    def forward(self, pooled: Tensor, prompts: Tensor, amap: Tensor, text: Tensor) -> InCtrlOutput:
        """pooled: (B, E) of the queries; prompts: (B, K, E) of theirs; amap: (B, N) of `Residuals`; text: (B,) text scores."""
        adapted = self.adapter(pooled)
        prompt = self.adapter(prompts.flatten(0, 1)).reshape(prompts.shape).mean(dim=1)
        image_score = self.diff_head_ref(prompt - adapted)
        holistic = text[:, None] + image_score[:, None] + amap
        head_score = self.diff_head(holistic)
        patch_score = amap.amax(dim=1)
        return InCtrlOutput(adapted, prompt, image_score, holistic, head_score, patch_score, (head_score + patch_score) / 2)


# --- queries and prompts ----------------------------------------------------------------------------------------------


def batch_residuals(queries: Encoded, prompts: Encoded, *, official: bool) -> tuple[Residuals, Tensor]:
    """Residuals of B queries, each with K prompts of its own, and the prompts' embeddings (B, K, E).

    prompts: K * B images, prompt s of query i at s * B + i.
    official: the original reshapes where it should transpose. Row i then holds single layers of up to three images of the batch,
    compared with prompts of other rows; with B = 1 both agree.
    """
    depth, batch, count, width = queries.layers.shape
    shots = prompts.layers.shape[1] // batch
    if official:
        query = queries.layers.reshape(batch, depth, count, width)
        prompt = prompts.layers.reshape(batch, depth, count * shots, width)
        pooled = prompts.pooled.reshape(batch, shots, -1)
    else:
        query = queries.layers.transpose(0, 1)
        grouped = prompts.layers.reshape(depth, shots, batch, count, width)
        prompt = grouped.permute(2, 0, 1, 3, 4).reshape(batch, depth, shots * count, width)
        pooled = prompts.pooled.reshape(shots, batch, -1).transpose(0, 1)
    slots = nearest_distance(query, prompt)
    return Residuals(slots, slots.mean(dim=1)), pooled


def residuals(queries: Encoded, prompts: Encoded) -> Residuals:
    """Residuals of B queries to the same K prompts, each image on its own."""
    _, batch, count, width = queries.layers.shape
    slots = [
        nearest_distance(query.reshape(-1, width), prompt.reshape(-1, width)).reshape(batch, count)
        for query, prompt in zip(queries.layers, prompts.layers, strict=True)
    ]
    stacked = torch.stack(slots, dim=1)
    return Residuals(stacked, stacked.mean(dim=1))


def repeated(prompts: Encoded, batch: int) -> Encoded:
    """The same K prompts for each of `batch` queries, in the order of `batch_residuals`."""
    return Encoded(prompts.layers.repeat_interleave(batch, dim=1), prompts.pooled.repeat_interleave(batch, dim=0))


# --- the loss ---------------------------------------------------------------------------------------------------------


def focal_terms(scores: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Focal loss of each score, (B,), as if the scores were logits.

    They already are in (0, 1), so that the loss of a normal image cannot fall below that of logit 0. Kept: the released checkpoints
    were trained with it.
    """
    entropy = F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), reduction="none")
    return (1.0 - torch.exp(-entropy)) ** gamma * entropy


def inctrl_loss(output: InCtrlOutput, labels: Tensor, gamma: float) -> Tensor:
    """Focal loss of the score and of s_i, means over the batch."""
    return focal_terms(output.score, labels, gamma).mean() + focal_terms(output.image_score, labels, gamma).mean()
