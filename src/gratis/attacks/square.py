"""Square: random search with squares, which asks the model for answers alone."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gratis.attacks.search import Attacked, either, generator_for, may_drop, waits
from gratis.attacks.windows import Windows, window
from gratis.balls import Ball
from gratis.losses import margin

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the squares' area is halved."""


class Proposals(Protocol):
    """Each image's own points to try, as far as `keep` has left the image in."""

    def first(self, x: Tensor) -> Tensor: ...

    def next(self, query: int, area: float, x: Tensor, best: Tensor) -> Tensor:
        """The points of query number `query`, squares of about `area` pixels away from `best`."""
        ...

    def keep(self, chosen: Tensor) -> None: ...


@dataclass(frozen=True)
class Square:
    """Random squares, kept where the margin rises; `queries` of them at most.

    In Linf a square's pixels are set to +-eps. In L2 and L1 what a second square holds of the
    perturbation moves into the first (see Windows).
    share: of the image's pixels in the first squares.
    Source: Andriushchenko 2020b ("Square Attack"), algorithms 1 to 3 and sections 3.3, 3.4; in L1
    the released code of Croce & Hein 2021.
    Differs from the released code: every image draws its own squares, as a function of its key;
    a square may lie against the last row and column too; a square that would change no pixel
    counts as tried, but the model is not asked about it.
    """

    name: str
    queries: int = 5000
    share: float = 0.8

    def parameters(self, ball: Ball, classes: int) -> dict[str, float | int | str]:
        return {"loss": "margin", "queries": self.queries, "share": self.share}

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack."""
        adversarial, broken = attacked.unbroken()
        rows = torch.arange(len(broken), device=broken.device)
        proposals = self._proposals(attacked)
        best = proposals.first(attacked.x)
        value, wrong = _ask(attacked, best, attacked.y)
        for query in range(1, self.queries):
            if may_drop(query, best) and wrong.any():
                adversarial[rows[wrong]], broken[rows[wrong]] = best[wrong], True
                left = (~wrong).nonzero().flatten()
                if not len(left):
                    return adversarial, broken
                attacked, rows, best, value = attacked.of(left), rows[left], best[left], value[left]
                wrong = wrong[left]
                proposals.keep(left)
            tried = proposals.next(query, self._area(query, best), attacked.x, best)
            found, fooled = _ask_if_changed(attacked, tried, best, value)
            # a point that fools the model stays, until its image may leave
            taken = ((found > value) | fooled) & ~wrong
            best, value = either(taken, tried, best), torch.where(taken, found, value)
            wrong = wrong | fooled
        adversarial[rows], broken[rows] = best, wrong
        return adversarial, broken

    def _proposals(self, attacked: Attacked) -> Proposals:
        random = [generator_for(key, "square") for key in attacked.keys]
        if attacked.ball.norm == "linf":
            return _Squares(random, attacked.x, attacked.ball, self.queries)
        return Windows(random, attacked.x, attacked.ball, self.queries)

    def _area(self, query: int, x: Tensor) -> float:
        """The squares' area in pixels after so many queries."""
        halvings: int = sum(query > at for at in HALVINGS)
        height, width = x.shape[2:]
        return self.share * height * width / float(2**halvings)


def _ask_if_changed(
    attacked: Attacked, tried: Tensor, best: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """As `_ask` at the points `tried`. What changes no pixel of `best` changes no answer: the model
    is not asked about it, but where to know that is to wait.
    """
    if waits(tried):
        return _ask(attacked, tried, attacked.y)
    asked = (tried - best).flatten(1).abs().amax(1).nonzero().flatten()
    if len(asked) == len(tried):
        return _ask(attacked, tried, attacked.y)
    found, fooled = value.clone(), torch.zeros_like(value, dtype=torch.bool)
    if len(asked):
        found[asked], fooled[asked] = _ask(attacked, tried[asked], attacked.y[asked])
    return found, fooled


def _ask(attacked: Attacked, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The margin [n] at points with these labels, and whether they are misclassified."""
    with torch.no_grad():
        logits = attacked.model(points)
    attacked.meter.forwards += len(points)
    return margin(logits, labels), ~attacked.correct(logits, labels)


class _Squares:
    """Squares of +-eps in Linf; the random numbers are drawn at once, so that no batch can
    change them.
    """

    def __init__(self, random: list[torch.Generator], x: Tensor, ball: Ball, queries: int) -> None:
        self.ball = ball
        channels, _, width = x.shape[1:]
        self.stripes = torch.stack(
            [_signs(torch.rand(channels, 1, width, generator=g)) for g in random]
        ).to(x)
        drawn = [torch.rand(queries, 2 + channels, generator=g) for g in random]
        self.drawn = torch.stack(drawn, 1).to(x.device)
        self.rows = torch.arange(len(x), device=x.device)

    def keep(self, chosen: Tensor) -> None:
        self.rows = self.rows[chosen]

    def first(self, x: Tensor) -> Tensor:
        """Vertical stripes."""
        return self.ball.place(x, self.ball.eps * self.stripes)

    def next(self, query: int, area: float, x: Tensor, best: Tensor) -> Tensor:
        side = max(1, min(round(math.sqrt(area)), *x.shape[2:]))
        share = self.drawn[query, self.rows]
        places = window(share[:, :2], side, x)
        signs = _signs(share[:, 2:, None]).to(x)
        inside = self.ball.place(x.flatten(2).gather(2, places), self.ball.eps * signs)
        return best.flatten(2).scatter(2, places, inside).view_as(x)


def _signs(share: Tensor) -> Tensor:
    return torch.where(share < 0.5, -1.0, 1.0)
