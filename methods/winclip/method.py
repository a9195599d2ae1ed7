"""WinCLIP as a method under test.

    z      = text score of the image, s_j of window j             softmax(scale * cosines with two text prototypes)
    a      = (1 - cosine) / 2 to the nearest reference            of each 2x2 and 3x3 window, and of each patch
    zero-shot map = 3 / (1/z + 1/S_2 + 1/S_3),  few-shot map = (A_2 + A_3 + a_patch) / 3,  S and A by `harmonic_map`
    map = zero-shot map, with references (zero-shot + few-shot) / 2;  score = z, with references (z + max few-shot map) / 2
`variant=mala_lab`: scale 100 instead of 1/0.07, one template more, patches before ln_post, and no zero-shot map: its map is the
few-shot one, or z everywhere (pixel metrics of chance).
Known deviations: the resize rounds to 8 bit (anomalib resizes floats: differences of half a grey level); everything is float32
where mala_lab evaluates in half precision (1e-3 of a score); non-square images are squashed by every variant, where mala_lab cuts
them into square tiles (official.py); any number of references works, where mala_lab's code takes four. The bench smooths the map
as any other; anomalib does not. anomalib 2.7.0 itself, with open_clip >= 2.26, lets attention run across windows: not reproduced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import Context, Prediction, TrainingSet
from inpbench.harness.errors import UsageError, WeightsError
from inpbench.methods.clip import KeptReferences, build_towers, nearest_distance, text_score
from inpbench.methods.clip_prompts import ANOMALIB, MALA_LAB, ensemble, object_name
from inpbench.methods.winclip import WinClipParams
from inpbench.methods.winclip.windows import SCALES, harmonic_map, window_index

LOGIT_SCALE = {"anomalib": 1.0 / 0.07, "mala_lab": 100.0}


class WindowFeatures(NamedTuple):
    """What WinCLIP sees of a batch of images."""

    pooled: Tensor  # (B, E), of the whole image, not normalised
    windows: tuple[Tensor, ...]  # a scale: (B, J, E), not normalised
    patches: Tensor  # (B, N, W)


class Association(NamedTuple):
    """Distances of a batch to the references."""

    windows: tuple[Tensor, ...]  # a scale: (B, J)
    maps: tuple[Tensor, ...]  # a scale: (B, h, w)
    patches: Tensor  # (B, N)
    amap: Tensor  # (B, h, w), the mean of the three maps


class WinClip:
    """`harness.api.Method` and `CategoryAware` of WinCLIP."""

    def __init__(self, params: WinClipParams, ctx: Context) -> None:
        params.check()
        self.params, self.ctx = params, ctx
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            self.towers = build_towers(params, ctx)
        self.side = params.architecture.side
        self.scale = LOGIT_SCALE[params.variant]
        self._index = [window_index(self.side, scale).to(ctx.device) for scale in SCALES]
        self._kept = KeptReferences("winclip")
        self._texts: dict[str, Tensor] = {}
        self._text: Tensor | None = None  # (2, E) of the category that was entered
        self._references: WindowFeatures | None = None  # its references as one image of K * J windows; unit length

    # --- the category ---------------------------------------------------------------------------------------------------

    def fit(self, train: TrainingSet) -> None:
        """Nothing is learned."""

    def enter(self, category: str, references: TrainingSet | None) -> None:
        """Encode the category's words and references; `UsageError` in few_shot without any."""
        size = (self.towers.architecture.image,) * 2
        blank = torch.empty(0, 3, *size, device=self.ctx.device, dtype=self.ctx.dtype)
        images = self._kept.enter(category, references, blank, needed=self.ctx.setting == "few_shot")
        self._text = self.prototypes(category)
        self._references = self.gallery(images) if len(images) else None

    @torch.no_grad()
    def prototypes(self, category: str) -> Tensor:
        """(2, E): what the words for normal and anomalous mean, by category; computed once."""
        if category not in self._texts:
            if self.params.variant == "mala_lab":
                self._texts[category] = self.towers.prototypes(ensemble(object_name(category), MALA_LAB))
            else:
                self._texts[category] = self.towers.prototypes(ensemble(category.rpartition("/")[2], ANOMALIB), "raw")
        return self._texts[category]

    @torch.no_grad()
    def gallery(self, references: Tensor) -> WindowFeatures:
        """Reference images (K, 3, H, W) -> all their windows and patches (M, .), of unit length."""
        features = [self.features(image[None]) for image in references]
        windows = zip(*(part.windows for part in features), strict=True)
        return WindowFeatures(
            torch.cat([part.pooled for part in features]),
            tuple(F.normalize(torch.cat(parts, dim=1)[0], dim=-1) for parts in windows),
            F.normalize(torch.cat([part.patches for part in features], dim=1)[0], dim=-1),
        )

    # --- features and scores ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def features(self, images: Tensor) -> WindowFeatures:
        """Images (B, 3, H, W) -> the embeddings of the image, its windows and its patches."""
        embedded = self.towers.embed(images)
        tokens = self.towers.tokens_of(embedded)
        windows = tuple(self.towers.windows(embedded, index) for index in self._index)
        last = tokens.last if self.params.variant == "mala_lab" else self.towers.model.visual.ln_post(tokens.last)
        return WindowFeatures(tokens.pooled, windows, last[:, 1:])

    def zero_shot_map(self, features: WindowFeatures, text: Tensor) -> Tensor:
        """(B, h, w): the harmonic mean of the image's text score and its windows' at both scales."""
        inverse = text_score(features.pooled, text, self.scale).reciprocal()[:, None, None]
        for scale, windows in zip(SCALES, features.windows, strict=True):
            inverse = inverse + harmonic_map(text_score(windows, text, self.scale), self.side, scale).reciprocal()
        return (1 + len(SCALES)) / inverse

    def association(self, features: WindowFeatures, gallery: WindowFeatures) -> Association:
        """Distances to the nearest of the references (a `gallery`), anywhere in the image."""
        windows = tuple(
            nearest_distance(F.normalize(own, dim=-1), kept) for own, kept in zip(features.windows, gallery.windows, strict=True)
        )
        patches = nearest_distance(F.normalize(features.patches, dim=-1), gallery.patches)
        maps = tuple(harmonic_map(scores, self.side, scale) for scores, scale in zip(windows, SCALES, strict=True))
        amap = (sum(maps) + patches.reshape(-1, self.side, self.side)) / (len(maps) + 1)
        return Association(windows, maps, patches, amap)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Images (B, 3, H, W) of the entered category -> map (anomalib (B, H, W), mala_lab (B, h, w)) and score (B,)."""
        if self._text is None:
            raise UsageError("winclip does not know what it looks at.", "Name the category: --category NAME")
        features = self.features(images)
        score = text_score(features.pooled, self._text, self.scale)
        few = None if self._references is None else self.association(features, self._references).amap
        if self.params.variant == "mala_lab":
            amap = score[:, None, None].expand(-1, self.side, self.side) if few is None else few
        else:
            amap = self.zero_shot_map(features, self._text)
            amap = amap if few is None else (amap + few) / 2
            # Enlarged here: anomalib aligns the borders of pixels, the bench the centres of the outermost ones.
            amap = F.interpolate(amap[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return Prediction(amap, score if few is None else (score + few.flatten(1).amax(dim=1)) / 2)

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The references of the categories entered so far; nothing is learned."""
        return self._kept.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; call `enter` next. Raises `WeightsError` naming a key that is no reference."""
        rest = self._kept.split(state)
        if rest:
            raise WeightsError(f"The state does not fit winclip: unexpected {next(iter(rest))}.", "Give a model that winclip kept.")
        self._text = self._references = None
