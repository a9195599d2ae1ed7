"""CLIP's two towers on plain open_clip: tokens of any block, window embeddings, prompt embeddings. Frozen, never trained.

    embed  X = [CLS, patches] + positions       (B, 1 + N, W), before ln_pre
    blocks Z = block_12 ( ... block_1(ln_pre(X)))    on any subset of X's tokens, attention inside the subset
    project  ln_post(Z's CLS) @ proj            (B, E), not normalised
`model` holds the parameters under open_clip's names: official files and checkpoints load into it. The tokenizer is open_clip's own.
With the fast engine the text tower runs on the longest prompt's tokens only: its mask is causal, so what follows cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness.api import Context, TrainingSet
from inpbench.harness.errors import UsageError, WeightsError
from inpbench.methods.checkpoint import load_strictly
from inpbench.methods.clip_params import ClipArchitecture, ClipParams, clip_weight_spec
from inpbench.methods.clip_prompts import Prompts

SEQUENCES = 4096  # short sequences that go through the blocks at once: bounds the memory


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenize(prompts: Sequence[str], context: int) -> Tensor:
    """Token ids (P, context) int64, zeros behind the end of text."""
    ids: Tensor = _tokenizer()(list(prompts), context_length=context)
    return ids


def construct(architecture: ClipArchitecture) -> nn.Module:
    """open_clip's network, its weights drawn from torch's generator as open_clip draws them."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    model: nn.Module = CLIP(
        embed_dim=architecture.embed,
        vision_cfg=CLIPVisionCfg(
            image_size=architecture.image,
            layers=architecture.layers,
            width=architecture.width,
            head_width=architecture.head_width,
            patch_size=architecture.patch,
        ),
        text_cfg=CLIPTextCfg(
            context_length=architecture.context,
            vocab_size=architecture.vocabulary,
            width=architecture.text_width,
            heads=architecture.text_heads,
            layers=architecture.text_layers,
        ),
    )
    return model


class ImageTokens(NamedTuple):
    """What the image tower computes of a batch."""

    blocks: tuple[Tensor, ...]  # outputs of the asked blocks, each (B, 1 + N, W), CLS first, no norm
    last: Tensor  # (B, 1 + N, W), the last block's output
    pooled: Tensor  # (B, E), not normalised


class ClipTowers(nn.Module):
    """See the module docstring."""

    def __init__(self, architecture: ClipArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.model: Any = construct(architecture)
        self.whole_context = False  # run the text tower on all 77 tokens, as the originals do
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ClipTowers:
        """Frozen: always in eval mode (the towers have no dropout; their attention kernels differ in the last bits)."""
        return super().train(False)

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Load a published file: plain keys, or those of a data-parallel training (`module.`). Raises `WeightsError`."""
        if state and all(key.startswith("module.") for key in state):
            state = {key.removeprefix("module."): value for key, value in state.items()}
        load_strictly(self.model, state, f"CLIP {self.architecture.name}")

    # --- images -------------------------------------------------------------------------------------------------------

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> tokens with positions (B, 1 + N, W), before ln_pre."""
        visual = self.model.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # (B, N, W), row by row
        first = visual.class_embedding.expand(len(images), 1, -1)
        tokens: Tensor = torch.cat((first, patches), dim=1) + visual.positional_embedding
        return tokens

    def blocks(self, embedded: Tensor) -> Iterator[Tensor]:
        """The output of each block for embedded tokens (S, T, W); attention runs along T."""
        tokens = self.model.visual.ln_pre(embedded)
        for block in self.model.visual.transformer.resblocks:
            tokens = block(tokens)
            yield tokens

    def project(self, tokens: Tensor) -> Tensor:
        """The last block's CLS (S, W) -> (S, E), not normalised."""
        projected: Tensor = self.model.visual.ln_post(tokens) @ self.model.visual.proj
        return projected

    def tokens(self, images: Tensor, indices: Sequence[int] = ()) -> ImageTokens:
        """Images (B, 3, H, W) -> the tokens of the blocks `indices` (0-based), of the last one, and the pooled embedding."""
        return self.tokens_of(self.embed(images), indices)

    def tokens_of(self, embedded: Tensor, indices: Sequence[int] = ()) -> ImageTokens:
        """`tokens` of what `embed` gave."""
        outputs = list(self.blocks(embedded))
        return ImageTokens(tuple(outputs[i] for i in indices), outputs[-1], self.project(outputs[-1][:, 0]))

    def windows(self, embedded: Tensor, index: Tensor) -> Tensor:
        """Embeddings (B, J, E) of J windows: CLS and the n tokens of each go through the blocks as a sequence of their own.

        embedded: (B, 1 + N, W) of `embed`. index: (J, n) positions among the 1 + N tokens.
        """
        batch, count = len(embedded), len(index)
        first = embedded[:, :1, None].expand(-1, count, 1, -1)
        sequences = torch.cat((first, embedded[:, index]), dim=2).flatten(0, 1)  # (B * J, 1 + n, W)
        pooled = []
        for part in torch.split(sequences, SEQUENCES):
            last = part
            for last in self.blocks(part):  # noqa: B007 - the last output is what is wanted
                pass
            pooled.append(self.project(last[:, 0]))
        return torch.cat(pooled).reshape(batch, count, -1)

    # --- text ---------------------------------------------------------------------------------------------------------

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> embeddings (P, E), not normalised; each is read at its end of text."""
        model = self.model
        ids = tokenize(prompts, self.architecture.context).to(model.positional_embedding.device)
        end = ids.argmax(dim=-1)  # the end of text has the largest id
        length = ids.shape[1] if self.whole_context else int(end.max()) + 1
        tokens = model.token_embedding(ids[:, :length]) + model.positional_embedding[:length]
        mask = model.attn_mask[:length, :length].to(tokens.dtype)
        for block in model.transformer.resblocks:
            tokens = block(tokens, attn_mask=mask)
        embedding: Tensor = model.ln_final(tokens)[torch.arange(len(ids), device=ids.device), end] @ model.text_projection
        return embedding

    def prototypes(self, prompts: Prompts, mean_of: Literal["unit", "raw"] = "unit") -> Tensor:
        """(2, E): one direction for the normal prompts, one for the anomalous ones.

        unit: normalise, mean, normalise. raw: the plain mean, as anomalib has it (a cosine normalises it later).
        """
        embeddings = [self.text(part) for part in prompts]
        if mean_of == "raw":
            return torch.stack([embedding.mean(dim=0) for embedding in embeddings])
        return F.normalize(torch.stack([F.normalize(embedding, dim=-1).mean(dim=0) for embedding in embeddings]), dim=-1)


def build_towers(params: ClipParams, ctx: Context) -> ClipTowers:
    """The towers on the context's device and dtype; random weights are drawn from torch's CPU generator as it stands.

    Raises `WeightsError` for missing or unfitting weights.
    """
    towers = ClipTowers(params.architecture).to(dtype=ctx.dtype)
    towers.whole_context = ctx.engine == "reference"
    state = ctx.weights.state(clip_weight_spec(params.model, params.pretrained))
    if state is not None:
        towers.load_official(state)
    return towers.to(device=ctx.device)


# --- scores ---------------------------------------------------------------------------------------------------------


def text_score(embeddings: Tensor, prototypes: Tensor, scale: float) -> Tensor:
    """How much more embeddings (..., E) look like the anomalous prototype of (2, E): softmax(scale * cosines)[1], (...)."""
    cosines = F.normalize(embeddings, dim=-1) @ F.normalize(prototypes, dim=-1).T
    return (scale * cosines).softmax(dim=-1)[..., 1]


def nearest_distance(queries: Tensor, references: Tensor) -> Tensor:
    """Smallest (1 - cosine) / 2 of each query (..., N, D) to any of references (..., M, D), both of unit length: (..., N).

    Rounding may make it -1e-7 for a query that is among the references: it is 0 then. The original keeps the sign, and the sum of
    reciprocals of such distances can vanish (an infinite score, which it replaces by 0).
    """
    nearest = (queries @ references.transpose(-2, -1)).amax(dim=-1)
    return ((1.0 - nearest) * 0.5).clamp_min(0.0)


# --- the images of a category ---------------------------------------------------------------------------------------


class KeptReferences:
    """The normal images that a method was given for each category, so that a kept model can speak of them later.

    A part of a method's `state()`: `references/<category>` is (K, 3, H, W), normalised; K = 0 where it needed none.
    """

    PREFIX = "references/"

    def __init__(self, name: str) -> None:
        self.name = name  # of the method, for messages
        self._images: dict[str, Tensor] = {}

    def enter(self, category: str, references: TrainingSet | None, blank: Tensor, *, needed: bool) -> Tensor:
        """The images of a category: those given now, else those of an earlier `enter`.

        blank: (0, 3, H, W), what it is without any. needed: raise `UsageError` then.
        """
        if references is not None:
            self._images[category] = references.batch(range(len(references)))
        images = self._images.get(category, blank).to(blank.device, blank.dtype)
        if needed and not len(images):
            known = ", ".join(name for name, kept in self._images.items() if len(kept)) or "none"
            raise UsageError(
                f"{self.name} needs normal images of {category}, and was given none; it kept those of: {known}.",
                "Choose a category that it knows, or show it some: bench run --shots K, bench predict --normal DIR.",
            )
        self._images[category] = images
        return images

    def state(self) -> dict[str, Tensor]:
        """The kept images by key."""
        return {f"{self.PREFIX}{category}": images for category, images in self._images.items()}

    def split(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take the references out of a `state()`; returns the rest."""
        kept = {key: value for key, value in state.items() if key.startswith(self.PREFIX)}
        for key, value in kept.items():
            if value.ndim != 4 or value.shape[1] != 3:
                raise WeightsError(f"{key}: expected images (K, 3, H, W), found {tuple(value.shape)}.", "Give a kept model.")
        self._images = {key.removeprefix(self.PREFIX): value for key, value in kept.items()}
        return {key: value for key, value in state.items() if key not in kept}
