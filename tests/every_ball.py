"""Balls of every norm, shapes, and images at the edges of the box to try them on."""

import pytest
import torch
from torch import Tensor

from gratis.balls import BALLS, Ball

ULP = 2.0**-23
"""Pixels lie in [0, 1]: x + delta - x is exact to half of this."""

SHAPES = [(4, 3, 5, 5), (3, 1, 2, 7), (1, 1, 1, 1), (1, 3, 4, 2)]
RADII = {
    "linf": (0.0, 1e-3, 8 / 255, 0.3, 1.0),
    "l2": (0.0, 1e-3, 128 / 255, 2.0, 100.0),
    "l1": (0.0, 1e-3, 1.0, 12.0, 1000.0),
}
ALL_BALLS = [BALLS[norm](eps) for norm, radii in RADII.items() for eps in radii]

balls = pytest.mark.parametrize("ball", ALL_BALLS, ids=repr)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def images(shape: tuple[int, ...]) -> Tensor:
    """Random pixels, a third of them at the edges of the box."""
    x = torch.rand(shape)
    edge = torch.rand(shape)
    return torch.where(edge < 1 / 6, 0.0, torch.where(edge > 5 / 6, 1.0, x))


def assert_inside(ball: Ball, x: Tensor, delta: Tensor) -> None:
    assert delta.shape == x.shape
    assert (ball.size(delta) <= ball.eps * (1 + 1e-5) + ULP).all()
    assert (x + delta >= ball.low - ULP).all()
    assert (x + delta <= ball.high + ULP).all()
