"""Projected gradient with restarts as an evaluation: the worst case over every point visited."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gratis.attacks.pgd import pgd
from gratis.attacks.search import Attacked, Search, starts
from gratis.balls import Ball
from gratis.losses import margin

STEPS_BETWEEN_DROPS = 10
"""Broken images leave the batch this often: rarer wastes steps, more often copies and waits."""


@dataclass(frozen=True)
class PGD:
    """PGD-`steps` with `restarts` starts.

    alpha: step size in the ball's norm; None takes `share` of eps, a quarter unless it says
        otherwise (2/255 at 8/255, Wong 2020).
    loss: the task's, or "margin": best other logit minus the label's, without a cap.
    start: "random" in the ball or "zero", where a restart would find nothing new.
    climb_on: broken images go on to the last step of the last restart, and the last misclassified
        point is kept, which lies deeper behind the boundary; which images are broken is the same.
    An image is broken if any point of any restart is misclassified. Differs from the code of
    Wong 2020, which keeps the point of highest loss even where another one fooled the model
    (compatible.py does as that code does).
    """

    name: str
    steps: int
    restarts: int = 1
    alpha: float | None = None
    share: float = 0.25
    loss: Literal["cross-entropy", "margin"] = "cross-entropy"
    start: Literal["random", "zero"] = "random"
    climb_on: bool = False

    def step_size(self, ball: Ball) -> float:
        return self.share * ball.eps if self.alpha is None else self.alpha

    def parameters(self, ball: Ball) -> dict[str, float | int | str]:
        return {
            "loss": self.loss,
            "steps": self.steps,
            "restarts": self.restarts,
            "alpha": self.step_size(ball),
            "start": self.start,
            **({"broken images": "climb on"} if self.climb_on else {}),
        }

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack. A broken image comes with the first
        misclassified point met, or the last (`climb_on`).
        """
        adversarial, broken = attacked.unbroken()
        for restart in range(self.restarts):
            todo = (~broken | self.climb_on).nonzero().flatten()
            if not len(todo):
                break
            points, fooled = self._climb(attacked.of(todo), restart)
            # a point that fools the model is not given up for one that does not
            kept = fooled | ~broken[todo]
            adversarial[todo[kept]] = points[kept]
            broken[todo] |= fooled
        return adversarial, broken

    def _climb(self, attacked: Attacked, restart: int) -> tuple[Tensor, Tensor]:
        """One restart; broken images leave the batch every few steps."""
        x, ball = attacked.x, attacked.ball
        adversarial, broken = attacked.unbroken()
        delta = self._first(attacked, restart)
        todo = torch.arange(len(x), device=x.device)
        done = 0
        while len(todo) and done < self.steps:
            steps = min(STEPS_BETWEEN_DROPS, self.steps - done)
            loss = margin if self.loss == "margin" else None
            search = Search(attacked.of(todo), loss, latest=self.climb_on)
            delta = pgd(
                # a point counts only inside the pixel box, which rounding could leave
                lambda point, search=search: search.grad(ball.clip(point)),  # type: ignore[misc]
                x[todo],
                ball,
                steps=steps,
                step_size=self.step_size(ball),
                start=delta,
            )
            done += steps
            if done == self.steps:
                search.look(ball.place(x[todo], delta))
            fooled = search.fooled
            points = ball.place(x[todo], delta)
            points[fooled] = search.found[fooled]
            kept = fooled | ~broken[todo]
            adversarial[todo[kept]] = points[kept]
            broken[todo] |= fooled
            if not self.climb_on:
                todo, delta = todo[~fooled], delta[~fooled]
        return adversarial, broken

    def _first(self, attacked: Attacked, restart: int) -> Tensor:
        """The first perturbation of a restart."""
        x, ball = attacked.x, attacked.ball
        if attacked.start is not None and restart == 0:
            return ball.project(x, attacked.start - x)
        if self.start == "random":
            return starts(ball, x, attacked.keys, restart)
        return torch.zeros_like(x)
