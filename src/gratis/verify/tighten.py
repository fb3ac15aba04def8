"""Tighter bounds by linear programs, of units and of margins; the bounds are our own."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gratis.verify.bounds import margin_rows, widened
from gratis.verify.nodes import Problem
from gratis.verify.program import Array, Bounds, Rows, composed, open_places, program, unit_rows
from gratis.verify.solver import LINEAR_SCRIPT, answers

ROUNDS = 4
"""At most so many times are all units bounded anew for a target."""

PROGRAMS_AT_ONCE = 256
"""So many rows of multipliers are made bounds at a time, to stay in memory."""


def doubted(problem: Problem, target: int, enough: float, deadline: float) -> Problem | None:
    """The problem with bounds that hold wherever label minus target is `enough` at most.

    None where that is nowhere. Two linear programs a unit of unsettled sign over the triangle
    relaxation (Ehlers 2017) of all layers, with the doubt as one more row, again while signs get
    settled, until `deadline` (time.perf_counter's clock). Source: LP tightening (Tjeng 2019).
    Differs: the doubted margin is a row (as in Kotha 2023), and the solver only proposes
    multipliers, see `certified`.
    """
    network, bounds = problem.network, list(problem.bounds)
    targets = torch.tensor([target], device=problem.box.low.device)
    row = margin_rows(network, problem.label, targets)
    count = sum(map(len, open_places(bounds)))
    for _ in range(ROUNDS):
        with torch.no_grad():
            costs = composed(network, row, bounds)
            job = program(network, problem.box, bounds).job(costs)
            if _margin(problem, row, bounds, job, deadline) > enough:
                return None
            if count:
                bounds = _units(problem, row, bounds, job, enough, deadline)
        if any(bool((low > high).any()) for low, high in bounds):
            return None
        before, count = count, sum(map(len, open_places(bounds)))
        if count in (0, before) or time.perf_counter() > deadline:
            break
    return replace(problem, bounds=tuple(bounds))


def _margin(
    problem: Problem, row: Tensor, bounds: Bounds, job: dict[str, Any], deadline: float
) -> float:
    """The bound of the margin `row` by one linear program; -inf without an answer."""
    found = answers(LINEAR_SCRIPT, job, deadline - time.perf_counter())
    if not found:
        return float("-inf")
    multipliers = torch.from_numpy(found[0][2])[None].to(row)
    return float(certified(problem, row, bounds, multipliers))


def _units(
    problem: Problem,
    row: Tensor,
    bounds: Bounds,
    job: dict[str, Any],
    enough: float,
    deadline: float,
) -> Bounds:
    """The bounds with those units tighter whose programs were solved before the deadline."""
    places = open_places(bounds)
    count = sum(map(len, places))
    # a unit's two sides one after the other: the programs are alike
    sides = np.stack([np.eye(count), -np.eye(count)], 1).reshape(-1, count)
    doubt = {
        **job,
        "cost_pixels": np.zeros((2 * count, len(job["pixel_low"]))),
        "cost_units": np.zeros((2 * count, count)),
        "cost_inputs": sides,
        "row": np.concatenate([job["cost_pixels"][0], job["cost_units"][0]]),
        "row_limit": enough - job["cost_constant"][0],
    }
    values = torch.full((2 * count,), -torch.inf, dtype=torch.double, device=row.device)
    found = answers(LINEAR_SCRIPT, doubt, deadline - time.perf_counter())
    for first in range(0, len(found), PROGRAMS_AT_ONCE):
        part = found[first : first + PROGRAMS_AT_ONCE]
        at = np.array([place for place, _, _ in part])
        each = torch.from_numpy(np.stack([multipliers for _, _, multipliers in part])).to(row)
        each = each.nan_to_num()  # what a solver says may be no number
        weight = (-each[:, count]).clamp_min(0)  # of the doubt, which is one-sided
        rows = weight.view(1, -1, 1) * row
        inputs = torch.from_numpy(sides[at]).to(row)
        least = certified(problem, rows, bounds, each[:, :count], inputs)
        values[torch.from_numpy(at).to(row.device)] = least - weight * enough
    lows, highs = widened(values[0::2], -values[1::2])
    sizes = [len(units) for units in places]
    tight = []
    for pair, units, low, high in zip(
        bounds, places, torch.split(lows, sizes), torch.split(highs, sizes), strict=True
    ):
        one, other = (bound.flatten().clone() for bound in pair)
        one[units] = torch.maximum(one[units], low)
        other[units] = torch.minimum(other[units], high)
        tight.append((one.view(pair[0].shape), other.view(pair[0].shape)))
    return tight


def tightened(problem: Problem, deadline: float) -> Problem:
    """The problem with unstable units behind the first layer bounded as the solver states it.

    No arithmetic of ours is in these bounds, and the solver's tolerances are: for cross-checks.
    Layer by layer, so that later ones profit; an equal share of the time until `deadline` (on
    time.perf_counter's clock) each, and what is not bounded by then stays as it is.
    """
    bounds = list(problem.bounds)
    for place in range(1, len(bounds)):
        units = open_places([bounds[place]])[0]
        if not len(units):
            continue
        seconds = (deadline - time.perf_counter()) / (len(bounds) - place)
        stage, before = problem.network.stages[place], bounds[:place]
        rows = unit_rows(bounds[place][0].numel(), units)
        sides = torch.stack([rows, -rows], 2).view(1, -1, *stage.outputs)
        with torch.no_grad():
            costs = composed(problem.network, sides, before)
            job = program(problem.network, problem.box, before).job(costs)
        values = _stated(costs, answers(LINEAR_SCRIPT, job, seconds)).to(rows)
        low, high = (bound.flatten().clone() for bound in bounds[place])
        tight = widened(values[0::2], -values[1::2])
        low[units] = torch.maximum(low[units], tight[0])
        high[units] = torch.minimum(high[units], tight[1])
        shape = bounds[place][0].shape
        bounds[place] = (low.view(shape), high.view(shape))
    return replace(problem, bounds=tuple(bounds))


def _stated(costs: Rows, found: list[tuple[int, float, Array]]) -> Tensor:
    """The solver's least values [R], -inf for those that it did not solve."""
    values = np.full(len(costs.constant), -np.inf)
    for place, value, _ in found:
        values[place] = value + costs.constant[place]
    return torch.from_numpy(values)


def certified(
    problem: Problem,
    rows: Tensor,
    bounds: Bounds,
    multipliers: Tensor,
    inputs: Tensor | None = None,
) -> Tensor:
    """Lower bounds [R] of rows [1, R, *outputs] of the stage behind `bounds`.

    inputs [R, U]: coefficients of the unsettled units' pre-activations z, besides.
    multipliers [R, U]: what stands for z where it has the coefficient d and the unit's output c:
    c relu(z) + d z >= m z + min((d - m) low, 0, (c + d - m) high), the least being taken at an
    end or at the kink. Holds for any m whatever; a linear program's multipliers of z's definition
    give its own value. What rounding may cost of large ones, and of rows scaled up, is taken off.
    """
    network, box = problem.network, problem.box
    if inputs is None:
        inputs = torch.zeros_like(multipliers)
    scale = rows.abs().flatten(2).amax(2)[0] + (multipliers.abs() + inputs.abs()).sum(1)
    rows, total = network.stages[len(bounds)].transpose(rows)
    places = open_places(bounds)
    sizes = [len(units) for units in places]
    proposed, direct = torch.split(multipliers, sizes, 1), torch.split(inputs, sizes, 1)
    for place in reversed(range(len(bounds))):
        low, high = (bound.flatten() for bound in bounds[place])
        units, m, d = places[place], proposed[place], direct[place]
        flat = rows.flatten(2)
        c = flat[0][:, units]
        ends = torch.minimum((d - m) * low[units], (c + d - m) * high[units])
        least = ends.clamp_max(0)
        total = total + least.sum(1)
        passing = flat * (low >= 0).to(flat.dtype)
        rows = passing.index_copy(2, units, m[None]).view(rows.shape)
        rows, added = network.stages[place].transpose(rows)
        total = total + added
    values = (total + box.least(rows))[0] - problem.rounding * scale
    return torch.where(values.isfinite(), values, -torch.inf)
