"""Projected gradient as the released code of Wong 2020 measures it, for that paper's tables."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gratis.attacks.search import Attacked, Search, starts
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

    def step_size(self, ball: Ball) -> float:
        return 0.25 * ball.eps if self.alpha is None else self.alpha

    def parameters(self, ball: Ball) -> dict[str, float | int | str]:
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
        best = torch.zeros_like(x)
        highest = x.new_zeros(len(x))
        for restart in range(self.restarts):
            delta = starts(ball, x, attacked.keys, restart)
            moving = torch.arange(len(x), device=x.device)
            for _ in range(self.steps):
                if not len(moving):
                    break
                search = Search(attacked.of(moving))
                grad = search.grad(ball.place(x[moving], delta[moving]))
                moving, grad = moving[~search.fooled], grad[~search.fooled]
                delta[moving] = ball.ascend(x[moving], delta[moving], grad, self.step_size(ball))
            logits = Search(attacked).look(ball.place(x, delta))
            values = attacked.losses(logits, attacked.y)
            higher = values >= highest
            best[higher], highest = delta[higher], torch.where(higher, values, highest)
        point = ball.place(x, best)
        last = Search(attacked)
        last.look(point)
        return point, last.fooled
