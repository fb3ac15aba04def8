"""The best multipliers of a node by linear programming, and a bound that is our own."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gratis.verify.bounds import ROUNDING, lower_bound
from gratis.verify.nodes import Nodes, Problem, margin_bound, relaxed

Array = npt.NDArray[Any]

EMPTY = 1e-9
"""A node is empty where some mixture of its signs is violated by more than this everywhere."""


def best_multipliers(problem: Problem, node: Nodes) -> tuple[Nodes, Tensor | None]:
    """One node with the multipliers that suit its lines best, and where the bound is taken.

    With every line fixed the margin and the pre-activations of assumed sign are bounded by linear
    functions of the image, and the best multipliers are the dual of a linear program (scipy's
    HiGHS). Its value is not used: weak duality makes the bound computed here from the
    multipliers sound whatever the solver returns. Where no unit is open the bound is exact but
    for rounding, and the point [1, C, H, W] a minimum. An empty node gets the value inf.
    """
    from scipy.optimize import linprog

    with torch.no_grad():
        cost, constant, g, h = _linear(problem, node)
    low = problem.box.low.flatten().cpu().numpy()
    high = problem.box.high.flatten().cpu().numpy()
    largest = np.maximum(np.abs(low), np.abs(high))

    def certified(beta: Array, cost: Array, constant: float) -> float:
        """A lower bound of cost x + constant where g x + h >= 0: the Lagrangian's on the box.

        Multipliers of a node that is nearly empty are large, and what they are summed with rounds
        accordingly: as much is taken off.
        """
        left = cost - beta @ g
        value = np.minimum(left * low, left * high).sum() + constant - beta @ h
        terms = (np.abs(cost) + beta @ np.abs(g)) @ largest + abs(constant) + beta @ np.abs(h)
        return float(value - ROUNDING * terms)

    found = linprog(cost, -g, h, bounds=np.stack([low, high], 1), method="highs")
    if found.status == 0:
        beta = np.clip(-found.ineqlin.marginals, 0, None)
        value = max(float(node.value), certified(beta, cost, constant))
        node = replace(
            node,
            push=_as_push(node, beta),
            value=torch.full_like(node.value, value),
        )
        return node, _image(problem, found.x)
    # no image, says the solver: let it show how far from any, and check its multipliers
    slack = np.concatenate([np.zeros_like(cost), [1.0]])
    wider = np.concatenate([-g, -np.ones((len(g), 1))], 1)
    limits = np.concatenate([np.stack([low, high], 1), [[0.0, np.inf]]])
    found = linprog(slack, wider, h, bounds=limits, method="highs")
    if found.status == 0:
        beta = np.clip(-found.ineqlin.marginals, 0, None)
        if certified(beta, np.zeros_like(cost), 0.0) > EMPTY:
            node = replace(node, value=torch.full_like(node.value, torch.inf))
    return node, None


def _linear(problem: Problem, node: Nodes) -> tuple[Array, float, Array, Array]:
    """cost x + constant <= margin on the node, whose images all have g x + h >= 0.

    Rows of g are the assumed signs, layer by layer.
    """
    plain = [replace(line, push=None) for line in relaxed(problem, node)]
    bound = margin_bound(problem, replace(node, push=tuple(map(torch.zeros_like, node.push))))
    constant = bound.values - problem.box.least(bound.inputs)
    rows_g, rows_h = [], []
    for place, (sign, units) in enumerate(zip(node.sign, problem.units, strict=True)):
        at = sign[0].nonzero().flatten()
        if not len(at):
            continue
        stage = problem.network.stages[place]
        size = problem.bounds[place][0].numel()
        rows = bound.values.new_zeros(1, len(at), size)
        # sign * z from above, which is minus the lower bound of -sign * z
        rows.scatter_(2, units[at][None, :, None], -sign[0, at][None, :, None])
        rows = rows.view(1, len(at), *stage.outputs)
        found = lower_bound(problem.network, rows, plain[:place], problem.box)
        rows_g.append(-found.inputs[0].flatten(1))
        rows_h.append((problem.box.least(found.inputs) - found.values)[0])
    pixels = bound.inputs.numel()
    g = torch.cat(rows_g) if rows_g else bound.values.new_zeros(0, pixels)
    h = torch.cat(rows_h) if rows_h else bound.values.new_zeros(0)
    return (
        bound.inputs.flatten().cpu().numpy(),
        float(constant),
        g.cpu().numpy(),
        h.cpu().numpy(),
    )


def _as_push(node: Nodes, beta: Array) -> tuple[Tensor, ...]:
    """The multipliers in the node's layout."""
    left = torch.from_numpy(beta).to(node.value)
    push = []
    for sign in node.sign:
        part = torch.zeros_like(sign)
        at = sign[0].nonzero().flatten()
        part[0, at] = left[: len(at)]
        left = left[len(at) :]
        push.append(part)
    return tuple(push)


def _image(problem: Problem, point: Array) -> Tensor:
    low = problem.box.low
    return torch.from_numpy(np.asarray(point, dtype=np.float64)).view(low.shape).to(low.device)
