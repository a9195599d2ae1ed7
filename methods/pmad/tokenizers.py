"""The tokenizer that the parameters name, and its pixels from the bench's normalised images.

Known deviation: the dVAE's 112-pixel image is made from the 224-pixel one (bicubic), the originals make it from the file (Lanczos).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from inpbench.harness.api import IMAGENET_MEAN, IMAGENET_STD, Context
from inpbench.methods.pmad.dvae import DvaeEncoder
from inpbench.methods.pmad.kmeans_tokenizer import KmeansTokenizer
from inpbench.methods.pmad.params import DALLE, SIDE, VQKD, PmadParams
from inpbench.methods.pmad.vq_tokenizer import VqTokenizer

AnyTokenizer = VqTokenizer | DvaeEncoder | KmeansTokenizer


def build_tokenizer(params: PmadParams, ctx: Context) -> AnyTokenizer:
    """The tokenizer, frozen, in eval mode, on the context's device and dtype; a k-means one has still to be fitted."""
    if params.tokens == "kmeans":
        return KmeansTokenizer(params.tokens_of, params.codes, SIDE, ctx).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ctx.seed)
        tokenizer: VqTokenizer | DvaeEncoder = VqTokenizer() if params.tokens == "vqkd" else DvaeEncoder()
        if isinstance(tokenizer, VqTokenizer):
            _draw_codes(tokenizer)
    state = ctx.weights.state(VQKD if params.tokens == "vqkd" else DALLE)
    if state is not None:
        tokenizer.load_official(state)
    return tokenizer.to(device=ctx.device, dtype=ctx.dtype).requires_grad_(False).eval()


def _draw_codes(tokenizer: VqTokenizer) -> None:
    """Random unit codes and tokens, where random weights were asked for by name."""
    for name, value in tokenizer.named_parameters():
        if name.endswith(("embedding.weight", "pos_embed", "cls_token")):
            torch.nn.init.normal_(value)
    book = tokenizer.quantize.embedding.weight
    book.data.copy_(F.normalize(book.data, dim=-1))


def unit_pixels(images: Tensor, size: int) -> Tensor:
    """ImageNet-normalised images (B, 3, H, W) -> the same in [0, 1] at size x size pixels."""
    std, mean = images.new_tensor(IMAGENET_STD)[:, None, None], images.new_tensor(IMAGENET_MEAN)[:, None, None]
    pixels = images * std + mean
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    return pixels.clamp(0.0, 1.0)
