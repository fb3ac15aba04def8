"""Exact verdicts on single images, held against brute force and known edges."""

import time

import pytest
import torch
from torch import nn

from gratis.verify import Settings
from gratis.verify.bounds import Box
from gratis.verify.branch import branch_and_bound
from gratis.verify.leaf import best_multipliers
from gratis.verify.nodes import margin_bound, roots, split
from tests.verify_problems import exact_minimum, problem_of, tiny_net, verifier

# --- against brute force


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in (4, 5))]
)
def test_verdicts_equal_brute_force(seed):
    net, x = tiny_net(seed), torch.rand(1, 1, 2, 2)
    label = int(net(x).argmax())
    # one radius on either side of the smallest that breaks the image, close to it
    low, high = 0.0, 1.0
    for _ in range(4):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_minimum(net, x, label, middle) > 0 else (low, middle)
    for eps in (low, high):
        exact = exact_minimum(net, x, label, eps)
        if abs(exact) < 1e-5:
            continue
        verdict = verifier(net, eps).verdict(x, label)
        assert verdict.verdict == ("safe" if exact > 0 else "unsafe")
        if exact > 0:
            assert 0 < verdict.bound <= exact + 1e-9
        else:
            assert min(verdict.margins) > 0


@pytest.mark.parametrize("seed", range(8))
def test_branch_and_bound_alone_equals_brute_force(seed):
    net, x = tiny_net(seed), torch.rand(1, 1, 2, 2)
    label = int(net(x).argmax())
    asked = verifier(net, 0.3)
    problem = problem_of(net, x, label, 0.3)
    targets = torch.tensor([t for t in range(3) if t != label])
    exact = exact_minimum(net, x, label, 0.3)
    # a threshold just below or above the exact minimum makes it go to the last leaf
    for enough, outcome in ((exact - 1e-6, "proved"), (exact + 1e-6, "undecided")):
        found = branch_and_bound(
            problem,
            roots(problem, targets),
            enough=enough,
            deadline=time.perf_counter() + 20,
            confirm=lambda point: asked.confirm(x, label, point) if exact < -1e-5 else None,
        )
        if exact < -1e-5:
            assert found.outcome in (outcome, "broken")
        else:
            assert found.outcome == outcome
        assert found.outcome == "broken" or found.value == pytest.approx(exact, abs=2e-6)


def test_an_empty_leaf_is_seen_and_a_full_one_is_exact():
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0], [1.0]]))
        net[1].bias.copy_(torch.tensor([-0.4, -0.6]))
        net[3].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        net[3].bias.copy_(torch.tensor([0.25, 0.0]))
    problem = problem_of(net, torch.full((1, 1, 1, 1), 0.5), 0, 0.5)
    node = roots(problem, torch.tensor([1]))
    layer = torch.tensor([0])

    def both(first, second):
        return split(split(node, layer, torch.tensor([0]), first), layer, torch.tensor([1]), second)

    empty, _ = best_multipliers(problem, both(-1.0, 1.0))  # x <= 0.4 and x >= 0.6
    assert empty.value == torch.inf
    full, point = best_multipliers(problem, both(1.0, 1.0))
    assert float(full.value) == pytest.approx(0.45, abs=1e-6)
    assert float(point) == pytest.approx(0.6, abs=1e-6)
    assert float(margin_bound(problem, full).values) == pytest.approx(0.45, abs=1e-6)


# --- single images


def edge_net():
    """Class 0 while the only pixel lies below 0.75 or so."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        net[1].weight.fill_(1.0)
        net[1].bias.fill_(-0.5)
        net[3].weight.copy_(torch.tensor([[0.0], [1.0]]))
        net[3].bias.copy_(torch.tensor([0.25, 0.0]))
    return net


@pytest.mark.parametrize(("pixel", "eps", "verdict"), [
    (0.6, 0.1, "safe"), (0.6, 0.16, "unsafe"), (0.6, 0.0, "safe"), (0.8, 0.0, "misclassified"),
    (0.0, 0.7, "safe"), (0.0, 0.8, "unsafe"),
])  # fmt: skip
def test_a_network_with_a_known_edge(pixel, eps, verdict):
    asked = verifier(edge_net(), eps, (1, 1, 1))
    x = torch.full((1, 1, 1, 1), pixel)
    found = asked.verdict(x, 0)
    assert found.verdict == verdict
    if verdict == "unsafe":
        assert min(asked.margins(found.point, 0)) > 0
        assert (found.point.double() - x.double()).abs() <= eps


def test_an_exact_tie_is_neither_safe_nor_unsafe():
    found = verifier(edge_net(), 0.125, (1, 1, 1)).verdict(torch.full((1, 1, 1, 1), 0.625), 0)
    assert found.verdict == "undecided"
    assert abs(found.bound) < 1e-6


def test_a_margin_that_rounding_could_make_is_no_proof():
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[1].weight.fill_(1.0)
        net[3].weight.copy_(torch.tensor([[1e10, -1e10], [0.0, 0.0]]))
        net[3].bias.copy_(torch.tensor([1e-5, 0.0]))  # far less than 1e10 / 2**53 times a few
    found = verifier(net, 0.1, (1, 1, 1)).verdict(torch.full((1, 1, 1, 1), 0.5), 0)
    assert found.verdict == "undecided"
    with torch.no_grad():
        net[3].bias.fill_(0.0)
        net[3].bias[0] = 1.0
    assert verifier(net, 0.1, (1, 1, 1)).verdict(torch.full((1, 1, 1, 1), 0.5), 0).verdict == "safe"


def test_the_pixel_range_cuts_the_ball():
    # wrong only beyond 1: 1.25 would be class 1
    net = edge_net()
    with torch.no_grad():
        net[1].bias.fill_(-1.0)
    x = torch.full((1, 1, 1, 1), 0.9)
    assert verifier(net, 0.6, (1, 1, 1)).verdict(x, 0).verdict == "safe"
    with torch.no_grad():
        net[1].bias.fill_(-0.7)
    found = verifier(net, 0.6, (1, 1, 1)).verdict(x, 0)
    assert found.verdict == "unsafe"
    assert found.point.max() <= 1


def test_a_point_outside_or_right_is_no_counterexample():
    asked = verifier(edge_net(), 0.1, (1, 1, 1))
    x = torch.full((1, 1, 1, 1), 0.6)
    assert asked.confirm(x, 0, torch.full((1, 1, 1, 1), 0.9)) is None, "0.7 at most, which is right"
    x = torch.full((1, 1, 1, 1), 0.7)
    held = asked.confirm(x, 0, torch.full((1, 1, 1, 1), 0.9))
    assert 0.79 < float(held) <= float(x.double()) + 0.1


def test_a_network_without_relus():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(1, 1, 2, 2)
    label = int(net(x).argmax())
    for eps in (1e-4, 1.0):
        exact = exact_minimum_linear(net, x, label, eps)
        assert verifier(net, eps).verdict(x, label).verdict == ("safe" if exact > 0 else "unsafe")


def exact_minimum_linear(net, x, label, eps):
    box = Box.around(x, eps)
    weight, bias = (part.detach().double() for part in (net[1].weight, net[1].bias))
    rows = (weight[label] - weight).view(1, -1, *x.shape[1:])
    margins = box.least(rows)[0] + bias[label] - bias
    return float(margins[torch.arange(3) != label].min())


def test_no_time_is_refused():
    with pytest.raises(ValueError, match="time limit"):
        Settings(time_limit=0)
