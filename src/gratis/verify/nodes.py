"""Subproblems of branch and bound: boxes of images on which some ReLUs have a given sign."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from gratis.verify.affine import Piecewise
from gratis.verify.bounds import (
    ROUNDING,
    Bound,
    Box,
    Lines,
    lines,
    lower_bound,
    margin_rows,
    unit_bounds,
    unstable,
)


@dataclass(frozen=True)
class Problem:
    """One image's box and what is known on all of it.

    bounds: (low, high) of each ReLU layer, [1, *shape].  units: the flat places [m] of the
    layer's unstable units; subproblems know of no others.
    """

    network: Piecewise
    box: Box
    label: int
    bounds: tuple[tuple[Tensor, Tensor], ...]

    @cached_property
    def rounding(self) -> float:
        """What a bound may lose to rounding for each unit of the multipliers that it is made
        with: a multiplier of 1 brings in as much as a unit's pre-activation.
        """
        pixel = float(torch.maximum(self.box.low.abs(), self.box.high.abs()).max())
        return ROUNDING * max(self.network.magnitudes(self.box.low, pixel))

    @property
    def units(self) -> tuple[Tensor, ...]:
        return tuple(unstable(*pair).flatten().nonzero().flatten() for pair in self.bounds)


Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class Nodes:
    """B subproblems. For each ReLU layer, [B, m], float64:

    low, high: bounds.  sign: 1 or -1 where the branch assumes it, else 0.
    slope: the lower line's, in [0, 1], used while a unit is unstable.
    push: the multiplier of the assumed sign, >= 0.
    Besides: target [B], the class to be kept below the label; value [B], the proved bound of the
    margin.
    """

    low: Parts
    high: Parts
    sign: Parts
    slope: Parts
    push: Parts
    target: Tensor
    value: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def take(self, chosen: Tensor) -> "Nodes":
        """The nodes `chosen`: indices or a mask."""
        return self._each(lambda parts: parts[0][chosen])

    def join(self, other: "Nodes") -> "Nodes":
        return self._each(torch.cat, other)

    def _each(self, call: Callable[[Parts], Tensor], *others: "Nodes") -> "Nodes":
        """Nodes of what `call` makes of each tensor of this and the others."""

        def layers(name: str) -> Parts:
            return tuple(map(call, zip(*(getattr(n, name) for n in (self, *others)), strict=True)))

        def whole(name: str) -> Tensor:
            return call(tuple(getattr(n, name) for n in (self, *others)))

        return Nodes(
            low=layers("low"),
            high=layers("high"),
            sign=layers("sign"),
            slope=layers("slope"),
            push=layers("push"),
            target=whole("target"),
            value=whole("value"),
        )

    def open_units(self) -> Parts:
        """Which units may still have either sign, bool [B, m] for each layer."""
        return tuple(unstable(low, high) for low, high in zip(self.low, self.high, strict=True))


def roots(problem: Problem, targets: Tensor, layers: int | None = None) -> Nodes:
    """One node for each target [T], nothing assumed; of the first `layers` ReLU layers alone."""
    count = len(targets)
    compact = [
        tuple(bound.flatten()[units].expand(count, -1) for bound in pair)
        for pair, units in list(zip(problem.bounds, problem.units, strict=True))[:layers]
    ]
    zeros = tuple(torch.zeros_like(low) for low, _ in compact)
    return Nodes(
        low=tuple(low for low, _ in compact),
        high=tuple(high for _, high in compact),
        sign=zeros,
        slope=tuple(lines(low, high).lower for low, high in compact),
        push=zeros,
        target=targets,
        value=torch.full((count,), -torch.inf, dtype=torch.double, device=targets.device),
    )


def relaxed(problem: Problem, nodes: Nodes) -> list[Lines]:
    """The lines of the nodes' ReLU layers, [B, *shape]; differentiable in slope and push."""
    found = []
    for place in range(len(nodes.low)):
        pair, units = problem.bounds[place], problem.units[place]
        shape = (len(nodes), *pair[0].shape[1:])
        whole, own = lines(*pair), lines(nodes.low[place], nodes.high[place])
        either = unstable(nodes.low[place], nodes.high[place])
        own = replace(
            own,
            lower=torch.where(either, nodes.slope[place], own.lower),
            push=-nodes.push[place] * nodes.sign[place],
        )

        def placed(
            base: Tensor, part: Tensor, units: Tensor = units, shape: tuple[int, ...] = shape
        ) -> Tensor:
            flat = base.flatten(1).expand(shape[0], -1)
            return flat.index_copy(1, units, part).view(shape)

        assert own.push is not None
        found.append(
            Lines(
                placed(whole.lower, own.lower),
                placed(whole.upper, own.upper),
                placed(whole.above, own.above),
                placed(torch.zeros_like(whole.above), own.push),
            )
        )
    return found


def margin_bound(problem: Problem, nodes: Nodes) -> Bound:
    """A lower bound of label minus target on each node; values [B, 1]."""
    rows = margin_rows(problem.network, problem.label, nodes.target)[0][:, None]
    bound = lower_bound(problem.network, rows, relaxed(problem, nodes), problem.box)
    pushed = [(push * sign).abs().sum(1) for push, sign in zip(nodes.push, nodes.sign, strict=True)]
    none = nodes.value.new_zeros(len(nodes))  # of a network without ReLUs
    lost = problem.rounding * torch.stack([none, *pushed]).sum(0)
    return replace(bound, values=bound.values - lost.view(-1, 1))


def split(nodes: Nodes, layer: Tensor, unit: Tensor, sign: float) -> Nodes:
    """The halves of the nodes on which unit `unit` [B] of ReLU layer `layer` [B] has `sign`."""
    low, high, signs, push = (
        [part.clone() for part in parts]
        for parts in (nodes.low, nodes.high, nodes.sign, nodes.push)
    )
    for place in range(len(low)):
        here = (layer == place).nonzero().flatten()
        at = (here, unit[here])
        signs[place][at] = sign
        push[place][at] = 0.0
        if sign > 0:
            low[place][at] = low[place][at].clamp_min(0)
        else:
            high[place][at] = high[place][at].clamp_max(0)
    return replace(nodes, low=tuple(low), high=tuple(high), sign=tuple(signs), push=tuple(push))


def refreshed(problem: Problem, nodes: Nodes, layer: Tensor, unit: Tensor) -> tuple[Nodes, Tensor]:
    """The nodes with tighter bounds behind a fresh split, and which are empty, bool [B].

    layer, unit [B]: what was split. Only units that the split reaches are bounded again. An
    empty node (a lower bound above an upper one) holds no image: nothing is left to prove.
    """
    low, high = list(nodes.low), list(nodes.high)
    empty = torch.zeros_like(nodes.target, dtype=torch.bool)
    touched: Tensor | None = None
    for place, units in enumerate(problem.units):
        stage = problem.network.stages[place]
        marks = torch.zeros(
            len(nodes), problem.bounds[place][0][0].numel(), dtype=torch.double, device=unit.device
        )
        if touched is not None:
            reached = (stage.spread(touched.view(-1, *stage.inputs)) > 0).flatten(1)
            again = reached[:, units] & unstable(low[place], high[place])
            rows = again.any(1).nonzero().flatten()
            if len(rows):
                most = int(again.sum(1).max())
                # a row with fewer is filled up with others, which does no harm
                chosen = again[rows].to(torch.uint8).topk(most, dim=1).indices
                part = replace(nodes, low=tuple(low), high=tuple(high)).take(rows)
                before = [_plain(line) for line in relaxed(problem, part)[:place]]
                tight = unit_bounds(problem.network, before, problem.box, units[chosen])
                low[place] = low[place].clone()
                high[place] = high[place].clone()
                low[place][rows] = low[place][rows].scatter_reduce(1, chosen, tight[0], "amax")
                high[place][rows] = high[place][rows].scatter_reduce(1, chosen, tight[1], "amin")
                marks[rows[:, None], units[chosen]] = 1.0
            empty |= (low[place] > high[place]).any(1)
        here = (layer == place).nonzero().flatten()
        marks[here, units[unit[here]]] = 1.0
        touched = marks
    return replace(nodes, low=tuple(low), high=tuple(high)), empty


def _plain(line: Lines) -> Lines:
    """Without multipliers: they belong to the margin's row, not to those of units."""
    return replace(line, push=None)
