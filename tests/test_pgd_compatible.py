"""PGD as the released code measures: of several restarts, the point of highest loss."""

import torch
from torch import Tensor, nn

import gratis
from gratis import Linf
from gratis.attacks import build_attack
from gratis.attacks.search import Attacked, generator_for, image_key
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from gratis.losses import cross_entropy
from gratis.tasks import Classification
from tests.problems import a_problem


def released(model: nn.Module, x: Tensor, y: Tensor, starts: list[Tensor], ball: Linf) -> Tensor:
    """attack_pgd of Wong 2020's code for one image, step by step: the kept perturbation."""
    max_loss, kept = 0.0, torch.zeros_like(x)
    for start in starts:
        delta = start.clone()
        for _ in range(5):
            point = (x + delta).detach().requires_grad_()
            logits = model(point)
            if logits.argmax(1).item() != y.item():
                break
            (grad,) = torch.autograd.grad(cross_entropy(logits, y).sum(), point)
            delta = (delta + ball.eps / 4 * grad.sign()).clamp(-ball.eps, ball.eps)
            delta = (x + delta).clamp(0, 1) - x
        loss = float(cross_entropy(model(x + delta), y).detach())
        if loss >= max_loss:
            max_loss, kept = loss, delta
    return x + kept


def test_compatible_keeps_the_point_of_highest_loss() -> None:
    model, x, y, ball = a_problem(24)
    points = gratis.attack(model, x, y, "pgd-5-3:compatible", ball=ball)
    model.eval()
    for i in range(len(x)):
        one, label = x[i : i + 1], y[i : i + 1]
        if model(one).argmax(1) != label:
            continue
        key = image_key(0, x[i], int(y[i]))
        starts = [ball.sample(one, generator_for(key, restart)) for restart in range(3)]
        expected = released(model, one, label, starts, ball)
        torch.testing.assert_close(points[i : i + 1], expected)


def test_compatible_never_breaks_more_than_the_worst_case() -> None:
    for seed in range(4):
        model, x, y, ball = a_problem()
        names = ["pgd-5-3", "pgd-5-3:compatible"]
        found = robust_accuracy(model, [(x, y)], names, ball=ball, seed=seed).correct
        assert not (found[:, 1] & ~found[:, 2]).any()


def test_compatible_can_lose_a_success() -> None:
    """A restart that fooled the model is overwritten by one whose loss is higher."""

    # three classes: a point narrowly wrong may cost less than one rightly classified but unsure
    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1) - 0.5
            sure_and_wrong = torch.stack([mean * 0, mean * 0 + 0.01, mean * 0 - 9], 1)
            unsure_and_right = torch.stack([mean * 0 + 0.01, mean * 0, mean * 0], 1)
            up = torch.where(mean > 0, 1.0, 0.0)[:, None]
            return up * unsure_and_right + (1 - up) * sure_and_wrong + 0 * mean[:, None]

    x = torch.full((8, 1, 1, 1), 0.5)
    y = torch.zeros(8, dtype=torch.long)
    start_right = Three()(x + 1e-3).argmax(1).eq(0).all()
    assert start_right
    attacked = Attacked(
        *(Three(), x, y, Linf(0.1), cross_entropy, Classification().correct),
        keys=list(range(8)),
        meter=Meter(),
    )
    worst = build_attack("pgd-3-6")(attacked)[1]
    kept = build_attack("pgd-3-6:compatible")(attacked)[1]
    assert worst.all()
    assert not kept.all()
