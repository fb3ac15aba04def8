"""Square: random search with squares, which asks the model for answers alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gratis.attacks.search import Attacked, Search, generator_for
from gratis.balls import Ball
from gratis.losses import margin

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the squares' area is halved."""


@dataclass(frozen=True)
class Square:
    """Random squares of +-eps, kept where the margin rises; `queries` of them at most.

    share: of the image's pixels in the first squares.
    Source: Andriushchenko 2020b ("Square Attack"), algorithm 1 and 2 and section 3.3.
    Differs from the released code: every image draws its own squares, as a function of its key;
    a square may lie against the last row and column too. Linf alone.
    """

    name: str
    queries: int = 5000
    share: float = 0.8

    def parameters(self, ball: Ball) -> dict[str, float | int | str]:
        return {"loss": "margin", "queries": self.queries, "share": self.share}

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack. ValueError for other balls."""
        x, y, ball = attacked.x, attacked.y, attacked.ball
        if ball.norm != "linf":
            raise ValueError(f"{self.name} works in linf alone, the ball is {ball.norm}")
        adversarial, broken = attacked.unbroken()
        rows = torch.arange(len(x), device=x.device)
        search = Search(attacked)
        squares = _Squares([generator_for(key, "square") for key in attacked.keys], x, self.queries)
        best = ball.place(x, ball.eps * squares.stripes)
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
                squares.keep(left)
            window, signs = squares.draw(query, self._side(query, x))
            tried = torch.where(window, ball.place(x, ball.eps * signs.expand_as(x)), best)
            found = margin(search.look(tried), search.y)
            better = found > value
            value = torch.where(better, found, value)
            best = torch.where(better.view(-1, 1, 1, 1), tried, best)
        out = search.fooled
        adversarial[rows] = best
        adversarial[rows[out]], broken[rows[out]] = search.found[out], True
        return adversarial, broken

    def _side(self, query: int, x: Tensor) -> int:
        """The squares' side in pixels after so many queries."""
        halvings: int = sum(query > at for at in HALVINGS)
        height, width = x.shape[2:]
        side = round(math.sqrt(self.share * height * width / 2**halvings))
        return max(1, min(side, height, width))


class _Squares:
    """Each image's own random numbers, drawn at once so that no batch can change them."""

    def __init__(self, generators: list[torch.Generator], x: Tensor, queries: int) -> None:
        channels, self.height, self.width = x.shape[1:]
        self.stripes = torch.stack(
            [_signs(torch.rand(channels, 1, self.width, generator=g)) for g in generators]
        ).to(x)
        drawn = [torch.rand(queries, 2 + channels, generator=g) for g in generators]
        self.drawn = torch.stack(drawn).to(x.device)
        self.row = torch.arange(self.height, device=x.device).view(1, 1, -1, 1)
        self.column = torch.arange(self.width, device=x.device).view(1, 1, 1, -1)

    def keep(self, chosen: Tensor) -> None:
        self.drawn = self.drawn[chosen]

    def draw(self, query: int, side: int) -> tuple[Tensor, Tensor]:
        """(window [n, 1, H, W] bool, signs [n, C, 1, 1]) of this query's squares."""
        share = self.drawn[:, query]
        top = (share[:, 0] * (self.height - side + 1)).long().view(-1, 1, 1, 1)
        left = (share[:, 1] * (self.width - side + 1)).long().view(-1, 1, 1, 1)
        rows = (self.row >= top) & (self.row < top + side)
        columns = (self.column >= left) & (self.column < left + side)
        return rows & columns, _signs(share[:, 2:])[:, :, None, None]


def _signs(share: Tensor) -> Tensor:
    return torch.where(share < 0.5, -1.0, 1.0)
