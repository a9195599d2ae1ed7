"""PatchCore: bank = greedy coreset of all training patches; map = distance of each patch from its nearest vector of the bank.

    score = (1 - exp(d(p, m)) / sum of exp(d(p, n)) over the b neighbours n of m in the bank) d(p, m),
    p the patch that is farthest from the bank, m its nearest vector (equations 6 and 7)
One model has one bank: in multi_class and few_shot it is pooled over the categories, where the paper has one for each.

Deviations: the coreset is exact greedy from one random start in a sparse random projection (the authors' code starts from the mean
distance to several points); the vectors keep their 1536 dimensions (the authors' code pools them to 1024); the map is enlarged and
smoothed by the bench. What each does to the metrics was not measured here; a pooled bank answers a harder question.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from inpbench.harness.api import Context, Prediction, TrainingSet
from inpbench.harness.errors import PrerequisiteError, WeightsError
from inpbench.methods.features import available_memory
from inpbench.methods.memory_bank import as_vectors, greedy_coreset, nearest, patch_map, project, sparse_projection
from inpbench.methods.patchcore import PatchCoreParams
from inpbench.methods.patchcore.backbone import build_backbone

BATCH = 16  # images encoded at a time


class PatchCore:
    """`harness.api.Method` of PatchCore."""

    def __init__(self, params: PatchCoreParams, ctx: Context) -> None:
        params.check()
        self.params, self.ctx = params, ctx
        self.backbone = build_backbone(params, ctx)
        with torch.inference_mode():
            self.dim = self.patches(torch.zeros(1, 3, *params.crop_size, device=ctx.device, dtype=ctx.dtype)).shape[1]
        self.bank = torch.zeros(0, self.dim, device=ctx.device, dtype=ctx.dtype)  # (M, D)

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """Patch features (B, D, h, w) of images (B, 3, H, W), on the grid of the first layer."""
        return patch_map(self.backbone(images), side=self.params.neighbourhood)

    @torch.no_grad()
    def fit(self, train: TrainingSet) -> None:
        """Encode all training images, and keep a share of their patches."""
        vectors = self._encode(train)
        count = max(1, round(self.params.coreset * len(vectors)))
        generator = torch.Generator().manual_seed(self.ctx.seed)
        start = int(torch.randint(len(vectors), (1,), generator=generator))
        if count == len(vectors):
            self.bank = vectors.to(self.ctx.device, copy=True)
            return
        if 0 < self.params.projection < self.dim:
            points = project(vectors, sparse_projection(self.dim, self.params.projection, self.ctx.seed), self.ctx.device)
        else:
            points = vectors.to(self.ctx.device)
        chosen = greedy_coreset(points, count, start=start, progress=lambda done, total: self.ctx.progress(done, total, "coreset"))
        self.bank = vectors[chosen.rows.to(vectors.device)].to(self.ctx.device)

    def _encode(self, train: TrainingSet) -> Tensor:
        """All patch vectors (N, D) in the training set's order: in host memory, or in a file where that is too small."""
        count = len(train)
        vectors: Tensor | None = None
        for start in range(0, count, BATCH):
            indices = range(start, min(start + BATCH, count))
            found = self.patches(train.batch(list(indices)))
            each = found.shape[-2] * found.shape[-1]
            if vectors is None:
                vectors = self._room((count * each, self.dim), found.dtype)
            vectors[start * each : indices.stop * each] = as_vectors(found).to(vectors.device)
            self.ctx.progress(indices.stop, count, "features")
        assert vectors is not None, "a training set has images"
        return vectors

    def _room(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor for all vectors; raises `PrerequisiteError` where neither memory nor disk has room."""
        needed = shape[0] * shape[1] * dtype.itemsize
        limit = self.ctx.cache_bytes if self.ctx.cache_bytes is not None else available_memory() // 2
        if needed <= limit and self.ctx.cache != "file":
            return torch.empty(shape, dtype=dtype)
        stored = self.ctx.array("patches", shape, dtype) if self.ctx.array is not None else None
        if stored is None:
            raise PrerequisiteError(
                f"patchcore needs {needed / 1e9:.1f} GB for {shape[0]} patch vectors; memory allows {limit / 1e9:.1f} GB, "
                "and the disk of --results has no room.",
                "Type: --setting single_class, --limit N, or --results DIR on a larger disk.",
            )
        return stored

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Distances (B, h, w) from the bank and the weighted image score (B,) of images (B, 3, H, W)."""
        patches = self.patches(images)
        batch, _, height, width = patches.shape
        vectors = as_vectors(patches)
        found = nearest(vectors, self.bank)
        amap = found.distances.view(batch, height, width)
        highest, at = amap.flatten(1).max(dim=1)
        rows = torch.arange(batch, device=at.device) * (height * width) + at
        return Prediction(amap, highest * self._weight(vectors[rows], found.rows[rows, 0], highest))

    def _weight(self, patch: Tensor, row: Tensor, distance: Tensor) -> Tensor:
        """Equation 7's factor (B,) of patches (B, D) whose nearest vectors are the bank's `row` (B,), `distance` (B,) away."""
        count = min(self.params.reweight, len(self.bank))
        if count < 2:
            return torch.ones_like(distance)
        around = nearest(self.bank[row], self.bank, count).rows  # (B, b), the vector itself among them
        distances = (self.bank[around] - patch[:, None]).square().sum(dim=2).sqrt()
        return 1.0 - (distance - torch.logsumexp(distances, dim=1)).exp()

    def state(self) -> dict[str, Tensor]:
        """`bank` (M, D)."""
        return {"bank": self.bank}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; raises `WeightsError` naming what differs."""
        bank = state.get("bank")
        if set(state) != {"bank"} or bank is None or bank.ndim != 2 or len(bank) == 0 or bank.shape[1] != self.dim:
            found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in state.items()) or "nothing"
            raise WeightsError(
                f"The state does not fit patchcore: expected bank (M, {self.dim}), found {found}.",
                "Give the state of the same encoder and layers.",
            )
        self.bank = bank.to(self.ctx.device, self.ctx.dtype)
