"""Outcomes in L2 and L1: proved by their points, the same whatever the batches, and soft cases."""

import pytest
import torch
from torch import Tensor, nn

from gratis.attacks import Attacked, build_attack
from gratis.attacks.apgd import APGD
from gratis.attacks.climb_l1 import stages
from gratis.balls import L1, L2, Ball, Linf
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from gratis.losses import cross_entropy
from tests.norm_balls import PARTS
from tests.problems import Counting, a_problem, batched, linear_model, own_labels

quick = pytest.mark.usefixtures("few_steps")


# --- nothing else matters


SMALL = [L2(0.3), L1(1.5)]
small = pytest.mark.parametrize("ball", SMALL, ids=repr)


@quick
@small
@pytest.mark.parametrize("name", PARTS)
def test_broken_images_come_with_a_point_that_proves_it(name: str, ball: Ball) -> None:
    model, x, y, _ = a_problem(14)
    model.float().eval().requires_grad_(False)
    x = x.float()
    clean = model(x).argmax(1) == y
    x, y = x[clean], y[clean]
    attacked = Attacked(
        model,
        x,
        y,
        ball=ball,
        losses=cross_entropy,
        correct=lambda z, labels: z.argmax(1) == labels,
        keys=list(range(len(x))),
        meter=Meter(),
    )
    points, broken = build_attack(name)(attacked)
    assert 0 < int(broken.sum()) < len(x)
    assert torch.equal(model(points).argmax(1) != y, broken)
    assert (ball.size(points - x) <= ball.eps * (1 + 1e-5)).all()
    ball.check(points)


@quick
@small
def test_batch_size_and_order_change_nothing(ball: Ball) -> None:
    model, x, y, _ = a_problem(8)
    names = ["autoattack"]
    whole = robust_accuracy(model, [(x, y)], names, ball=ball).correct
    parts = robust_accuracy(model, batched(x, y, 3), names, ball=ball).correct
    assert torch.equal(parts, whole)
    order = torch.randperm(len(x))
    shuffled = robust_accuracy(model, [(x[order], y[order])], names, ball=ball).correct
    assert torch.equal(shuffled, whole[order])
    assert 0 < int(whole[:, 1].sum()) < int(whole[:, 0].sum())


@quick
@small
def test_autoattack_is_its_parts_together(ball: Ball) -> None:
    model, x, y, _ = a_problem(10)
    names = ["apgd-ce", "apgd-t", "fab-t", "square", "autoattack"]
    counting = Counting(model)
    found = robust_accuracy(counting, [(x, y)], names, ball=ball)
    assert torch.equal(found.correct[:, 5], found.correct[:, 1:5].all(1))
    assert sum(m.probes + m.forwards for m in found.meters) == counting.forwards
    assert sum(m.probes for m in found.meters) == counting.backwards


def test_the_numbers_of_each_norm_are_told() -> None:
    whole = build_attack("autoattack")
    for ball, restarts, targets in ((Linf(0.1), 1, 9), (L2(0.5), 1, 9), (L1(12.0), 5, 5)):
        assert build_attack("apgd-ce").parameters(ball, 10)["restarts"] == restarts
        assert build_attack("apgd-t").parameters(ball, 10)["targets"] == targets
        told = whole.parameters(ball, 10)
        assert told["attacks"] == "apgd-ce, apgd-t, fab-t, square"
        assert told["apgd-ce restarts"] == restarts
        assert told["apgd-t targets"] == targets
        assert told["fab-t targets"] == 9
        assert ("radii" in build_attack("apgd-ce").parameters(ball, 10)) == (ball.norm == "l1")
    assert build_attack("apgd-ce").parameters(L1(12.0), 10)["radii"] == (
        "3 eps for 30, 2 eps for 30, 1 eps for 40"
    )
    assert [stages(n) for n in (1, 10)] == [
        ((3.0, 0), (2.0, 0), (1.0, 1)),
        ((3.0, 3), (2.0, 3), (1.0, 4)),
    ]


def test_apgd_in_l1_takes_every_step_once_and_begins_each_ball_anew() -> None:
    model, x, y, _ = a_problem(2)
    found = robust_accuracy(model, [(x, y)], ["apgd-ce"], ball=L1(1e-9))
    right = int(found.correct[:, 0].sum())
    assert found.meters[1] == Meter(probes=5 * right * (100 + 3))


def test_what_fools_the_model_in_a_larger_ball_does_not_count() -> None:
    """A pixel past 1.5 eps breaks the image: only the search's first balls reach it."""

    class Past(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            height = x[:, 0, 0, 0] - 0.75
            return torch.stack([-height, height], 1)

    x, y = torch.zeros(2, 1, 3, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    for eps, robust in ((0.5, True), (0.8, False)):
        found = robust_accuracy(Past(), [(x, y)], ["apgd-ce", "fab-t"], ball=L1(eps))
        assert (found.correct[:, 1:] == robust).all()


# --- soft cases


@quick
@pytest.mark.parametrize("make", [L2, L1])
@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("name", ["pgd-5", *PARTS])
def test_a_model_that_always_says_the_same(
    name: str, make: type[Ball], shape: tuple[int, ...]
) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([3.0, 1.0, 0.0, -1.0]) + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = torch.rand(3, *shape), torch.tensor([0, 0, 1])
    x[0] = 0.0
    found = robust_accuracy(Constant(), [(x, y)], [name], ball=make(0.5))
    assert found.correct.tolist() == [[True, True], [True, True], [False, False]]


@quick
@pytest.mark.parametrize("make", [L2, L1])
@pytest.mark.parametrize("name", PARTS)
def test_a_radius_of_nothing_breaks_nothing(name: str, make: type[Ball]) -> None:
    model, x, y, _ = a_problem(4)
    found = robust_accuracy(model, [(x, y)], [name], ball=make(0.0))
    assert torch.equal(found.robust, found.correct[:, 0])


def test_fewer_restarts_and_targets_on_request() -> None:
    one = APGD("apgd-t", "dlr-t", restarts=2, targets=3)
    assert {one.parameters(b, 10)["targets"] for b in (Linf(0.1), L1(1.0))} == {3}
    assert {one.parameters(b, 10)["restarts"] for b in (Linf(0.1), L1(1.0))} == {2}


@pytest.mark.parametrize(
    ("classes", "version", "parts"),
    [(2, "standard without apgd-t", 3), (3, "standard without apgd-t", 3), (4, "standard", 4)],
)
def test_what_few_classes_leave_of_autoattack_is_told(
    classes: int, version: str, parts: int
) -> None:
    told = build_attack("autoattack").parameters(Linf(0.1), classes)
    assert told["version"] == version
    assert len(str(told["attacks"]).split(", ")) == parts
    assert told["fab-t targets"] == classes - 1
    assert ("apgd-t targets" in told) == (parts == 4)
    model, x = linear_model(classes, 9), torch.rand(12, 1, 3, 3, dtype=torch.float64)
    batches = batched(x, own_labels(model, x))
    found = robust_accuracy(model, batches, ["autoattack"], ball=Linf(1e-9))
    assert [part.attack for part in found.parts[0]] == str(told["attacks"]).split(", ")
