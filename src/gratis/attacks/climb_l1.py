"""APGD's climb in L1: sparse steps that adapt to how many pixels the best point changed."""

from torch import Tensor

from gratis.attacks.climb import Climb
from gratis.attacks.search import Search
from gratis.balls import Ball, sparse_sign

SMALLEST_STEP = 0.1
SLOWER = 1.5
STILL = 0.95
"""A best point that changes at least this share of the pixels it changed before has settled."""


class SparseClimb(Climb):
    """Steps of eps along the signs of the largest gradients, then the exact projection.

    At every check the next steps change 2/3 as many pixels as the best point does. Where that
    point became sparser the step is eps again, from the best point; elsewhere it shrinks by 1.5,
    down to a tenth of eps.
    Source: Croce & Hein 2021 ("Mind the box"), section 3 and algorithm 1; released code.
    Differs from the code: a pixel at the box's edge that would be pushed out gets no share of
    the step; a changed pixel is one whose perturbation is not 0, where the code's sums leave
    rounding behind.
    """

    def __init__(self, search: Search, x: Tensor, ball: Ball, delta: Tensor) -> None:
        super().__init__(search, x, ball, delta, ball.eps)
        self.changed = _changed(delta)
        self.counts = self.changed / SLOWER

    def move(self, first: bool) -> None:
        grad = self.ball.movable(self.ball.place(self.x, self.delta), self.grad)
        step = self.shaped(self.step) * sparse_sign(grad, self.counts)
        self.delta = self.ball.project(self.x, self.delta + step)

    def check(self, since: int) -> None:
        changed = _changed(self.best)
        sparser = changed < STILL * self.changed
        self.changed, self.counts = changed, changed / SLOWER
        eps = self.ball.eps
        self.step = (self.step / SLOWER).clamp_min(SMALLEST_STEP * eps)
        self.step = self.step.masked_fill(sparser, eps)
        self.back_to_best(sparser)

    def checks(self, steps: int) -> set[int]:
        every = max(1, int(0.04 * steps))
        return set(range(every - 1, steps, every))


def stages(steps: int) -> tuple[tuple[float, int], ...]:
    """(radius in eps, steps): the ball shrinks onto the one asked for.

    Source: Croce & Hein 2021, section 3: 3, 2 and 1 eps over 30, 30 and 40 % of the steps.
    """
    early = 3 * steps // 10
    return (3.0, early), (2.0, early), (1.0, steps - 2 * early)


def _changed(delta: Tensor) -> Tensor:
    """How many pixels of each image are changed, [n], in delta's dtype."""
    return (delta != 0).flatten(1).sum(1).to(delta.dtype)
