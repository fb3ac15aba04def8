"""The loop that the APGD attacks share: what is remembered of each image, and who leaves."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gratis.attacks.search import STEPS_BETWEEN_DROPS, Search, either, shaped
from gratis.balls import Ball, finite


class Climb(ABC):
    """Where the search of each image stands; every tensor [n, ...], so that images can leave.

    x, delta: images and where they are now.  grad, value: there.  step: its size [n].
    best, best_grad, best_value: where the loss was highest so far.
    """

    def __init__(self, search: Search, x: Tensor, ball: Ball, delta: Tensor, step: float) -> None:
        self.search, self.ball = search, ball
        self.x, self.delta = x, delta
        self.rows = torch.arange(len(x), device=x.device)
        self.grad = self._grad()
        self.value = search.values
        self.best, self.best_grad, self.best_value = delta, self.grad, self.value
        self.step = torch.full_like(self.value, step)

    @abstractmethod
    def move(self, first: bool) -> None:
        """Set delta one step further."""

    @abstractmethod
    def check(self, since: int) -> None:
        """Look at the step sizes, `since` steps after the last check."""

    @abstractmethod
    def checks(self, steps: int) -> set[int]:
        """The steps (from 0) of `steps` after which step sizes are looked at."""

    def go(self, steps: int, leave: bool = True) -> tuple[Tensor, Tensor]:
        """(points, fooled) after so many steps, as Attack returns them.

        leave: whether broken images leave; else every image takes every step.
        """
        points = self.x.clone()
        fooled = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        checks, since = self.checks(steps), 0
        for step in range(steps):
            self.move(first=not step)
            self.look()
            since += 1
            if step in checks:
                self.check(since)
                since = 0
            if (step + 1) % STEPS_BETWEEN_DROPS == 0 or step + 1 == steps:
                points[self.rows] = self.ball.place(self.x, self.delta)
                out = self.search.fooled
                points[self.rows[out]], fooled[self.rows[out]] = self.search.found[out], True
                if leave and bool(out.any()):
                    left = (~out).nonzero().flatten()
                    if not len(left):
                        break
                    self.search.keep(left)
                    self._keep(left)
        return points, fooled

    def back_to_best(self, chosen: Tensor) -> None:
        """Go on from the best point where `chosen` [n]."""
        self.delta = either(chosen, self.best, self.delta)
        self.grad = torch.where(self.shaped(chosen), self.best_grad, self.grad)

    def shaped(self, per_image: Tensor) -> Tensor:
        return shaped(per_image, self.x)

    def look(self) -> None:
        """Take the loss and its gradient at delta, and remember the best."""
        self.grad = self._grad()
        self.value = self.search.values
        better = self.value > self.best_value
        self.best_value = torch.where(better, self.value, self.best_value)
        self.best = either(better, self.delta, self.best)
        self.best_grad = torch.where(self.shaped(better), self.grad, self.best_grad)

    def _grad(self) -> Tensor:
        grad = self.search.grad(self.ball.place(self.x, self.delta))
        # a gradient that is no number leads nowhere: stay where the last one was
        return torch.where(self.shaped(finite(grad)), grad, 0.0)

    def _keep(self, chosen: Tensor) -> None:
        for name, held in vars(self).items():
            if isinstance(held, Tensor):
                setattr(self, name, held[chosen])
