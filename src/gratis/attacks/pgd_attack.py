"""Projected gradient with restarts as an evaluation: the worst case over every point visited."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gratis.attacks.packing import Standing, ask, packed
from gratis.attacks.pgd import pgd
from gratis.attacks.search import STEPS_BETWEEN_DROPS, Attacked, Search, shaped, starts
from gratis.balls import Ball
from gratis.losses import margin


@dataclass(frozen=True)
class PGD:
    """PGD-`steps` with `restarts` starts.

    alpha: step size in the ball's norm; None takes `share` of eps, a quarter unless it says
        otherwise (2/255 at 8/255, Wong 2020).
    loss: the task's, or "margin": best other logit minus the label's, without a cap.
    start: "random" in the ball or "zero", where a restart would find nothing new.
    climb_on: broken images go on to the last step of the last restart, and the last misclassified
        point is kept, which lies deeper behind the boundary; which images are broken is the same.
    bf16: the model answers the climb in bfloat16. What fools it there is asked again in its own
        precision, the last misclassified point of every stage; an image that it holds out
        against climbs on. So is the last point of every restart.
    Restarts are breadth-first: each is made of stages, and in each of those all images that are
    not broken take a few steps, packed into batches. Only between stages are broken ones told
    from the others, so that nothing waits for the device at a step.
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
    bf16: bool = False

    packs: ClassVar[bool] = True

    def step_size(self, ball: Ball) -> float:
        return self.share * ball.eps if self.alpha is None else self.alpha

    def parameters(self, ball: Ball, classes: int) -> dict[str, float | int | str]:
        return {
            "loss": self.loss,
            "steps": self.steps,
            "restarts": self.restarts,
            "alpha": self.step_size(ball),
            "start": self.start,
            **({"broken images": "climb on"} if self.climb_on else {}),
            **({"search": "bf16"} if self.bf16 else {}),
        }

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack. A broken image comes with the first
        misclassified point met, or the last (`climb_on`).
        """
        standing = Standing(attacked)
        # the rows that are climbing stay on the CPU, where batches are cut
        rows = torch.arange(len(attacked.x))
        delta = torch.zeros_like(attacked.x)
        for restart in range(self.restarts):
            delta[rows] = self._first(attacked.of(rows), restart)
            for done in range(0, self.steps, STEPS_BETWEEN_DROPS):
                steps = min(STEPS_BETWEEN_DROPS, self.steps - done)
                self._stage(attacked, standing, rows, delta, steps)
                rows = self._left(standing, rows)
                attacked.tell((restart + (done + steps) / self.steps) / self.restarts)
            ask(attacked, standing, rows, attacked.ball.place(attacked.x, delta))
            rows = self._left(standing, rows)
            if not len(rows):
                break
        return standing.point, standing.broken

    def _stage(
        self, attacked: Attacked, standing: Standing, rows: Tensor, delta: Tensor, steps: int
    ) -> None:
        """A few steps of the images at `rows`, from `delta` [N, C, H, W], which is moved."""
        claimed = Standing(attacked) if self.bf16 else standing
        for some in packed(rows, attacked):
            delta[some], point, fooled = self._climb(attacked.of(some), delta[some], steps)
            claimed.record(some, point, fooled)
        if self.bf16:
            ask(attacked, standing, claimed.among(rows, broken=True), claimed.point)

    def _climb(
        self, attacked: Attacked, delta: Tensor, steps: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where a batch is after a few steps from `delta`; points, and whether those fooled it."""
        x, ball = attacked.x, attacked.ball
        search = self._search(attacked)
        delta = pgd(
            # a point counts only inside the pixel box, which rounding could leave
            lambda point: search.grad(ball.clip(point)),
            x,
            ball,
            steps=steps,
            step_size=self.step_size(ball),
            start=delta,
        )
        last = ball.place(x, delta)
        return delta, torch.where(shaped(search.fooled, x), search.found, last), search.fooled

    def _search(self, attacked: Attacked) -> Search:
        loss = margin if self.loss == "margin" else None
        if self.bf16:  # the last point lies deepest: the likeliest to hold in full precision
            return Search(attacked, loss, latest=True, precision=torch.bfloat16)
        return Search(attacked, loss, latest=self.climb_on)

    def _left(self, standing: Standing, rows: Tensor) -> Tensor:
        return rows if self.climb_on else standing.among(rows, broken=False)

    def _first(self, attacked: Attacked, restart: int) -> Tensor:
        """The first perturbation of a restart."""
        x, ball = attacked.x, attacked.ball
        if attacked.start is not None and restart == 0:
            return ball.project(x, attacked.start - x)
        if self.start == "random":
            return starts(ball, x, attacked.keys, restart)
        return torch.zeros_like(x)
