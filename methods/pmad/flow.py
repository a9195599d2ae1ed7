"""ProtoFlow: one conditional normalizing flow over what remains of a patch vector when its nearest prototype is taken away.

    block: [x1 | x2] -> x2 exp(s) + t, (s, t) from 0.1 MLP([x1, position]), s = 1.9 tanh;  y = W (G * [x1 | x2'] + offset)
    log p = log N(z; 0, 1) + log det, reported per dimension;  loss = mean of -log sigmoid(log p / C)
W is a fixed rotation. The flow is trained on the residuals of all seen categories at once and is used for unseen ones as it is.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLAMP = 1.9
_SHARPNESS = 0.5  # beta of the softplus of the global scale
_UNIT_SCALE = 2.0 * math.log(math.exp(5.0) - 1.0)  # of which 0.1 softplus is 1
_LOG_NORMAL = -0.9189385332046727  # log density of N(0, 1) at 0


def position_code(dim: int, height: int, width: int) -> Tensor:
    """Sines and cosines of column (first half of the channels) and row (second half), (dim, h, w) float64; dim % 4 == 0."""
    assert dim % 4 == 0, "the parameters' check refuses others"
    half = dim // 2
    rates = torch.exp(torch.arange(0, half, 2, dtype=torch.float64) * -(math.log(10000.0) / half))
    code = torch.empty(dim, height, width, dtype=torch.float64)
    for first, angles in (
        (0, torch.arange(width)[None, :, None] * rates),
        (half, torch.arange(height)[:, None, None] * rates),
    ):
        full = angles.expand(height, width, -1).permute(2, 0, 1)
        code[first : first + half : 2] = full.sin()
        code[first + 1 : first + half : 2] = full.cos()
    return code


def _rotation(dim: int, state: np.random.RandomState) -> Tensor:
    """A random rotation (dim, dim) float64: orthogonal with determinant 1, uniformly distributed."""
    q, r = np.linalg.qr(state.standard_normal((dim, dim)))
    q *= np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] *= -1.0
    return torch.from_numpy(q)


class FlowBlock(nn.Module):
    """One coupling block; names as in the published files."""

    def __init__(self, dim: int, condition: int, state: np.random.RandomState) -> None:
        super().__init__()
        self.split = (dim - dim // 2, dim // 2)
        rotation = _rotation(dim, state).float()
        self.global_scale = nn.Parameter(torch.full((1, dim), _UNIT_SCALE))
        self.global_offset = nn.Parameter(torch.zeros(1, dim))
        self.w_perm = nn.Parameter(rotation, requires_grad=False)
        self.w_perm_inv = nn.Parameter(rotation.T.contiguous(), requires_grad=False)
        hidden = 2 * (self.split[0] + condition)
        self.subnet = nn.Sequential(nn.Linear(hidden // 2, hidden), nn.ReLU(), nn.Linear(hidden, 2 * self.split[1]))

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """X (E, C), condition (E, P) -> y (E, C) and log |det| (E,)."""
        kept, moved = torch.split(x, list(self.split), dim=1)
        a = 0.1 * self.subnet(torch.cat((kept, condition), dim=1))
        s, t = torch.chunk(a, 2, dim=1)
        s = CLAMP * torch.tanh(s)
        scale = 0.1 * F.softplus(self.global_scale, beta=_SHARPNESS)
        u = torch.cat((kept, moved * s.exp() + t), dim=1) * scale + self.global_offset
        return u @ self.w_perm.T, s.sum(dim=1) + scale.log().sum()


class ProtoFlow(nn.Module):
    """See the module docstring. dim: C of the residuals; condition: P of the position code."""

    def __init__(self, dim: int, condition: int, blocks: int, seed: int = 0) -> None:
        super().__init__()
        state = np.random.RandomState(seed)
        self.dim, self.condition = dim, condition
        self.module_list = nn.ModuleList(FlowBlock(dim, condition, state) for _ in range(blocks))

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """X (E, C), condition (E, P) -> latent z (E, C) and log |det| (E,)."""
        total = x.new_zeros(len(x))
        for block in self.module_list:
            x, log_det = block(x, condition)
            total = total + log_det
        return x, total

    def log_likelihood(self, x: Tensor, condition: Tensor) -> Tensor:
        """Log density per dimension, log p / C, of each row (E,)."""
        z, log_det = self(x, condition)
        total: Tensor = self.dim * _LOG_NORMAL - 0.5 * z.square().sum(dim=1) + log_det
        return total / self.dim

    def maps(self, residuals: Tensor) -> Tensor:
        """Residual maps (B, C, h, w) -> log-likelihood maps (B, h, w)."""
        batch, _, height, width = residuals.shape
        code = position_code(self.condition, height, width).to(residuals).flatten(1).T.repeat(batch, 1)
        rows = residuals.permute(0, 2, 3, 1).flatten(0, 2)
        return self.log_likelihood(rows, code).view(batch, height, width)

    def loss(self, residuals: Tensor) -> Tensor:
        """The training loss of residual maps (B, C, h, w): mean over all rows of -log sigmoid of the log-likelihood."""
        return -F.logsigmoid(self.maps(residuals)).mean()
