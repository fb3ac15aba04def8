"""Sound bounds of a piecewise-linear network on a box of images: intervals and CROWN.

B boxes or subproblems, S rows (linear functions to bound) each. A ReLU layer's bounds are those
of its pre-activations, [B, *shape]. Everything is float64.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from gratis.verify.affine import Piecewise

WIDENING = 1e-9
"""Bounds of pre-activations are moved outwards by this, times their size where that is above 1:
far more than the rounding of float64, far less than what could cost a proof."""

ROUNDING = 1e-12
"""Of the largest sum of absolute terms that something passes through: some thousand times the
precision of float64."""

ENTRIES_AT_ONCE = 4_000_000
"""Rows are bounded in chunks of so many coefficients (32 MB), to stay in memory."""


@dataclass(frozen=True)
class Box:
    """All images between low and high, [B, C, H, W] each, float64."""

    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor, eps: float, low: float = 0.0, high: float = 1.0) -> "Box":
        """The images within eps of x [B, C, H, W] in every pixel, and within [low, high]."""
        x = x.double()
        return cls((x - eps).clamp_min(low), (x + eps).clamp_max(high))

    def least(self, A: Tensor) -> Tensor:
        """min of <A, x> over the box for rows A [B, S, C, H, W]: [B, S]."""
        low, high = self.low[:, None], self.high[:, None]
        return (A.clamp_min(0) * low + A.clamp_max(0) * high).flatten(2).sum(2)

    def lowest(self, A: Tensor) -> Tensor:
        """Where that minimum is taken, for one row an image: A [B, C, H, W] -> [B, C, H, W]."""
        return torch.where(A > 0, self.low, self.high)


@dataclass(frozen=True)
class Lines:
    """A ReLU layer between two lines: lower * z <= relu(z) <= upper * z + above, [B, *shape].

    push: added to a row's coefficients of z: minus the multipliers (beta, Wang 2021) of the
    signs of z that a branch assumes.
    """

    lower: Tensor
    upper: Tensor
    above: Tensor
    push: Tensor | None = None


def lines(low: Tensor, high: Tensor) -> Lines:
    """The tightest upper line, and a lower one of slope 0 or 1 that leaves the smaller area.

    Source: CROWN (Zhang 2018), the adaptive choice.
    """
    either = unstable(low, high)
    active = (low >= 0).to(low.dtype)
    width = torch.where(either, high - low, 1.0)
    upper = torch.where(either, high / width, active)
    above = torch.where(either, -low * high / width, 0.0)
    lower = torch.where(either, (high > -low).to(low.dtype), active)
    return Lines(lower, upper, above)


@dataclass(frozen=True)
class Bound:
    """values [B, S]: a lower bound of each row.  inputs [B, S, C, H, W]: its coefficients there.
    behind: for each ReLU layer the coefficients of its outputs, [B, S, *shape].
    """

    values: Tensor
    inputs: Tensor
    behind: tuple[Tensor, ...]


def lower_bound(network: Piecewise, rows: Tensor, relaxed: list[Lines], box: Box) -> Bound:
    """Bound rows [B, S, *outputs] of the stage behind the last of `relaxed`, from below.

    relaxed: the ReLU layers passed on the way, first layer first; its length names the stage.
    Source: CROWN (Zhang 2018), equation 4, with free lower slopes (Xu 2021) and multipliers
    (Wang 2021, theorem 3.1) where `relaxed` has them.
    """
    behind: list[Tensor] = []
    rows, total = network.stages[len(relaxed)].transpose(rows)
    for place in reversed(range(len(relaxed))):
        line = relaxed[place]
        behind.append(rows)
        positive, negative = rows.clamp_min(0), rows.clamp_max(0)
        total = total + (negative * line.above[:, None]).flatten(2).sum(2)
        rows = positive * line.lower[:, None] + negative * line.upper[:, None]
        if line.push is not None:
            rows = rows + line.push[:, None]
        rows, added = network.stages[place].transpose(rows)
        total = total + added
    return Bound(total + box.least(rows), rows, tuple(reversed(behind)))


def widened(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return (
        low - WIDENING * low.abs().clamp_min(1),
        high + WIDENING * high.abs().clamp_min(1),
    )


def interval_bounds(network: Piecewise, box: Box) -> list[tuple[Tensor, Tensor]]:
    """Bounds of every stage's outputs by interval arithmetic (IBP, Gowal 2018)."""
    found: list[tuple[Tensor, Tensor]] = []
    low, high = box.low, box.high
    for stage in network.stages:
        found.append(widened(*stage.interval(low, high)))
        low, high = (bound.clamp_min(0) for bound in found[-1])
    return found


def crown_bounds(network: Piecewise, box: Box) -> list[tuple[Tensor, Tensor]]:
    """Bounds [1, *shape] of every ReLU layer's pre-activations on one box, first layer first.

    Intervals first; the units whose sign they leave open are bounded backwards as well (CROWN,
    Zhang 2018), and the tighter of the two counts.
    """
    found: list[tuple[Tensor, Tensor]] = []
    relaxed: list[Lines] = []
    below, above = box.low, box.high
    for stage in network.stages[:-1]:
        low, high = widened(*stage.interval(below, above))
        units = unstable(low, high).flatten().nonzero().flatten()
        if relaxed and len(units):
            tight = unit_bounds(network, relaxed, box, units[None])
            low = low.flatten(1).scatter_reduce(1, units[None], tight[0], "amax").view_as(low)
            high = high.flatten(1).scatter_reduce(1, units[None], tight[1], "amin").view_as(high)
        found.append((low, high))
        relaxed.append(lines(low, high))
        below, above = low.clamp_min(0), high.clamp_min(0)
    return found


def unstable(low: Tensor, high: Tensor) -> Tensor:
    """Which pre-activations may have either sign."""
    return (low < 0) & (high > 0)


def unit_bounds(
    network: Piecewise, relaxed: list[Lines], box: Box, units: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds (low, high), [B, n] each, of the pre-activations `units` [B, n] by CROWN.

    units: flat places, n > 0, in the layer behind `relaxed`.
    """
    stage = network.stages[len(relaxed)]
    size = prod(stage.outputs)
    largest = max(size, *(prod(s.inputs) for s in network.stages[: len(relaxed) + 1]))
    at_once = max(1, ENTRIES_AT_ONCE // (2 * largest * len(units)))
    lows, highs = [], []
    for first in range(0, units.shape[1], at_once):
        part = units[:, first : first + at_once]
        rows = box.low.new_zeros(*part.shape, size).scatter_(2, part[:, :, None], 1.0)
        rows = torch.cat([rows, -rows], 1).view(len(part), -1, *stage.outputs)
        low, minus_high = lower_bound(network, rows, relaxed, box).values.chunk(2, 1)
        lows.append(low)
        highs.append(-minus_high)
    return widened(torch.cat(lows, 1), torch.cat(highs, 1))


def margin_rows(network: Piecewise, label: int, targets: Tensor) -> Tensor:
    """Rows [1, T, K]: the label's logit minus that of each target."""
    rows = torch.zeros(1, len(targets), network.classes, dtype=torch.double, device=targets.device)
    rows.scatter_(2, targets[None, :, None], -1.0)
    rows[:, :, label] += 1.0
    return rows
