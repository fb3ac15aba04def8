"""Robust accuracy: only images, seed and model matter; what it costs, and the points it finds."""

import pytest
import torch
from torch import Tensor, nn

from gratis.attacks import Attacked, build_attack
from gratis.balls import L2, Ball, Linf
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from gratis.losses import cross_entropy
from gratis.tasks import Classification
from tests.problems import Counting, Recording, a_problem, batched, linear_model, own_labels

# --- only the images, the seed and the model matter


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.3)], ids=repr)
def test_batch_size_and_order_change_nothing(ball: Ball) -> None:
    model, x, y, _ = a_problem()
    whole = robust_accuracy(model, [(x, y)], ["pgd-12-2", "pgd-3"], ball=ball)
    assert 0 < int(whole.robust.sum()) < int(whole.correct[:, 0].sum())
    for size in (1, 7, 64):
        split = robust_accuracy(model, batched(x, y, size), ["pgd-12-2", "pgd-3"], ball=ball)
        assert torch.equal(split.correct, whole.correct)
    order = torch.randperm(len(x))
    mixed = robust_accuracy(model, batched(x[order], y[order], 9), ["pgd-12-2", "pgd-3"], ball=ball)
    assert torch.equal(mixed.correct, whole.correct[order])


def starts(model: nn.Module, batches: list[tuple[Tensor, Tensor]], seed: int = 0) -> Tensor:
    """The first point of each image that the attack asks the gradient of."""
    recording = Recording(model)
    robust_accuracy(recording, batches, ["pgd-1"], ball=Linf(0.1), seed=seed)
    return torch.cat(recording.seen)


@pytest.mark.parametrize("size", [1, 4])
def test_copies_of_an_image_get_starts_of_their_own(size: int) -> None:
    model = linear_model(2, 9)
    x = torch.rand(1, 1, 3, 3, dtype=torch.float64).repeat(4, 1, 1, 1)
    y = own_labels(model, x)
    points = starts(model, batched(x, y, size))
    assert len({tuple(p.flatten().tolist()) for p in points}) == 4
    assert torch.equal(points, starts(model, batched(x, y, 5 - size)))


def test_starts_follow_the_seed_and_lie_in_the_ball() -> None:
    model = linear_model(2, 9)
    x = torch.rand(5, 1, 3, 3, dtype=torch.float64)
    y = own_labels(model, x)
    first, again, other = (starts(model, [(x, y)], seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not (first == other).flatten(1).all(1).any()
    assert (first - x).abs().max() <= 0.1 + 1e-12
    assert first.min() >= 0
    assert first.max() <= 1


def test_the_global_random_state_is_not_used() -> None:
    model, x, y, ball = a_problem()
    state = torch.get_rng_state()
    one = robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=ball)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(
        one.correct, robust_accuracy(model, [(x, y)], ["pgd-3-2"], ball=ball).correct
    )


# --- cost


@pytest.mark.parametrize("attacks", [[], ["pgd-7"], ["pgd-23-3", "pgd-10", "pgd-1-2"]], ids=str)
def test_meters_count_every_forward_and_backward(attacks: list[str]) -> None:
    model, x, y, ball = a_problem()
    counting = Counting(model)
    found = robust_accuracy(counting, batched(x, y, 9), attacks, ball=ball)
    assert found.meters[0] == Meter(forwards=40)
    assert len(found.meters) == len(found.seconds) == 1 + len(attacks)
    assert sum(m.forwards + m.probes for m in found.meters) == counting.forwards
    assert sum(m.probes for m in found.meters) == counting.backwards
    assert all(m.passes == 0 for m in found.meters)


def test_misclassified_images_cost_nothing_beyond_the_clean_pass() -> None:
    model, x, _, ball = a_problem()
    wrong = (own_labels(model, x) + 1) % 4
    found = robust_accuracy(model, [(x, wrong)], ["pgd-10-5"], ball=ball)
    assert not found.correct.any()
    assert found.meters[1] == Meter()


def test_a_robust_image_costs_every_step_and_one_last_look() -> None:
    model, x, y, _ = a_problem()
    right = int((own_labels(model, x) == y).sum())
    found = robust_accuracy(model, [(x, y)], ["pgd-25-2"], ball=Linf(1e-9))
    assert found.meters[1] == Meter(probes=right * 25 * 2, forwards=right * 2)


# --- the points themselves


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.3)], ids=repr)
@pytest.mark.parametrize("attack", ["pgd-4", "pgd-25-3"])
def test_broken_images_come_with_a_point_that_proves_it(ball: Ball, attack: str) -> None:
    model, x, y, _ = a_problem()
    x = x.float()
    model.float()
    y = own_labels(model, x)
    task = Classification()
    model.eval().requires_grad_(False)
    attacked = Attacked(
        model,
        x,
        y,
        ball=ball,
        losses=cross_entropy,
        correct=task.correct,
        keys=list(range(len(x))),
        meter=Meter(),
    )
    points, broken = build_attack(attack)(attacked)
    assert 0 < int(broken.sum()) < len(x)
    assert torch.equal(model(points).argmax(1) != y, broken)
    assert (ball.size(points - x) <= ball.eps * (1 + 1e-5)).all()
    ball.check(points)
    assert (points != x).flatten(1).any(1).all()


def test_examples_are_the_first_images_as_evaluated() -> None:
    model, x, y, ball = a_problem()
    found = robust_accuracy(model, batched(x, y, 16), ["pgd-1", "pgd-20"], ball=ball, examples=9)
    kept = found.examples
    assert kept is not None
    assert torch.equal(kept.clean, x[:9])
    assert torch.equal(kept.label, y[:9])
    model.eval()
    assert torch.equal(kept.clean_prediction, model(x[:9]).argmax(1))
    assert torch.equal(kept.adversarial_prediction, model(kept.adversarial).argmax(1))
    assert torch.equal(kept.clean_prediction == y[:9], found.correct[:9, 0])
    assert torch.equal(kept.adversarial_prediction == y[:9], found.correct[:9, 2])
    misclassified = ~found.correct[:9, 0]
    assert misclassified.any()
    assert torch.equal(kept.adversarial[misclassified], x[:9][misclassified])
    assert (ball.size(kept.adversarial - x[:9]) <= ball.eps * (1 + 1e-9)).all()


def test_no_examples_unless_asked_for() -> None:
    model, x, y, ball = a_problem()
    assert robust_accuracy(model, [(x, y)], ["pgd-1"], ball=ball).examples is None


class Unasked(nn.Module):
    """As a network of `x.view(len(x), -1)`: it has no answer to no images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        assert len(x)
        logits: Tensor = self.inner(x)
        return logits


def test_a_share_without_the_first_pool_has_no_examples() -> None:
    model, x, y, ball = a_problem()
    found = robust_accuracy(
        Unasked(model),
        batched(x, y, 4),
        ["pgd-2"],
        ball=ball,
        examples=3,
        turn=lambda place: place == 1,
    )
    assert found.examples is None
    assert len(found.robust) == 16
