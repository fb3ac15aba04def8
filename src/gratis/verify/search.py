"""The complete end of the ladder: branch and bound, linear programs, an integer program."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from gratis.verify.branch import Found, branch_and_bound
from gratis.verify.integer import solved
from gratis.verify.nodes import Nodes, Problem, roots
from gratis.verify.slopes import improved
from gratis.verify.solver import INTEGER, LINEAR
from gratis.verify.tighten import doubted

FIRST_SHARE = 10.0
"""Seconds of branch and bound before linear programs tighten, half of the time at most."""


@dataclass(frozen=True)
class Search:
    """How an image's open targets are searched.

    enough: what a margin must exceed.  steps: Adam steps on the slopes.  time_limit: seconds of
    branch and bound with linear programs, and as many for the integer programs.
    solvers: which there are (`solver.installed`).  confirm: as in `branch_and_bound`.
    """

    enough: float
    steps: int
    time_limit: float
    solvers: tuple[str, ...]
    confirm: Callable[[Tensor], Tensor | None]

    def run(self, problem: Problem, nodes: Nodes, seconds: dict[str, float]) -> tuple[str, Found]:
        """The last rung that was tried, and what it found; its seconds are added."""
        end = time.perf_counter() + self.time_limit
        first = min(FIRST_SHARE, self.time_limit / 2)
        linear = LINEAR in self.solvers
        with timed(seconds, "branch"):
            deadline = time.perf_counter() + first if linear else end
            rung, found = "branch", self._branch(problem, nodes, deadline)
        if found.left is not None and linear:
            with timed(seconds, "lp"):
                found = self._doubted(problem, found, found.left, end)
            rung = "lp"
        if found.left is not None and INTEGER in self.solvers:
            with timed(seconds, "milp"):
                found = self._integer(problem, found, found.left)
            rung = "milp"
        return rung, found

    def _branch(self, problem: Problem, nodes: Nodes, deadline: float) -> Found:
        return branch_and_bound(
            problem, nodes, enough=self.enough, deadline=deadline, confirm=self.confirm
        )

    def _doubted(self, problem: Problem, before: Found, left: Nodes, end: float) -> Found:
        """Branch and bound for each target, with bounds that need only hold where it is doubtful.

        What is proved for a target is so much as `enough`.
        """
        targets = _targets(left)
        value, seen = min(before.closed, self.enough), before.nodes
        rest: list[Nodes] = []
        for place, target in enumerate(targets):
            now = time.perf_counter()
            share = (end - now) / (len(targets) - place)
            tight = doubted(problem, int(target), self.enough, now + share / 2)
            if tight is None:
                continue
            start = roots(tight, target[None])
            start = improved(tight, start, self.steps, self.enough)
            found = self._branch(tight, start.take(start.value <= self.enough), now + share)
            seen += found.nodes
            if found.outcome == "broken":
                return replace(found, nodes=seen)
            if found.outcome == "undecided":
                value = min(value, found.value)
                rest.append(left.take(left.target == target))
        if not rest:
            return Found("proved", value, seen)
        return Found("undecided", value, seen, left=reduce(Nodes.join, rest), closed=before.closed)

    def _integer(self, problem: Problem, before: Found, left: Nodes) -> Found:
        """What SCIP says of the targets. A solver's proof is none of ours: no bound comes of it."""
        targets = _targets(left)
        found = solved(problem, targets, self.enough, self.time_limit)
        if found.proved == len(targets):
            return Found("proved", float("-inf"), before.nodes)
        if found.point is not None and (held := self.confirm(found.point)) is not None:
            return Found("broken", before.value, before.nodes, held)
        return replace(before, left=None)


def _targets(nodes: Nodes) -> Tensor:
    """The nodes' targets, each once."""
    return torch.tensor(sorted(set(nodes.target.tolist())), device=nodes.target.device)


@contextmanager
def timed(seconds: dict[str, float], rung: str) -> Iterator[None]:
    clock = time.perf_counter()
    try:
        yield
    finally:
        seconds[rung] = time.perf_counter() - clock
