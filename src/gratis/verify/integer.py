"""An image's margins as mixed-integer programs (Tjeng 2019), solved by SCIP."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gratis.verify.bounds import margin_rows
from gratis.verify.nodes import Problem
from gratis.verify.program import composed, program
from gratis.verify.solver import INTEGER_SCRIPT, answers

WIDENING = 1e-6
"""Units have this much more room than their bounds leave, as much as SCIP's tolerances."""

CUTOFF = 1e-4
"""SCIP shows that no margin lies below this: far above its tolerances, so that one below 0 is not
overlooked. A least margin between 0 and this stays undecided."""

BEYOND_ROUNDING = 10.0
"""Nor below so many times what a margin must exceed for rounding, where that is more."""

CLEARLY = -1e-3
"""A solution below this ends the search; between it and `CUTOFF` SCIP goes on to the least."""

NONE_BELOW = "infeasible"
"""The status that proves. Not "inforunbd", nor any that a limit makes."""

ROOM = 2.0
"""Seconds to start and to build the programs, and what SCIP may need beyond its limit."""


@dataclass(frozen=True)
class Solved:
    """proved: how many targets have no margin below the cutoff, says SCIP.
    point [1, C, H, W]: where one does, float64, or None; not confirmed.
    timed_out: some target was not solved to its end.
    """

    proved: int
    point: Tensor | None
    timed_out: bool


def cutoff(enough: float) -> float:
    """What SCIP shows of margins that must exceed `enough`."""
    return max(CUTOFF, BEYOND_ROUNDING * enough)


def solved(problem: Problem, targets: Tensor, enough: float, seconds: float) -> Solved:
    """One program for each target [T] in turn, within `seconds` together.

    enough: what a margin must exceed.  The problem's bounds settle signs and are the constants of
    the unsettled units, each its own (a common one too small would be unsound).
    """
    network, box, bounds = problem.network, problem.box, list(problem.bounds)
    with torch.no_grad():
        costs = composed(network, margin_rows(network, problem.label, targets), bounds)
        job = {
            **program(network, box, bounds).widened(WIDENING).job(costs),
            "cutoff": cutoff(enough),
            "clearly": CLEARLY,
            "seconds": seconds,
        }
    found = answers(INTEGER_SCRIPT, job, seconds + ROOM)
    statuses = [status for status, _ in found]
    points = [point for _, point in found if point is not None]
    low = box.low
    return Solved(
        statuses.count(NONE_BELOW),
        torch.from_numpy(points[0]).view(low.shape).to(low.device) if points else None,
        "timelimit" in statuses or (len(statuses) < len(targets) and not points),
    )
