"""The training of the reconstruction model: masks, weighted cross entropy, running errors, the two groups of AdamW.

    loss of an image = mean over its hidden patches of CE; in dynamic epochs times 1 to 4 by the rank of its running error
    loss of a batch  = mean over its images;  the official batch is one image
A mask is a pure function of (seed, epoch, image) and of the running errors at the start of the epoch: the originals draw them in
worker processes that start with the epoch, so that they, too, see the errors of its start.
Data sets have no masks of the object: the whole image counts as foreground, which changes only where limited blocks may start.
Known deviations: bfloat16 products on CUDA instead of half precision with a loss scaler; numpy's generator in the workers of
torch < 1.9 repeated one stream in every worker and epoch, here every image has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inpbench.methods.pmad.mask_draws import Draws
from inpbench.methods.pmad.masks import MaskPlan, draw_mask, loss_weights, running_mean
from inpbench.methods.pmad.model import ReconstructionModel

_STRIDE = 1_000_003  # seeds of neighbouring seeds, epochs and images do not collide
_NO_DECAY = ("pos_embed", "cls_token")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW's groups: vectors, biases, class token and position embedding without decay; the rest, mask token included, with it."""
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        free = parameter.ndim == 1 or name.endswith(".bias") or name in _NO_DECAY
        (plain if free else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


class ReconstructionTraining(nn.Module):
    """The model and everything that its training remembers, so that one state dict is a whole snapshot.

    errors, counts: running mean error of each category's patches (K, N); start: `errors` at the start of the epoch.
    """

    errors: Tensor
    counts: Tensor
    start: Tensor
    epoch: Tensor  # () int64, of `start`

    def __init__(self, model: ReconstructionModel, plan: MaskPlan, counts: Sequence[int], seed: int, dynamic_from: int) -> None:
        """counts: patches to hide of each category; dynamic_from: first epoch whose masks and losses use the running errors."""
        super().__init__()
        self.model, self.plan, self.hide, self.seed, self.dynamic_from = model, plan, list(counts), seed, dynamic_from
        shape = (len(self.hide), plan.side**2)
        for name in ("errors", "counts", "start"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self._foreground = torch.ones(plan.side**2, dtype=torch.bool)  # there are no masks of the object: all of the image

    def begin(self, epoch: int) -> None:
        """Remember the running errors where a new epoch starts; the epochs must come in order."""
        if epoch != int(self.epoch):
            self.start.copy_(self.errors)
            self.epoch.fill_(epoch)

    def mask(self, image: Tensor, index: int, category: int, epoch: int) -> Tensor:
        """The mask (N,) bool on the host of training image `index`, pixels (3, H, W)."""
        draws = Draws(((self.seed * _STRIDE + epoch) * _STRIDE + index) % (1 << 32))
        errors = self.start[category].cpu().clone() if epoch >= self.dynamic_from else None
        while True:  # a mask that hides nothing has no loss: the next draw of the same generators is taken
            mask = draw_mask(draws, self.plan, self.hide[category], image.detach().cpu(), self._foreground, errors)
            if bool(mask.any()):
                return mask

    def loss(self, images: Tensor, ids: Tensor, masks: Tensor, categories: Sequence[int], epoch: int) -> Tensor:
        """The loss of images (B, 3, H, W) with ids (B, N) and masks (B, N) bool; takes their errors into the running means."""
        self.begin(epoch)
        losses = F.cross_entropy(self.model(images, masks).to(images.dtype), ids[masks], reduction="none")
        parts = []
        for row, loss in enumerate(torch.split(losses, masks.sum(dim=1).tolist())):
            category, mask = categories[row], masks[row]
            if epoch >= self.dynamic_from:
                parts.append((loss * loss_weights(self.start[category], mask).to(loss.dtype)).mean())
            else:
                parts.append(loss.mean())
            with torch.no_grad():
                running_mean(self.errors[category], self.counts[category], mask, loss.detach())
        return torch.stack(parts).mean()
