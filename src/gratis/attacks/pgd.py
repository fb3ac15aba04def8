"""Projected gradient descent: the only such loop in the house."""

from collections.abc import Callable

import torch
from torch import Tensor

from gratis.balls import Ball


def pgd(
    grad: Callable[[Tensor], Tensor],
    x: Tensor,
    ball: Ball,
    *,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
) -> Tensor:
    """`steps` projected steps up the loss inside the ball; returns delta, shaped like x.

    grad: images [B, C, H, W] -> the loss's gradient there, same shape.
    step_size: length of a step in the ball's norm, in pixel units; may exceed eps.
    start: the first delta, zero where absent.
    Source: Madry 2018, eq. 2 of section 2.1. Differs from common code: the perturbed image is
    clipped outside the graph, so saturated pixels keep their gradient.
    """
    delta = torch.zeros_like(x) if start is None else start
    for _ in range(steps):
        delta = ball.ascend(x, delta, grad(x + delta), step_size)
    return delta
