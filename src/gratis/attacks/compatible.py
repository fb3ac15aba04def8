"""Projected gradient as the released code of Wong 2020 measures it, for that paper's tables."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gratis.attacks.packing import Standing, ask, packed
from gratis.attacks.search import STEPS_BETWEEN_DROPS, Attacked, Search, shaped, starts
from gratis.balls import Ball


@dataclass(frozen=True)
class FastCodePGD:
    """PGD-`steps` with `restarts`, an image's last word being its point of highest loss.

    An image stops moving where it is first misclassified; over the restarts the perturbation with
    the highest cross entropy is kept, and the model is asked once more there. A restart that
    fooled the model can so be overwritten by one that did not: the accuracy is at or above that
    of PGD with the same starts, steps and restarts.
    alpha: step size in the ball's norm; None takes a quarter of eps.
    Source: Wong 2020, the evaluation of the released CIFAR10 and MNIST code.
    """

    name: str
    steps: int
    restarts: int = 1
    alpha: float | None = None

    packs: ClassVar[bool] = True

    def step_size(self, ball: Ball) -> float:
        return 0.25 * ball.eps if self.alpha is None else self.alpha

    def parameters(self, ball: Ball, classes: int) -> dict[str, float | int | str]:
        return {
            "loss": "cross-entropy",
            "steps": self.steps,
            "restarts": self.restarts,
            "alpha": self.step_size(ball),
            "start": "random",
            "kept": "the point of highest loss, as the code of Wong 2020",
        }

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack."""
        x, ball = attacked.x, attacked.ball
        every = torch.arange(len(x))
        best = torch.zeros_like(x)
        highest = x.new_zeros(len(x))
        for restart in range(self.restarts):
            delta = starts(ball, x, attacked.keys, restart)
            moving = every
            for done in range(0, self.steps, STEPS_BETWEEN_DROPS):
                steps = min(STEPS_BETWEEN_DROPS, self.steps - done)
                moving = self._moved(attacked, moving, delta, steps)
            for rows in packed(every, attacked):
                part = attacked.of(rows)
                logits = Search(part).look(ball.place(part.x, delta[rows]))
                values = part.losses(logits, part.y)
                higher = values >= highest[rows]
                best[rows] = torch.where(shaped(higher, x), delta[rows], best[rows])
                highest[rows] = torch.where(higher, values, highest[rows])
            attacked.tell((restart + 1) / self.restarts)
        standing = Standing(attacked)
        ask(attacked, standing, every, ball.place(x, best))
        return standing.point, standing.broken

    def _moved(self, attacked: Attacked, moving: Tensor, delta: Tensor, steps: int) -> Tensor:
        """A few steps of the images at `moving` [n], from `delta` [N, C, H, W], which is moved.

        Returns which of them were classified rightly all along.
        """
        stopped = torch.zeros(len(delta), dtype=torch.bool, device=delta.device)
        for rows in packed(moving, attacked):
            part = attacked.of(rows)
            search, here = Search(part), delta[rows]
            for _ in range(steps):
                grad = search.grad(part.ball.place(part.x, here))
                onwards = part.ball.ascend(part.x, here, grad, self.step_size(part.ball))
                here = torch.where(shaped(search.fooled, here), here, onwards)
            delta[rows], stopped[rows] = here, search.fooled
        return moving[~stopped[moving].cpu()]
