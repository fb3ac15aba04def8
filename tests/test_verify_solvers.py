"""The last rungs: integer programs, the ladder's end, and solvers' processes."""

import itertools
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from gratis.balls import Linf
from gratis.verify import Settings, Verifier, integer
from gratis.verify import search as searching
from gratis.verify.bounds import interval_bounds
from gratis.verify.branch import Found, branch_and_bound
from gratis.verify.image import LEAST_MARGIN
from gratis.verify.solver import INTEGER, LINEAR, answers
from tests.verify_problems import (
    conv_problem,
    exact_minimum,
    integers,
    linear,
    problem_of,
    seeds,
    tiny_net,
)

# --- integer programs


def edge(net, x, label):
    """Radii close to the least that breaks the image, on either side."""
    low, high = 0.0, 1.0
    for _ in range(4):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_minimum(net, x, label, middle) > 0 else (low, middle)
    return low, high


@integers
@pytest.mark.parametrize("seed", seeds(8, {2}))
@pytest.mark.parametrize("kind", ["crown", "interval"])
def test_integer_programs_equal_brute_force(seed, kind):
    net, x = tiny_net(seed), torch.rand(1, 1, 2, 2)
    label = int(net(x).argmax())
    targets = torch.tensor([t for t in range(3) if t != label])
    seen = set()
    for eps in edge(net, x, label):
        exact = exact_minimum(net, x, label, eps)
        problem = problem_of(net, x, label, eps)
        if kind == "interval":
            bounds = interval_bounds(problem.network, problem.box)[:-1]
            problem = replace(problem, bounds=tuple(bounds))
        found = integer.solved(problem, targets, LEAST_MARGIN, 20.0)
        assert not found.timed_out
        if exact > 2 * integer.CUTOFF:
            assert found.proved == 2
            assert found.point is None
            seen.add("safe")
        elif exact < -1e-5:
            assert found.proved < 2
            held = Verifier(net, (1, 2, 2), Linf(eps), Settings()).confirm(x, label, found.point)
            assert held is not None
            seen.add("unsafe")
    assert seen


@integers
def test_a_tie_is_not_proved_by_an_integer_program():
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for part, value in ((net[1].weight, 1.0), (net[1].bias, -0.5), (net[3].bias, 0.0)):
            part.fill_(value)
        net[3].weight.copy_(torch.tensor([[0.0], [1.0]]))
        net[3].bias[0] = 0.25
    x = torch.full((1, 1, 1, 1), 0.625)
    problem = problem_of(net, x, 0, 0.125)
    found = integer.solved(problem, torch.tensor([1]), LEAST_MARGIN, 20.0)
    assert found.proved == 0


@integers
def test_integer_programs_out_of_time_prove_nothing():
    problem = conv_problem(0)
    found = integer.solved(problem, torch.tensor([1, 2, 3]), LEAST_MARGIN, -integer.ROOM)
    assert found.proved == 0
    assert found.timed_out


# --- the ladder's end


def gives_up(problem, nodes, **given):
    """Branch and bound that finds nothing out."""
    return Found("undecided", -1.0, len(nodes), left=nodes, closed=2.0)


def cut_off(times):
    """Branch and bound that gives up the first `times` times."""
    results = itertools.chain([gives_up] * times, itertools.repeat(branch_and_bound))
    return lambda problem, nodes, **given: next(results)(problem, nodes, **given)


@linear
@integers
@pytest.mark.parametrize("seed", seeds(8, {1}))
def test_the_last_rungs_equal_brute_force(seed, monkeypatch):
    net, x = tiny_net(seed), torch.rand(1, 1, 2, 2)
    label = int(net(x).argmax())
    exact = exact_minimum(net, x, label, 0.3)
    assert abs(exact) > 2 * integer.CUTOFF
    problem = problem_of(net, x, label, 0.3)
    asked = Verifier(net, (1, 2, 2), Linf(0.3), Settings())
    targets = torch.tensor([t for t in range(3) if t != label])
    for place, rung in enumerate(("branch", "lp", "milp")):
        times = 9 if rung == "milp" else place  # for each class that is open, there are two
        monkeypatch.setattr(searching, "branch_and_bound", cut_off(times))
        if rung == "milp":  # or the linear programs do it without a search
            monkeypatch.setattr(searching, "doubted", lambda problem, *given: problem)
        solvers = (LINEAR, INTEGER)[:place]
        search = searching.Search(
            1e-6, 5, 10.0, solvers, lambda point: asked.confirm(x, label, point)
        )
        seconds = {}
        last, found = search.run(problem, searching.roots(problem, targets), seconds)
        assert last == [*seconds][-1] == rung
        assert found.outcome == ("proved" if exact > 0 else "broken")
        if exact > 0 and rung == "milp":
            assert found.value == -torch.inf, "a solver's proof bounds nothing"
        elif exact > 0:
            assert 1e-6 <= found.value <= exact + 1e-9


def test_without_solvers_all_the_time_is_for_branch_and_bound(monkeypatch):
    deadlines = []

    def listening(problem, nodes, *, deadline, **given):
        deadlines.append(deadline - time.perf_counter())
        return gives_up(problem, nodes)

    monkeypatch.setattr(searching, "branch_and_bound", listening)
    problem = conv_problem(0)
    search = searching.Search(1e-6, 5, 40.0, (), lambda point: None)
    rung, found = search.run(problem, searching.roots(problem, torch.tensor([1])), {})
    assert (rung, found.outcome) == ("branch", "undecided")
    assert 39 < deadlines[0] <= 40
    monkeypatch.setattr(searching, "doubted", lambda problem, *given: problem)
    search = replace(search, solvers=(LINEAR,))
    search.run(problem, searching.roots(problem, torch.tensor([1])), {})
    assert 9 < deadlines[1] <= 10
    assert 39 < deadlines[2] <= 40, "until the time limit"


# --- processes


def test_a_process_that_hangs_is_killed(tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text(
        "import pickle, sys, time\njob = pickle.load(sys.stdin.buffer)\n"
        "sys.stdout.buffer.write(pickle.dumps(job + 1) + pickle.dumps([0] * 99)[:20])\n"
        "sys.stdout.buffer.flush()\ntime.sleep(600)\n"
    )
    clock = time.perf_counter()
    assert answers(script, 6, 1.0) == [7], "what came before counts, half an answer does not"
    assert time.perf_counter() - clock < 10
    assert answers(script, bytes(10**7), -1.0) == []


def test_a_process_that_fails_says_why(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise KeyError('no such parameter')\n")
    with pytest.raises(RuntimeError, match=r"fails.py ended with status 1: KeyError: 'no such"):
        answers(script, bytes(10**7), 30.0)
    script.write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert answers(script, 0, 30.0) == [], "as if there had been no time"


@integers
def test_a_margin_that_rounding_could_make_is_not_proved_by_an_integer_program() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        net[1].weight.fill_(1.0)
        net[1].bias.fill_(-0.5)
        net[3].weight.copy_(torch.tensor([[0.0], [1.0]]))
        net[3].bias.copy_(torch.tensor([0.26, 0.0]))
    problem = problem_of(net, torch.full((1, 1, 1, 1), 0.625), 0, 0.125)  # least margin 0.01
    target = torch.tensor([1])
    assert integer.solved(problem, target, LEAST_MARGIN, 20.0).proved == 1
    assert integer.solved(problem, target, 0.002, 20.0).proved == 0
