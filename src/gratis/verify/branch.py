"""Branch and bound on the signs of ReLUs: complete, given time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gratis.verify.bounds import Bound
from gratis.verify.leaf import best_multipliers
from gratis.verify.nodes import Nodes, Problem, margin_bound, refreshed, split
from gratis.verify.slopes import improved

NODES_AT_ONCE = 16
STEPS = 12
"""Adam steps a node: children start from their parent's slopes and multipliers."""
CANDIDATES = 4
"""Units that are tried before one is split."""


@dataclass(frozen=True)
class Found:
    """outcome of a search. value: the bound proved for all of it, where proved or undecided.
    nodes: subproblems bounded.  point [1, C, H, W]: the confirmed counterexample.
    At the deadline, left: what is still to be searched, ties too;  closed: the bound of the rest.
    """

    outcome: Literal["proved", "broken", "undecided"]
    value: float
    nodes: int
    point: Tensor | None = None
    left: Nodes | None = None
    closed: float = float("inf")


def branch_and_bound(
    problem: Problem,
    nodes: Nodes,
    *,
    enough: float,
    deadline: float,
    confirm: Callable[[Tensor], Tensor | None],
) -> Found:
    """Prove the margin of every node above `enough`, or find a counterexample.

    deadline: on time.perf_counter's clock.  confirm: from a point [1, C, H, W] near a
    counterexample, float64, to one that holds, or None.
    Source: branch and bound with multipliers (Wang 2021); the unit to split is the one, among a
    few with a large share in the relaxation's gap, whose halves have the best bounds (filtered
    smart branching, De Palma 2021). Differs: where a bound suffers more from its multipliers
    than from open units, a linear program finds the best ones; so a node without open units is
    decided exactly.
    """
    proved = float("inf")
    ties: list[Nodes] = []
    seen = len(nodes)
    while len(nodes):
        if time.perf_counter() > deadline:
            for tie in ties:
                nodes = nodes.join(tie)
            value = min(proved, float(nodes.value.min()))
            return Found("undecided", value, seen, left=nodes, closed=proved)
        order = nodes.value.argsort()
        now, nodes = nodes.take(order[:NODES_AT_ONCE]), nodes.take(order[NODES_AT_ONCE:])
        is_open = _is_open(now)
        for leaf in (~is_open).nonzero().flatten():
            node, point = best_multipliers(problem, now.take(leaf[None]))
            value = float(node.value)
            if value > enough:
                proved = min(proved, value)
                continue
            # a tie, or a point that the two precisions do not both call wrong, stays open
            ties.append(node)
            if point is not None and (held := confirm(point)) is not None:
                return Found("broken", value, seen, held)
        now = now.take(is_open)
        if not len(now):
            continue
        children, points = _children(problem, now, enough)
        seen += len(children)
        held = _broken(problem, points, confirm)
        if held is not None:
            return Found("broken", float(children.value.min()), seen, held)
        done = children.value > enough
        proved = min([proved, *children.value[done].tolist()])
        nodes = nodes.join(children.take(~done))
    stuck = [float(tie.value) for tie in ties]
    return Found("undecided" if ties else "proved", min([proved, *stuck]), seen)


def _is_open(nodes: Nodes) -> Tensor:
    """Which nodes have open units, bool [B]."""
    parts = [part.any(1) for part in nodes.open_units()]
    return torch.stack(parts).any(0) if parts else torch.zeros_like(nodes.target, dtype=torch.bool)


def _children(problem: Problem, nodes: Nodes, enough: float) -> tuple[Nodes, Tensor]:
    """The nodes' halves, bounded, and the images where bounds that prove nothing are taken."""
    with torch.no_grad():
        layer, unit = _choice(problem, nodes)
        both = split(nodes, layer, unit, 1.0).join(split(nodes, layer, unit, -1.0))
        both, empty = refreshed(problem, both, layer.repeat(2), unit.repeat(2))
    both = both.take(~empty)  # a parent's bound holds for its halves
    if not len(both):
        return both, problem.box.low[:0]
    both = improved(problem, both, STEPS, enough)
    with torch.no_grad():
        bound = margin_bound(problem, both)
        points = [problem.box.lowest(bound.inputs[:, 0])[both.value <= enough]]
        scores = _scores(problem, both, bound).clamp_min(0).sum(1)
    # even without the open units' share the bound would not do
    for place in (both.value + scores <= enough).nonzero().flatten():
        node, point = best_multipliers(problem, both.take(place[None]))
        both = _put(both, place, node)
        if point is not None:
            points.append(point)
    return both, torch.cat(points)


def _put(nodes: Nodes, place: Tensor, node: Nodes) -> Nodes:
    """The nodes with the one at `place` exchanged."""
    order = torch.arange(len(nodes), device=place.device)
    order[place] = len(nodes)
    return nodes.join(node).take(order)


def _choice(problem: Problem, nodes: Nodes) -> tuple[Tensor, Tensor]:
    """The ReLU layer [B] and the unit [B] within it to split."""
    scores = _scores(problem, nodes, margin_bound(problem, nodes))
    sizes = torch.tensor([part.shape[1] for part in nodes.low], device=scores.device)
    ends = sizes.cumsum(0)
    best, place = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
    place = torch.where(best > -torch.inf, place, place[:, :1])
    layer = torch.bucketize(place, ends, right=True)
    unit = place - (ends - sizes)[layer]
    count = place.shape[1]
    many = nodes.take(torch.arange(len(nodes), device=place.device).repeat_interleave(count))
    halves = [
        margin_bound(problem, split(many, layer.flatten(), unit.flatten(), sign)).values
        for sign in (1.0, -1.0)
    ]
    worse = torch.minimum(*halves).view(len(nodes), count)
    chosen = worse.argmax(1, keepdim=True)
    return layer.gather(1, chosen)[:, 0], unit.gather(1, chosen)[:, 0]


def _scores(problem: Problem, nodes: Nodes, bound: Bound) -> Tensor:
    """How much of the bound each open unit's relaxation may cost, [B, units of all layers]."""
    parts = []
    for behind, units, low, high, slope, open_ in zip(
        bound.behind, problem.units, nodes.low, nodes.high, nodes.slope, nodes.open_units(),
        strict=True,
    ):  # fmt: skip
        weight = behind[:, 0].flatten(1)[:, units]
        gap_above = -low * high / (high - low).clamp_min(1e-12)
        gap_below = torch.maximum(high * (1 - slope), -low * slope)
        cost = -weight.clamp_max(0) * gap_above + weight.clamp_min(0) * gap_below
        parts.append(torch.where(open_, cost, -torch.inf))
    return torch.cat(parts, 1)


def _broken(
    problem: Problem, points: Tensor, confirm: Callable[[Tensor], Tensor | None]
) -> Tensor | None:
    """A counterexample among points [N, C, H, W] of the box."""
    if not len(points):
        return None
    logits = problem.network.logits(points)
    others = logits.clone()
    others[:, problem.label] = -torch.inf
    margins = logits[:, problem.label] - others.amax(1)
    for place in (margins < 0).nonzero().flatten().tolist():
        if (held := confirm(points[place : place + 1])) is not None:
            return held
    return None
