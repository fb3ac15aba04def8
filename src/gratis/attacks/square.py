"""Square: random search with squares, which asks the model for answers alone."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gratis.attacks.search import Attacked, Search, generator_for
from gratis.attacks.windows import Windows
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
    a square may lie against the last row and column too.
    """

    name: str
    queries: int = 5000
    share: float = 0.8

    def parameters(self, ball: Ball) -> dict[str, float | int | str]:
        return {"loss": "margin", "queries": self.queries, "share": self.share}

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack."""
        x, y = attacked.x, attacked.y
        adversarial, broken = attacked.unbroken()
        rows = torch.arange(len(x), device=x.device)
        search = Search(attacked)
        proposals = self._proposals(attacked)
        best = proposals.first(x)
        value = margin(search.look(best), y)
        for query in range(1, self.queries):
            out = search.fooled
            if bool(out.any()):
                adversarial[rows[out]], broken[rows[out]] = search.found[out], True
                left = (~out).nonzero().flatten()
                if not len(left):
                    return adversarial, broken
                rows, x, best, value = rows[left], x[left], best[left], value[left]
                search.keep(left)
                proposals.keep(left)
            tried = proposals.next(query, self._area(query, x), x, best)
            found = margin(search.look(tried), search.y)
            better = found > value
            value = torch.where(better, found, value)
            best = torch.where(better.view(-1, 1, 1, 1), tried, best)
        out = search.fooled
        adversarial[rows] = best
        adversarial[rows[out]], broken[rows[out]] = search.found[out], True
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


class _Squares:
    """Squares of +-eps in Linf; the random numbers are drawn at once, so that no batch can
    change them.
    """

    def __init__(self, random: list[torch.Generator], x: Tensor, ball: Ball, queries: int) -> None:
        self.ball = ball
        channels, self.height, self.width = x.shape[1:]
        self.stripes = torch.stack(
            [_signs(torch.rand(channels, 1, self.width, generator=g)) for g in random]
        ).to(x)
        drawn = [torch.rand(queries, 2 + channels, generator=g) for g in random]
        self.drawn = torch.stack(drawn).to(x.device)
        self.row = torch.arange(self.height, device=x.device).view(1, 1, -1, 1)
        self.column = torch.arange(self.width, device=x.device).view(1, 1, 1, -1)

    def keep(self, chosen: Tensor) -> None:
        self.drawn = self.drawn[chosen]

    def first(self, x: Tensor) -> Tensor:
        """Vertical stripes."""
        return self.ball.place(x, self.ball.eps * self.stripes)

    def next(self, query: int, area: float, x: Tensor, best: Tensor) -> Tensor:
        side = max(1, min(round(math.sqrt(area)), self.height, self.width))
        share = self.drawn[:, query]
        top = (share[:, 0] * (self.height - side + 1)).long().view(-1, 1, 1, 1)
        left = (share[:, 1] * (self.width - side + 1)).long().view(-1, 1, 1, 1)
        rows = (self.row >= top) & (self.row < top + side)
        columns = (self.column >= left) & (self.column < left + side)
        signs = _signs(share[:, 2:])[:, :, None, None]
        return torch.where(
            rows & columns, self.ball.place(x, self.ball.eps * signs.expand_as(x)), best
        )


def _signs(share: Tensor) -> Tensor:
    return torch.where(share < 0.5, -1.0, 1.0)
