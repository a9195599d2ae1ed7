"""CRR's second stage: a convolutional decoder that finds the anomaly in how the reconstruction disagrees, and its focal loss.

    z = cat over groups of -l2n(encoder) * l2n(decoder), (B, G D, h, w);  three times [up x 2, 3 convolutions], up to the map's size
Every convolution is 3 x 3, followed by BatchNorm and ReLU. Attribute names are a contract: official `Seg_model_*.pth` need them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.harness.api import Size

LAST_WIDTH = 48  # channels before the two classes
CLASSES = 2
_L2_EPS = 1e-12


def disagreement(targets: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """Grouped maps (B, D, h, w) -> (B, G D, h, w); the channels of a group sum to minus the cosine of each point."""
    return torch.cat([-_unit(a.detach()) * _unit(b) for a, b in zip(targets, outputs, strict=True)], dim=1)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + _L2_EPS)


def _units(*widths: int) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU for each step from one width to the next."""
    layers: list[nn.Module] = []
    for source, target in itertools.pairwise(widths):
        layers += [nn.Conv2d(source, target, kernel_size=3, padding=1), nn.BatchNorm2d(target), nn.ReLU()]
    return layers


class SegmentationNetwork(nn.Module):
    """See the module docstring. channels: of the input; width: w, the first steps have 8 w; size: of the logits."""

    def __init__(self, channels: int, width: int, size: Size) -> None:
        super().__init__()
        widths = (channels, 8 * width, 4 * width, 2 * width)
        ends = (4 * width, 2 * width, width, LAST_WIDTH)
        inner = (8 * width, 4 * width, 2 * width, width)
        sources = (widths[0], ends[0], ends[1], ends[2])
        for stage in range(4):
            up: dict[str, object] = {"size": size} if stage == 3 else {"scale_factor": 2.0}
            enlarge = nn.Upsample(**up, mode="bilinear", align_corners=True)  # type: ignore[arg-type]
            setattr(self, f"up{stage + 1}", nn.Sequential(enlarge, *_units(sources[stage], inner[stage])))
            setattr(self, f"db{stage + 1}", nn.Sequential(*_units(inner[stage], inner[stage], ends[stage])))
        self.fin_out = nn.Sequential(nn.Conv2d(LAST_WIDTH, CLASSES, kernel_size=3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)  # biases stay as torch draws them
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> logits (B, 2, *size); class 1 is the anomaly."""
        for stage in range(1, 5):
            x = getattr(self, f"db{stage}")(getattr(self, f"up{stage}")(x))
        logits: Tensor = self.fin_out(x)
        return logits


def focal_loss(
    probabilities: Tensor, target: Tensor, gamma: float = 2.0, alpha: Sequence[float] | None = None, smooth: float = 1e-5
) -> Tensor:
    """-(1 - p)^gamma log p of the true class, averaged over the pixels.

    probabilities: (B, C, H, W), sums 1 over C. target: (B, H, W) class numbers. alpha: a weight a class, none: 1.
    smooth: the true class counts at most 1 - smooth, the others at least smooth / (C - 1); added to p, which may then exceed 1.
    """
    return focal_terms(probabilities, target, gamma, alpha, smooth).mean()


def focal_terms(
    probabilities: Tensor, target: Tensor, gamma: float = 2.0, alpha: Sequence[float] | None = None, smooth: float = 1e-5
) -> Tensor:
    """`focal_loss` of each pixel (B * H * W,)."""
    classes = probabilities.shape[1]
    flat = probabilities.flatten(2).transpose(1, 2).reshape(-1, classes)
    number = target.reshape(-1).long()
    # The constants are float32 whatever the probabilities are, as in the original.
    onehot = F.one_hot(number, classes).float()
    if smooth:
        onehot = onehot.clamp(smooth / (classes - 1), 1.0 - smooth)
    true = (onehot.to(flat.dtype) * flat).sum(dim=1) + smooth
    weight = 1.0 if alpha is None else torch.tensor(alpha, dtype=flat.dtype, device=flat.device)[number]
    return -weight * (1.0 - true).pow(gamma) * true.log()
