"""Robust accuracy on networks whose exact answer is known, and the worst of all that was tried."""

import pytest
import torch
from torch import Tensor, nn

from gratis.attacks import build_attack
from gratis.attacks.search import STEPS_BETWEEN_DROPS
from gratis.balls import L2, Ball, Linf
from gratis.evaluate import robust_accuracy
from tests.problems import WIDE, a_linear_problem, a_problem, batched, linear_model, own_labels

# --- the exact answer


# with ten classes the cross entropy climbs towards the nearest one only if logits are sharp
@pytest.mark.parametrize(
    ("classes", "sharpness", "ball"),
    [
        (2, 1.0, Linf(0.05)),
        (2, 1.0, L2(0.3, **WIDE)),
        (10, 20.0, Linf(0.03)),
        (10, 20.0, L2(0.2, **WIDE)),
    ],
    ids=str,
)
def test_exact_flags_on_linear_models(classes: int, sharpness: float, ball: Ball) -> None:
    model, x, y, breakable = a_linear_problem(classes, sharpness, ball)
    found = robust_accuracy(model, batched(x, y, 64), ["pgd-30-2"], ball=ball)
    clean = model(x).argmax(1) == y
    assert torch.equal(found.correct[:, 0], clean)
    assert torch.equal(found.robust, clean & ~breakable)
    assert 40 < int(found.robust.sum()) < 140


def test_the_margin_finds_the_nearest_class_however_flat_the_logits() -> None:
    for sharpness in (1.0, 20.0):
        model, x, y, breakable = a_linear_problem(10, sharpness, Linf(0.03))
        found = robust_accuracy(model, [(x, y)], ["cw-30-4"], ball=Linf(0.03))
        missed = breakable & found.robust
        assert not (found.correct[:, 0] & ~found.robust & ~breakable).any()
        assert int(missed.sum()) <= 2


@pytest.mark.parametrize(("name", "steps"), [("fgsm", 1), ("bim-6", 6)])
def test_one_step_and_iterated_steps_are_exact_for_two_classes(name: str, steps: int) -> None:
    ball = Linf(0.05)
    model, x, y, breakable = a_linear_problem(2, 1.0, ball)
    found = robust_accuracy(model, [(x, y)], [name], ball=ball)
    assert torch.equal(found.robust, found.correct[:, 0] & ~breakable)
    assert build_attack(name).parameters(ball, 10) == {
        "loss": "cross-entropy",
        "steps": steps,
        "restarts": 1,
        "alpha": 0.05 if name == "fgsm" else 0.0125,
        "start": "zero",
    }


def test_logits_so_large_that_cross_entropy_has_no_slope() -> None:
    """A defence that only scales its logits: PGD sees gradients of 0, the margin does not."""
    model, x, y, breakable = a_linear_problem(2, 1.0, Linf(0.05))
    model = model.float()
    scaled = nn.Sequential(model, Scale(1e6))
    x = x.float()
    clean = scaled(x).argmax(1) == y
    climbed = robust_accuracy(scaled, [(x, y)], ["pgd-20", "cw-20"], ball=Linf(0.05)).correct
    assert climbed[:, 1].sum() > clean.sum() - 10  # fooled into seeing robustness
    assert torch.equal(climbed[:, 2], clean & ~breakable)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.2, **WIDE)], ids=repr)
def test_no_impossible_success_where_the_search_is_hard(ball: Ball) -> None:
    model, x, y, breakable = a_linear_problem(10, 1.0, ball)
    found = robust_accuracy(model, [(x, y)], ["pgd-30-2"], ball=ball)
    broken = found.correct[:, 0] & ~found.robust
    assert not (broken & ~breakable).any()
    assert int(broken.sum()) > 0.7 * int(breakable.sum())


def test_targets_missed_by_few_steps_are_reported_robust() -> None:
    """Steps x step size short of the radius: only what they can reach is broken."""
    x = torch.full((50, 1, 3, 3), 0.5, dtype=torch.float64)
    model = linear_model(2, 9)
    model[1].bias.data = torch.tensor([0.0, 0.0], dtype=torch.float64)
    x += 0.2 * torch.rand_like(x)
    y = own_labels(model, x)
    few = robust_accuracy(model, [(x, y)], ["pgd-1:alpha=0.0001"], ball=Linf(0.2))
    many = robust_accuracy(model, [(x, y)], ["pgd-20"], ball=Linf(0.2))
    assert few.robust.sum() > many.robust.sum()


# --- worst case over everything that was tried


def test_robust_accuracy_falls_with_the_radius_on_a_linear_model() -> None:
    x = torch.rand(100, 1, 6, 8, dtype=torch.float64)
    model = linear_model(2, 48)
    y = own_labels(model, x)
    before = torch.ones(100, dtype=torch.bool)
    for eps in (0.0, 0.01, 0.03, 0.06, 0.1, 0.3):
        robust = robust_accuracy(model, [(x, y)], ["pgd-20"], ball=Linf(eps)).robust
        assert not (robust & ~before).any()
        before = robust
    assert not before.any()


def test_zero_radius_breaks_nothing() -> None:
    model, x, y, _ = a_problem()
    for ball in (Linf(0.0), L2(0.0)):
        found = robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=ball)
        assert torch.equal(found.robust, found.correct[:, 0])


def test_more_restarts_and_more_steps_only_ever_break_more() -> None:
    model, x, y, ball = a_problem()
    ladder = ["pgd-2-1", "pgd-2-2", "pgd-2-5", "pgd-12-5", "pgd-30-5"]
    found = robust_accuracy(model, [(x, y)], ladder, ball=ball)
    assert found.attacks == tuple(ladder)
    assert found.correct.shape == (40, 6)
    for column in range(5):
        assert not (found.correct[:, column + 1] & ~found.correct[:, column]).any()
    assert found.correct[:, 1].sum() > found.correct[:, -1].sum()
    assert torch.equal(found.robust, found.correct.all(1))


def test_robust_means_under_all_attacks_not_the_last() -> None:
    model, x, y, ball = a_problem()
    found = robust_accuracy(model, [(x, y)], ["pgd-30-2", "pgd-1"], ball=ball)
    assert torch.equal(found.robust, found.correct[:, 1] & found.correct[:, 2])
    assert found.robust.sum() < found.correct[:, 2].sum()


class FooledInPassing(nn.Module):
    """Class 1 only where the mean pixel is within 0.03 of 0.6; its slope always points up."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        inside = torch.where((mean - 0.6).abs() < 0.03, 1.0, -1.0)
        return torch.stack([torch.zeros_like(mean), mean - mean.detach() + inside], 1)


@pytest.mark.parametrize("steps", [8, 40])
def test_a_point_fooled_only_on_the_way_counts_as_broken(steps: int) -> None:
    model, x = FooledInPassing(), torch.full((6, 1, 20, 20), 0.5)
    y = torch.zeros(6, dtype=torch.long)
    ball = Linf(0.2)
    found = robust_accuracy(model, [(x, y)], [f"pgd-{steps}"], ball=ball, examples=6)
    assert found.correct[:, 0].all()
    assert model(x + 0.2).argmax(1).eq(0).all()  # where the climb ends, the model is right again
    assert not found.robust.any()
    assert found.examples is not None
    assert found.examples.adversarial_prediction.eq(1).all()
    assert found.meters[1].probes == 6 * min(steps, STEPS_BETWEEN_DROPS)


def test_the_last_point_reached_counts_too() -> None:
    """One full step: only the point after it is beyond the boundary, not the start."""
    model = linear_model(2, 9)
    x = torch.full((30, 1, 3, 3), 0.5, dtype=torch.float64)
    y = own_labels(model, x)
    reach = (model[1].weight[1] - model[1].weight[0]).abs().sum().item()
    margin = (model(x)[:, 0] - model(x)[:, 1]).abs()[0].item()
    eps = 1.05 * margin / reach
    found = robust_accuracy(model, [(x, y)], [f"pgd-1:alpha={2 * eps}"], ball=Linf(eps))
    assert not found.robust.any()
