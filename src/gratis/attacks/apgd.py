"""Auto-PGD: projected gradient whose step size looks after itself."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gratis.attacks.climb import Climb
from gratis.attacks.climb_l1 import SparseClimb, stages
from gratis.attacks.rounds import in_rounds, other_classes
from gratis.attacks.search import Attacked, Search, generator_for
from gratis.balls import Ball
from gratis.losses import dlr, dlr_towards

MOMENTUM = 0.75
CLASSES_NEEDED = {"ce": 2, "dlr": 3, "dlr-t": 4}
RISES = 0.75
"""A step size goes on as long as the loss rises in this share of the steps between checks."""

Generators = list[torch.Generator]


@dataclass(frozen=True)
class APGD:
    """APGD-`steps` on cross entropy ("ce"), DLR ("dlr") or targeted DLR ("dlr-t").

    In Linf and L2 the step starts at 2 eps and is halved, back at the best point so far, where
    the loss oscillates or no longer improves. In L1 the steps are sparse, and the search begins
    in a larger ball (see climb_l1). "dlr-t" goes towards each of the `targets` best other
    classes of the clean answer in turn (as many as there are). Restarts and classes are
    breadth-first: each is tried on all images that still stand, packed into batches.
    restarts, targets: None takes those of the standard AutoAttack, which depend on the norm.
    Source: Croce & Hein 2020, algorithm 1, section 4; in L1 Croce & Hein 2021 ("Mind the box");
    released apgd code.
    Differs from the code: everything random is a function of the image's key; at the first
    check the first loss is compared with the start's, where the code compares it with 0; broken
    images leave the search.
    """

    name: str
    loss: Literal["ce", "dlr", "dlr-t"] = "ce"
    steps: int = 100
    restarts: int | None = None
    targets: int | None = None

    packs: ClassVar[bool] = True

    def restarts_in(self, ball: Ball) -> int:
        if self.restarts is not None:
            return self.restarts
        return 5 if ball.norm == "l1" and self.loss == "ce" else 1

    def targets_in(self, ball: Ball) -> int:
        if self.targets is not None:
            return self.targets
        return 5 if ball.norm == "l1" else 9

    def parameters(self, ball: Ball, classes: int) -> dict[str, float | int | str]:
        named = {"ce": "cross-entropy", "dlr": "dlr", "dlr-t": "targeted dlr"}
        found: dict[str, float | int | str] = {
            "loss": named[self.loss],
            "steps": self.steps,
            "restarts": self.restarts_in(ball),
        }
        if self.loss == "dlr-t":
            found["targets"] = min(self.targets_in(ball), classes - 1)
        found["start"] = "random"
        if ball.norm == "l1":
            found["radii"] = ", ".join(f"{r:g} eps for {n}" for r, n in stages(self.steps))
        return found

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack.

        Raises ValueError where there are too few classes for the loss.
        """
        ball = attacked.ball
        others = self._others(attacked)
        ranks = range(1)
        if self.loss == "dlr-t":
            assert others is not None
            ranks = range(1, min(self.targets_in(ball), others.shape[1]) + 1)
        rounds = [(restart, rank) for restart in range(self.restarts_in(ball)) for rank in ranks]

        def go(some: Attacked, rows: Tensor, each: tuple[int, int]) -> tuple[Tensor, Tensor]:
            random = [generator_for(key, *each) for key in some.keys]
            if each != rounds[0]:
                some = replace(some, start=None)
            towards = others[rows, each[1] - 1] if others is not None and each[1] else None
            climbed = self._sparsely if ball.norm == "l1" else self._with_momentum
            return climbed(some, towards, random)

        return in_rounds(attacked, rounds, go)

    def _with_momentum(
        self, attacked: Attacked, towards: Tensor | None, random: Generators
    ) -> tuple[Tensor, Tensor]:
        x, ball = attacked.x, attacked.ball
        search = self._search(attacked, towards)
        given = attacked.start
        delta = _start(x, ball, random) if given is None else ball.project(x, given - x)
        return MomentumClimb(search, x, ball, delta).go(self.steps)

    def _sparsely(
        self, attacked: Attacked, towards: Tensor | None, random: Generators
    ) -> tuple[Tensor, Tensor]:
        x, ball = attacked.x, attacked.ball
        best = (ball.high - ball.low) * _drawn(torch.randn, x, random)
        if attacked.start is not None:
            best = attacked.start - x
        points, fooled = attacked.unbroken()
        for radius, steps in stages(self.steps):
            # a search of its own: what fools the model in a larger ball does not count
            search, stage = self._search(attacked, towards), ball.of(radius * ball.eps)
            climb = SparseClimb(search, x, stage, stage.project(x, best))
            points, fooled = climb.go(steps, leave=radius == 1)
            best = climb.best
        return points, fooled

    def _others(self, attacked: Attacked) -> Tensor | None:
        """The classes but the labels [N, K - 1], likeliest first, where the loss needs several."""
        if self.loss == "ce":
            return None
        others = other_classes(attacked)
        classes, needed = others.shape[1] + 1, CLASSES_NEEDED[self.loss]
        if classes < needed:
            raise ValueError(
                f"{self.name} needs {needed} classes or more, the model has {classes}; "
                "use apgd-ce or cw instead"
            )
        return others

    def _search(self, attacked: Attacked, towards: Tensor | None) -> Search:
        if towards is None:
            return Search(attacked, dlr if self.loss == "dlr" else None)

        def targeted(logits: Tensor, labels: Tensor) -> Tensor:
            assert search.towards is not None
            return dlr_towards(logits, labels, search.towards)

        search = Search(attacked, targeted)
        search.towards = towards
        return search


def _start(x: Tensor, ball: Ball, random: Generators) -> Tensor:
    """A start on the boundary of the ball, in a random direction, then cut to the pixel box."""
    if ball.norm == "linf":
        drawn = 2 * _drawn(torch.rand, x, random) - 1
    else:
        drawn = _drawn(torch.randn, x, random)
    length = ball.size(drawn).view(-1, *[1] * (x.dim() - 1)).clamp_min(1e-12)
    return ball.project(x, ball.eps * drawn / length)


def _drawn(draw: Callable[..., Tensor], x: Tensor, random: Generators) -> Tensor:
    """Each image's own numbers, shaped like x, drawn on the CPU for every device."""
    return torch.stack([draw(x.shape[1:], generator=g) for g in random]).to(x)


class MomentumClimb(Climb):
    """APGD's climb in Linf and L2: steps with momentum, halved where they do not pay.

    rises: steps since the last check that raised the loss [n].  checked_value: the highest loss
    at that check.  halved: whether the step was halved there.
    """

    def __init__(self, search: Search, x: Tensor, ball: Ball, delta: Tensor) -> None:
        super().__init__(search, x, ball, delta, 2 * ball.eps)
        self.before = delta
        self.rises = torch.zeros_like(self.value)
        self.checked_value = self.value
        self.halved = torch.ones_like(self.value, dtype=torch.bool)

    def move(self, first: bool) -> None:
        """A step along the gradient, most of it, the rest along the step before."""
        momentum = 1.0 if first else MOMENTUM
        step = self.shaped(self.step) * self.ball.steepest(self.grad)
        stepped = self.ball.project(self.x, self.delta + step)
        drift = self.delta - self.before
        mixed = self.delta + momentum * (stepped - self.delta) + (1 - momentum) * drift
        self.before, self.delta = self.delta, self.ball.project(self.x, mixed)

    def look(self) -> None:
        before = self.value
        super().look()
        self.rises = self.rises + (self.value > before)

    def check(self, since: int) -> None:
        """Halve the steps that do not pay, and go back to the best points."""
        stuck = ~self.halved & (self.best_value <= self.checked_value)
        halve = (self.rises <= RISES * since) | stuck
        self.checked_value, self.halved = self.best_value, halve
        self.step = torch.where(halve, self.step / 2, self.step)
        self.back_to_best(halve)
        self.rises = torch.zeros_like(self.rises)

    def checks(self, steps: int) -> set[int]:
        return _checks(steps)


def _checks(steps: int) -> set[int]:
    """The steps (from 0) after which step sizes are looked at: at first after 22 % of all, then
    at intervals that shrink by 3 % down to 6 %.
    """
    interval, least, shrink = (max(1, int(share * steps)) for share in (0.22, 0.06, 0.03))
    found, place = set(), interval - 1
    while place < steps:
        found.add(place)
        interval = max(interval - shrink, least)
        place += interval
    return found
