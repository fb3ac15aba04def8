"""Balls in L2 and L1, AutoAttack's parts to try in them, and images at the edges of the box."""

import torch
from torch import Tensor

from gratis.balls import L1, L2

PARTS = ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
BALLS = [L2(0.4), L1(2.0)]


def images(count: int, *shape: int) -> Tensor:
    """Random pixels in float64, a third of them at the edges of the box."""
    x, edge = torch.rand(count, *shape, dtype=torch.float64), torch.rand(count, *shape)
    return torch.where(edge < 1 / 6, 0.0, torch.where(edge > 5 / 6, 1.0, x))
