"""Slopes and multipliers found by gradient: alpha-CROWN and beta-CROWN."""

from dataclasses import replace

import torch
from torch import Tensor

from gratis.verify.bounds import Bound, lower_bound, widened
from gratis.verify.nodes import Nodes, Parts, Problem, margin_bound, relaxed, roots

UNITS_AT_ONCE = 64


def improved(
    problem: Problem,
    nodes: Nodes,
    steps: int,
    enough: float,
    rows: Tensor | None = None,
    rate: float = 0.1,
) -> Nodes:
    """The nodes with slopes and multipliers that Adam found in `steps` steps up the bound.

    No value falls. Ends early where all are above `enough`.
    Source: alpha-CROWN (Xu 2021) and beta-CROWN (Wang 2021). Differs: bounds of units stay as
    they are and are refreshed by CROWN after a split instead.
    """
    slope = [part.clone().requires_grad_() for part in nodes.slope]
    push = [part.clone().requires_grad_() for part in nodes.push]
    optimizer = torch.optim.Adam(
        [{"params": slope, "lr": rate}, {"params": push, "lr": rate / 2}], foreach=False
    )
    shrink = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    # what is known may be more than slopes and multipliers give: those that give most are kept
    known = nodes.value
    best = replace(nodes, value=torch.full_like(known, -torch.inf))
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            now = replace(nodes, slope=tuple(slope), push=tuple(push))
            values = _bound(problem, now, rows).values[:, 0]
        better = values.detach() > best.value
        best = replace(
            best,
            slope=_where(better, now.slope, best.slope),
            push=_where(better, now.push, best.push),
            value=torch.where(better, values.detach(), best.value),
        )
        todo = torch.maximum(best.value, known) <= enough
        if step == steps or not todo.any() or not values.requires_grad:
            break
        parameters = [*slope, *push]
        grads = torch.autograd.grad(-values[todo].sum(), parameters, allow_unused=True)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        shrink.step()
        with torch.no_grad():
            for part in slope:
                part.clamp_(0, 1)
            for part in push:
                part.clamp_(min=0)
    return replace(best, value=torch.maximum(best.value, known))


def _where(better: Tensor, new: Parts, old: Parts) -> Parts:
    return tuple(
        torch.where(better[:, None], one.detach(), other)
        for one, other in zip(new, old, strict=True)
    )


def _bound(problem: Problem, nodes: Nodes, rows: Tensor | None) -> Bound:
    if rows is None:
        return margin_bound(problem, nodes)
    return lower_bound(problem.network, rows, relaxed(problem, nodes), problem.box)


def sharpened(problem: Problem, steps: int) -> Problem:
    """The problem with unstable units bounded again, each with slopes of its own (Xu 2021).

    Layer by layer, so that later ones profit; steps of Adam a unit and side.
    """
    bounds = list(problem.bounds)
    for place in range(1, len(bounds)):
        now = replace(problem, bounds=tuple(bounds))
        low, high = (bound.flatten(1).clone() for bound in bounds[place])
        for first in range(0, len(now.units[place]), UNITS_AT_ONCE):
            units = now.units[place][first : first + UNITS_AT_ONCE]
            eye = low.new_zeros(len(units), low.shape[1]).scatter_(1, units[:, None], 1.0)
            rows = torch.cat([eye, -eye]).view(-1, *problem.network.stages[place].outputs)
            nodes = roots(now, units.repeat(2), layers=place)
            # a unit whose sign is settled needs no better bound
            values = improved(now, nodes, steps, 0.0, rows[:, None]).value
            tight = widened(values[: len(units)], -values[len(units) :])
            low[0, units] = torch.maximum(low[0, units], tight[0])
            high[0, units] = torch.minimum(high[0, units], tight[1])
        shape = bounds[place][0].shape
        bounds[place] = (low.view(shape), high.view(shape))
    return replace(problem, bounds=tuple(bounds))
