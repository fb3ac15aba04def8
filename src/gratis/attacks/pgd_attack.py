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
    An image is broken if any point of any restart is misclassified. Differs from the code of
    Wong 2020, which keeps the point of highest loss even where another one fooled the model.
    """

    name: str
    steps: int
    restarts: int = 1
    alpha: float | None = None
    share: float = 0.25
    loss: Literal["cross-entropy", "margin"] = "cross-entropy"
    start: Literal["random", "zero"] = "random"

    def step_size(self, ball: Ball) -> float:
        return self.share * ball.eps if self.alpha is None else self.alpha

    def parameters(self, ball: Ball) -> dict[str, float | int | str]:
        return {
            "loss": self.loss,
            "steps": self.steps,
            "restarts": self.restarts,
            "alpha": self.step_size(ball),
            "start": self.start,
        }

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack. A broken image comes with the first
        misclassified point met.
        """
        x, ball = attacked.x, attacked.ball
        loss = margin if self.loss == "margin" else None
        adversarial, broken = attacked.unbroken()
        for restart in range(self.restarts):
            todo = (~broken).nonzero().flatten()
            if not len(todo):
                break
            if self.start == "random":
                delta = starts(ball, x[todo], attacked.of(todo).keys, restart)
            else:
                delta = torch.zeros_like(x[todo])
            done = 0
            while len(todo) and done < self.steps:
                steps = min(STEPS_BETWEEN_DROPS, self.steps - done)
                search = Search(attacked.of(todo), loss)
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
                adversarial[todo], broken[todo] = points, fooled
                todo, delta = todo[~fooled], delta[~fooled]
        return adversarial, broken
