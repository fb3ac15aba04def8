"""Whether what an attack claims is so: the point lies in the ball, and the model is wrong there."""

import torch
from torch import Tensor

from gratis.attacks.packing import packed
from gratis.attacks.search import Attacked
from gratis.balls import Ball

SLACK = 1e-5
SPACING = 2.0**-24
"""A perturbation's norm may exceed eps by SLACK x eps, and by as much as float32 pixels, which
lie SPACING apart just below 1, can shift it."""


def confirmed(attacked: Attacked, points: Tensor, broken: Tensor) -> Tensor:
    """Which of the `broken` images [B] really are: the point lies in the ball and in the pixel
    range, and the model, asked again, is wrong there.
    """
    rows, ball = broken.nonzero().flatten(), attacked.ball
    if not len(rows):
        return broken
    x, point = attacked.x[rows], points[rows]
    inside = ((point >= ball.low) & (point <= ball.high)).flatten(1).all(1)
    really = broken.clone()
    really[rows] = near(ball, x, point) & inside & ~right_at(attacked, rows, points)
    return really


def near(ball: Ball, x: Tensor, point: Tensor) -> Tensor:
    """Whether each `point` [B, C, H, W] lies in the ball around x, but for rounding: bool [B]."""
    rounding = ball.size(torch.full_like(x, SPACING, dtype=torch.float64))
    return ball.size(point.double() - x.double()) <= ball.eps * (1 + SLACK) + rounding


def right_at(attacked: Attacked, rows: Tensor, points: Tensor) -> Tensor:
    """Whether the model is right about the images at `rows` [n], at their `points` [B, C, H, W]."""
    answers = [rows.new_empty(0, dtype=torch.bool, device=points.device)]
    with torch.no_grad():
        for some in packed(rows, attacked):
            answers.append(attacked.correct(attacked.model(points[some]), attacked.y[some]))
            attacked.meter.forwards += len(some)
    return torch.cat(answers)
