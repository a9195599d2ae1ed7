"""PMAD as a method under test, without test labels or test statistics unless `oracle` asks for them.

    fit      prototypes of each category -> flow on residuals -> constants -> tokens -> reconstruction of hidden patches
    enter    prototypes and constants of a category from its normal images, seen in training or not
    predict  flow -> hidden patches and weight of each pixel -> what the ViT cannot tell there -> map and score
Known deviations in the default mode (all towards less use of the test set; `oracle` undoes the first three): one fixed ratio for
all categories; constants from held-out normal images; no gate; the ViT in eval mode (the original tests with drop path on, which
makes its scores random). Without `enter` one bank of all seen categories is used: a variant of its own, for single images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inpbench.harness.api import Context, Prediction, TrainingSet
from inpbench.harness.errors import UsageError, WeightsError
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.memory_bank import as_vectors
from inpbench.methods.pmad import official, oracle
from inpbench.methods.pmad.banks import Bank, digest, from_state, pooled, split, to_state
from inpbench.methods.pmad.extractor import build_extractor
from inpbench.methods.pmad.fitting import Embedded, build_model, train_flow, train_reconstruction
from inpbench.methods.pmad.flow import ProtoFlow
from inpbench.methods.pmad.kmeans_tokenizer import KmeansTokenizer
from inpbench.methods.pmad.params import EFFICIENTNET, SIDE, SIZE, PmadParams
from inpbench.methods.pmad.proposal import (
    Calibration,
    abnormality,
    calibrate,
    count_of,
    enlarge,
    hidden_patches,
    ranking,
)
from inpbench.methods.pmad.prototypes import Residuals, embedding, prototypes, residuals
from inpbench.methods.pmad.scoring import gaussian, score_maps, token_errors
from inpbench.methods.pmad.stages import interrupted
from inpbench.methods.pmad.tokenizers import build_tokenizer, unit_pixels

BATCH = 16  # images at a time where nothing depends on it
PIXELS = (SIZE, SIZE)


class Consulted(NamedTuple):
    """What the oracle found for a category."""

    fitted: Calibration
    image_ratio: int  # indices into `oracle.RATIOS`
    pixel_ratio: int


class Pmad:
    """`harness.api.Method`, `CategoryAware` and `Oracle` of PMAD."""

    def __init__(self, params: PmadParams, ctx: Context) -> None:
        params.check()
        self.params, self.ctx = params, ctx
        self.extractor = build_extractor(params.encoder, None if params.builtin else EFFICIENTNET, params.fine, ctx)
        self.banks: dict[str, Bank] = {}
        self.consulted: dict[str, Consulted] = {}
        self._category: str | None = None
        self._everything: Bank | None = None  # pooled, made when needed
        self.flow = self.tokenizer = self.model = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            if params.scoring != "nearest":
                flow = ProtoFlow(self.extractor.channels, params.position_dim, params.flow_blocks, ctx.seed)
                self.flow = flow.to(device=ctx.device, dtype=ctx.dtype).eval()
            if params.scoring == "full":
                self.tokenizer = build_tokenizer(params, ctx)
                self.model = build_model(params, self.tokenizer.vocabulary, ctx)

    # --- features and likelihoods -------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> patch vectors (B, C, h, w)."""
        return embedding([maps.to(self.ctx.dtype) for maps in self.extractor(images)])

    @torch.no_grad()
    def likelihood(self, left: Residuals) -> Tensor:
        """Log-likelihood maps (B, h, w) of residuals; without a flow, minus the distance to the nearest prototype."""
        return -left.distances if self.flow is None else self.flow.maps(left.maps)

    def _likelihoods(self, vectors: Embedded, indices: Sequence[int], bank: Tensor) -> Tensor:
        batches = (indices[start : start + BATCH] for start in range(0, len(indices), BATCH))
        return torch.cat([self.likelihood(residuals(vectors.batch(batch), bank)) for batch in batches])

    @torch.no_grad()
    def ids(self, images: Tensor) -> Tensor:
        """The tokens (B, N) int64 of images (B, 3, H, W)."""
        assert self.tokenizer is not None
        found: Tensor = self.tokenizer(unit_pixels(images, self.tokenizer.input_size))
        return found

    # --- what is known of a category ----------------------------------------------------------------------------------

    @property
    def _aside(self) -> float:
        """The held-out share: the official evaluation holds nothing out."""
        return 0.0 if self.params.oracle else self.params.held_out

    def _prototypes_of(self, train: TrainingSet, vectors: Embedded, indices: Sequence[int]) -> Bank:
        """The bank of the category of these images, without constants."""
        kept, _ = split(indices, self._aside)
        rows = [as_vectors(vectors.batch(kept[start : start + BATCH])).cpu() for start in range(0, len(kept), BATCH)]
        bank = prototypes(torch.cat(rows), self.params.coreset, self.params.projected, self.ctx.device)
        return Bank(bank, None, digest([train.samples[index].image for index in indices]))

    def _calibrated(self, bank: Bank, vectors: Embedded, indices: Sequence[int]) -> Bank:
        """The bank with its constants."""
        _, aside = split(indices, self._aside)
        likelihood = self._likelihoods(vectors, aside, bank.prototypes)
        return bank._replace(constants=calibrate(likelihood, PIXELS, self.params.quantile))

    def enter(self, category: str, references: TrainingSet | None) -> None:
        """Speak of `category` from now on; its bank is made from the references where it is not known from the same images."""
        if references is not None:
            indices = list(range(len(references)))
            known = self.banks.get(category)
            if known is None or known.images != digest([sample.image for sample in references.samples]):
                vectors = Embedded(self, references, again=split(indices, self._aside)[0] == indices)
                self.banks[category] = self._calibrated(self._prototypes_of(references, vectors, indices), vectors, indices)
                self.consulted.pop(category, None)
                self._everything = None
        elif category not in self.banks:
            raise UsageError(
                f"pmad needs normal images of {category} and was given none.",
                "Type: --normal DIR; in a run, a setting that has them: --setting multi_class, single_class or cross_class.",
            )
        self._category = category

    def _bank(self) -> Bank:
        if self._category is not None:
            return self.banks[self._category]
        if not self.banks:
            raise UsageError("pmad was asked to predict before it has seen a normal image.", "Call fit or enter first.")
        if self._everything is None:
            self._everything = pooled(self.banks)
        return self._everything

    # --- training -----------------------------------------------------------------------------------------------------

    def fit(self, train: TrainingSet) -> None:
        """Learn prototypes, flow and reconstruction model; goes on from `ctx.snapshots` if there is one."""
        members = {c: [i for i, sample in enumerate(train.samples) if sample.category == c] for c in train.categories}
        vectors = Embedded(self, train, again=not self.params.flow_augment or self._aside == 0.0)
        stage, earlier = interrupted(self.ctx.snapshots) or ("", {})
        if stage:
            self._restore(earlier)
        else:
            for number, (category, indices) in enumerate(members.items(), start=1):
                self.banks[category] = self._prototypes_of(train, vectors, indices)
                self.ctx.progress(number, len(members), "prototypes")
        if stage != "reconstruction":
            if self.flow is not None:
                used = [(i, c) for c, indices in members.items() for i in split(indices, self._aside)[0]]
                train_flow(self, self.flow, train, vectors, used)
            for category, indices in members.items():
                self.banks[category] = self._calibrated(self.banks[category], vectors, indices)
            if isinstance(self.tokenizer, KmeansTokenizer):
                size = self.tokenizer.input_size
                self.tokenizer.fit(train, lambda images: unit_pixels(images, size))
        if self.model is not None:
            train_reconstruction(self, self.model, train)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bfloat16 products in training on CUDA with the fast engine; losses and parameters stay float32."""
        if self.ctx.engine == "fast" and self.ctx.device.type == "cuda" and self.ctx.dtype == torch.float32:
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    # --- prediction ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Images (B, 3, 224, 224) -> maps (B, 224, 224) and scores (B,) of the category that was entered last."""
        bank = self._bank()
        left = residuals(self.embed(images), bank.prototypes)
        if self.flow is None:
            maps = enlarge(left.distances, PIXELS)
            return Prediction(maps, maps.amax(dim=(1, 2)))
        likelihood = self.likelihood(left)
        if self.params.oracle:
            return self._predict_consulted(images, likelihood)
        assert bank.constants is not None, "fit and enter leave none out"
        abnormal = abnormality(likelihood, bank.constants.level, bank.constants.peak, PIXELS)
        if self.model is None:
            return Prediction(abnormal, abnormal.amax(dim=(1, 2)))
        hidden = self.proposal(images, likelihood, abnormal, bank.constants)
        smooth = score_maps(token_errors(self.model, images, self.ids(images), hidden), abnormal)
        return Prediction(gaussian(smooth), smooth.amax(dim=(1, 2)))

    def proposal(self, images: Tensor, likelihood: Tensor, abnormal: Tensor, constants: Calibration) -> Tensor:
        """The hidden patches (B, N) bool; with `gate`, random ones where the image's abnormality is not above the threshold."""
        count = count_of(self.params.ratio, SIDE**2)
        hidden = hidden_patches(ranking(likelihood, constants.level, SIDE), count)
        if self.params.gate:
            for row in (abnormal.amax(dim=(1, 2)) <= constants.threshold).nonzero()[:, 0].tolist():
                hidden[row] = oracle.random_mask(images[row], 0, count, SIDE**2).to(hidden.device)
        return hidden

    @torch.no_grad()
    def explain(self, images: Tensor) -> dict[str, Tensor]:
        """The abnormality (B, 1, h, w) and, where there is a reconstruction model, the hidden patches (B, 1, 14, 14)."""
        bank = self._bank()
        likelihood = self.likelihood(residuals(self.embed(images), bank.prototypes))
        shown = {"abnormality": -likelihood[:, None]}
        if self.model is not None and bank.constants is not None:
            constants = bank.constants
            abnormal = abnormality(likelihood, constants.level, constants.peak, PIXELS)
            hidden = self.proposal(images, likelihood, abnormal, constants)
            shown["hidden"] = hidden.to(images.dtype).view(-1, 1, SIDE, SIDE)
        return shown

    # --- the originals' evaluation ------------------------------------------------------------------------------------

    @torch.no_grad()
    def consult(self, test: TrainingSet) -> None:
        """Tune everything that the originals tune on the test images of the entered category and their labels."""
        assert self.model is not None and self._category is not None, "the parameters' check and the bench's order"
        model, indices = self.model, list(range(len(test)))
        likelihood = self._likelihoods(Embedded(self, test, again=False), indices, self._bank().prototypes)
        ids = torch.cat([self.ids(test.batch(indices[i : i + BATCH])) for i in range(0, len(indices), BATCH)])
        labels = torch.tensor([sample.label for sample in test.samples])

        def errors(positions: Sequence[int], hidden: Tensor) -> Tensor:
            rows = list(positions)
            return token_errors(model, test.batch(rows), ids[rows], hidden)

        def draw(position: int, ratio_index: int, count: int) -> Tensor:
            return oracle.random_mask(test.batch([position])[0], ratio_index, count, SIDE**2)

        evaluation = oracle.Evaluation(likelihood, labels, test.masks(indices), errors, SIDE, draw)
        best = evaluation.best(lambda done, total: self.ctx.progress(done, total, f"ratios of {self._category}"))
        self.consulted[self._category] = Consulted(evaluation.fitted, *best)

    def _predict_consulted(self, images: Tensor, likelihood: Tensor) -> Prediction:
        """The map of the ratio with the best pixel AUROC and the scores of the one with the best image AUROC."""
        found = self.consulted.get(self._category or "")
        if found is None:
            raise UsageError("pmad.oracle predicts only after it has looked at the test labels.", "Type: --set pmad.oracle=false")
        assert self.model is not None
        abnormal = abnormality(likelihood, found.fitted.level, found.fitted.peak, PIXELS)
        ids = self.ids(images)

        def at(ratio: int) -> Tensor:
            hidden = oracle.hidden_at(
                likelihood,
                found.fitted,
                ratio,
                SIDE,
                PIXELS,
                range(len(images)),
                lambda position, index, count: oracle.random_mask(images[position], index, count, SIDE**2),
            )
            assert self.model is not None
            return score_maps(token_errors(self.model, images, ids, hidden), abnormal)

        scored = at(found.image_ratio)
        mapped = scored if found.pixel_ratio == found.image_ratio else at(found.pixel_ratio)
        return Prediction(gaussian(mapped), scored.amax(dim=(1, 2)))

    # --- tensors ------------------------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, torch.nn.Module]:
        """What is trained, by the beginning of its keys."""
        fitted = self.tokenizer if isinstance(self.tokenizer, KmeansTokenizer) else None
        parts = {"flow": self.flow, "tokenizer": fitted, "model": self.model}
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> dict[str, Tensor]:
        """Flow, reconstruction model, fitted tokens, and the banks of all categories seen or entered."""
        state = {f"{name}.{key}": value for name, part in self._parts().items() for key, value in part.state_dict().items()}
        state |= dict(to_state(self.banks))
        for category, found in self.consulted.items():
            numbers = [*found.fitted, float(found.image_ratio), float(found.pixel_ratio)]
            state[f"consulted/{category}"] = torch.tensor(numbers, dtype=torch.float64)
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; raises `WeightsError` naming the first keys or shapes that differ."""
        parts = self._parts()
        beginnings = (*(f"{name}." for name in parts), "bank/", "consulted/")
        unknown = [key for key in state if not key.startswith(beginnings)]
        if unknown:
            raise WeightsError(f"The weights do not fit pmad: unexpected {unknown[0]}.", "Give a model of the same parameters.")
        self._restore(state)

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        for name, part in self._parts().items():
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            load_strictly(part, own, f"pmad's {name}")
        self.banks = from_state(state, self.extractor.channels, self.ctx.device, self.ctx.dtype)
        self.consulted = {
            key.removeprefix("consulted/"): Consulted(Calibration(*value.tolist()[:3]), *(int(n) for n in value.tolist()[3:]))
            for key, value in state.items()
            if key.startswith("consulted/")
        }
        self._category, self._everything = None, None

    def official_files(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """The content of each of the authors' files by its name; prototypes and tokenizer are in none."""
        return official.files(self)

    def official_state(self) -> dict[str, Tensor]:
        """The tensors of both files together."""
        return official.state_of(self)

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of `checkpoint-*.pth` and ProtoFlow's `weights_*.pt` together; call `enter` next.

        Strict, raises `WeightsError` naming what is missing or differs.
        """
        official.load(self, state)
        self.banks, self.consulted, self._category, self._everything = {}, {}, None, None
