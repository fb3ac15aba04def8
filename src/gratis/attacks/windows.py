"""Square's proposals in L2 and L1: two square windows, one of which gives to the other."""

import math

import torch
from torch import Tensor

from gratis.balls import Ball

TILES = 5
"""The first perturbation is about this many tiles high or wide, along the shorter side."""
SMALLEST = 3


class Windows:
    """Perturbations made of bumps, positive on one side and negative on the other.

    Each query draws two windows and a bump. The second window is emptied; the first gets the
    bump, added to the shape of what it held, as long as what both held and the ball has left.
    Source: Andriushchenko 2020b, algorithm 3, section 3.4 and equation 2; in L1 the released code
    of Croce & Hein 2021.
    Differs from the code: every image draws its own windows and directions, from `random`; a
    window may lie against the last row and column too; images of any size are tiled.
    """

    def __init__(self, random: list[torch.Generator], x: Tensor, ball: Ball, queries: int) -> None:
        self.ball = ball
        self.power = 1 if ball.norm == "l1" else 2
        self.channels, self.height, self.width = x.shape[1:]
        self.tile = max(1, min(self.height, self.width) // TILES)
        count = (self.height // self.tile) * (self.width // self.tile)
        # all at once, so that no batch can change them
        tiles = [torch.rand(count, 1 + self.channels, generator=g) for g in random]
        drawn = [torch.rand(queries, 5 + self.channels, generator=g) for g in random]
        self.tiles = torch.stack(tiles).to(x.device)
        self.drawn = torch.stack(drawn, 1).to(x.device)
        self.rows = torch.arange(len(x), device=x.device)
        self.made: dict[int, Tensor] = {}

    def keep(self, chosen: Tensor) -> None:
        self.rows = self.rows[chosen]

    def first(self, x: Tensor) -> Tensor:
        """A bump in every tile, the tiles in the middle of the image."""
        side, down, across = self.tile, self.height // self.tile, self.width // self.tile
        bumps = self._bumps(self.tiles[..., 0], side, x)[:, :, None] * _signs(
            self.tiles[..., 1:, None, None]
        )
        # [n, down * across, C, side, side] -> [n, C, down * side, across * side]
        laid = bumps.view(len(x), down, across, self.channels, side, side)
        laid = laid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        top, left = (self.height - down * side) // 2, (self.width - across * side) // 2
        delta = torch.zeros_like(x)
        delta[:, :, top : top + down * side, left : left + across * side] = laid
        return self._placed(x, (self.ball.high - self.ball.low) * delta)

    def next(self, query: int, area: float, x: Tensor, best: Tensor) -> Tensor:
        """The points of query number `query`, with windows of about `area` pixels."""
        side = max(round(math.sqrt(area)), SMALLEST)
        side = min(side + 1 - side % 2, self.height, self.width)
        share = self.drawn[query, self.rows]
        gets, gives = window(share[:, 0:2], side, x), window(share[:, 2:4], side, x)
        bump = self._bumps(share[:, 4], side, x).flatten(1)[:, None] * _signs(share[:, 5:, None])
        delta = (best - x).flatten(2)
        held = delta.gather(2, gets)
        emptied = delta.scatter(2, gets, 0.0).scatter(2, gives, 0.0)
        shape = self._unit(bump + self._unit(held))
        moved = emptied.scatter(2, gets, self._length_for(delta, emptied) * shape)
        return self._placed(x, moved.view_as(x))

    def _length_for(self, delta: Tensor, emptied: Tensor) -> Tensor:
        """The length [n, C, 1] of what each channel's window gets."""
        p = self.power
        given = self._length(delta - emptied) ** p
        used = self._length(delta.flatten(1)[:, None]) ** p
        length = (given + (self.ball.eps**p - used).clamp_min(0) / self.channels) ** (1 / p)
        # in L1 the code gives too much: the projection then shortens every small change
        return length * self.channels if p == 1 else length

    def _placed(self, x: Tensor, delta: Tensor) -> Tensor:
        """The points with delta stretched to the radius in L2, next to delta in L1."""
        if self.power == 2:
            return self.ball.place(x, self.ball.eps * self.ball.steepest(delta))
        return self.ball.place(x, self.ball.project(x, delta))

    def _bumps(self, share: Tensor, side: int, x: Tensor) -> Tensor:
        """Bumps [..., side, side] of length 1, upright or lying as the shares [...] say."""
        if side not in self.made:  # once a side: to send it to a device is to wait for that
            self.made[side] = self._both_ways(side).to(x)
        return self.made[side][(share < 0.5).long()]

    def _both_ways(self, side: int) -> Tensor:
        """The bump upright and lying, [2, side, side]."""
        upper = side // 2
        halves = [
            rising * self._unit(self._pile(rows, side).flatten()).view(rows, side)
            for rising, rows in ((1, upper), (-1, side - upper))
        ]
        upright = self._unit(torch.cat(halves).flatten()).view(side, side)
        return torch.stack([upright, upright.T])

    def _pile(self, rows: int, columns: int) -> Tensor:
        """Highest in the middle: rectangles of growing size laid on each other, ever thinner."""
        row, column = torch.arange(rows)[:, None], torch.arange(columns)
        away = torch.maximum((row - rows // 2).abs(), (column - columns // 2).abs())
        layers = torch.arange(1, max(rows, columns) // 2 + 2, dtype=torch.float64)
        thickness = layers ** (-4 / self.power)
        return thickness.flip(0).cumsum(0).flip(0)[away]

    def _unit(self, delta: Tensor) -> Tensor:
        return delta / self._length(delta).clamp_min(1e-12)

    def _length(self, delta: Tensor) -> Tensor:
        """In the ball's norm over the last dimension, [..., 1]."""
        length: Tensor = torch.linalg.vector_norm(delta, self.power, dim=-1, keepdim=True)
        return length


def window(share: Tensor, side: int, x: Tensor) -> Tensor:
    """Places [n, C, side * side] among the pixels of x's images of a window, from shares [n, 2]."""
    channels, height, width = x.shape[1:]
    top = (share[:, :1] * (height - side + 1)).long()
    left = (share[:, 1:] * (width - side + 1)).long()
    along = torch.arange(side, device=share.device)
    rows, columns = (top + along)[:, :, None], (left + along)[:, None]
    places = (rows * width + columns).flatten(1)
    return places[:, None].expand(-1, channels, -1)


def _signs(share: Tensor) -> Tensor:
    return torch.where(share < 0.5, -1.0, 1.0)
