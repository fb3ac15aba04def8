"""The attacks in L2 and L1: exact answers where the pixel box binds, and what is planted."""

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from gratis.attacks.pgd import pgd
from gratis.attacks.square import Square
from gratis.balls import L1, L2, Ball
from gratis.evaluate import robust_accuracy
from tests.norm_balls import BALLS, PARTS, images
from tests.problems import digits_net, own_labels
from tests.short_attacks import put

__all__ = ["digits_net"]  # a fixture, asked for by name

balls = pytest.mark.parametrize("ball", BALLS, ids=repr)


@pytest.fixture(autouse=True)
def fewer_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than the standard, so that tests are quick."""
    put(monkeypatch, Square("square", queries=150))


# --- the exact answer


def best_gain(w: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """max <w, d> over the ball and the pixel box for each row of w and x [n, pixels], [n]."""
    room = torch.where(w > 0, ball.high - x, x - ball.low)
    weight = w.abs()
    if ball.norm == "l1":  # the heaviest pixels first, each as far as the box allows
        weight, order = weight.sort(1, descending=True)
        room = room.gather(1, order)
        left = ball.eps - (room.cumsum(1) - room)
        return (weight * torch.minimum(room, left.clamp_min(0))).sum(1)
    low, high = (
        torch.full((2, len(w), 1), 40.0, dtype=w.dtype) * torch.tensor([-1, 1])[:, None, None]
    )
    for _ in range(100):  # d = min(t * weight, room), the water level's logarithm by bisection
        level = (low + high) / 2
        fits = torch.minimum(level.exp() * weight, room).norm(dim=1, keepdim=True) <= ball.eps
        low, high = torch.where(fits, level, low), torch.where(fits, high, level)
    return (weight * torch.minimum(low.exp() * weight, room)).sum(1)


def a_linear_problem(ball: Ball, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Model, a hundred images of 108 pixels, its own labels, which images can be broken."""
    torch.manual_seed(seed)
    x = images(100, 3, 6, 6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 6)).double()
    y = own_labels(model, x)
    w, z = model[1].weight.detach(), model(x).detach()
    behind = z - z.gather(1, y[:, None])
    gains = torch.stack([best_gain(w[j] - w[y], x.flatten(1), ball) for j in range(6)], 1)
    worst = (behind + gains).scatter(1, y[:, None], -torch.inf).amax(1)
    assert worst.abs().min() > 1e-5  # no image so near that rounding decides
    return model, x, y, worst > 0


@pytest.mark.parametrize("seed", range(5))
def test_the_gain_that_judges_l1_is_the_linear_programme(seed: int) -> None:
    torch.manual_seed(seed)
    x, w, eps = images(1, 6), torch.randn(1, 6, dtype=torch.float64), 0.3 * (1 + seed)
    # raised and lowered parts, both at least 0
    found = linprog(
        torch.cat([-w, w], 1)[0].tolist(),
        A_ub=[[1.0] * 12],
        b_ub=[eps],
        bounds=[(0, 1 - float(p)) for p in x[0]] + [(0, float(p)) for p in x[0]],
    )
    assert float(best_gain(w, x, L1(eps))) == pytest.approx(-found.fun, abs=1e-9)


@balls
@pytest.mark.parametrize("name", PARTS)
def test_linear_models(name: str, ball: Ball) -> None:
    model, x, y, breakable = a_linear_problem(ball)
    assert 50 < int(breakable.sum()) < 90
    broken = ~robust_accuracy(model, [(x, y)], [name], ball=ball).robust
    assert not (broken & ~breakable).any()
    missed = int((breakable & ~broken).sum())
    allowed = {"apgd-t": 0, "fab-t": 1, "apgd-dlr": 3, "apgd-ce": 15, "square": 50}[name]
    assert missed <= allowed


@pytest.mark.slow
@balls
@pytest.mark.parametrize("seed", range(1, 6))
def test_more_linear_models(seed: int, ball: Ball) -> None:
    model, x, y, breakable = a_linear_problem(ball, seed)
    broken = ~robust_accuracy(model, [(x, y)], ["apgd-t", "fab-t"], ball=ball).correct[:, 1:]
    assert not (broken & ~breakable[:, None]).any()
    missed = (breakable[:, None] & ~broken).sum(0)
    assert missed.tolist()[0] <= 1
    assert missed.tolist()[1] <= 1


@pytest.mark.parametrize("eps", [0.5, 2.0, 6.0])
def test_projected_gradient_in_l1_comes_near_the_optimum_of_a_linear_loss(eps: float) -> None:
    x, w = images(20, 3, 6, 6), torch.randn(20, 3, 6, 6, dtype=torch.float64)
    ball = L1(eps)
    delta = pgd(lambda point: w.clone(), x, ball, steps=200, step_size=eps / 10)
    reached, best = (w * delta).flatten(1).sum(1), best_gain(w.flatten(1), x.flatten(1), ball)
    assert (reached <= best + 1e-9).all()
    # two of the 108 pixels share every step, where the best is sometimes one of them alone
    assert (reached >= 0.7 * best).all()
    assert (reached / best).mean() >= 0.9


# --- planted successes


@pytest.mark.parametrize("make", [L2, L1])
@pytest.mark.parametrize("name", ["pgd-40", "apgd-ce", "fab-t", "square"])
def test_a_planted_success_is_found(name: str, make: type[Ball]) -> None:
    """A patch that answers to contrast alone, broken by half of what the ball allows."""

    class Patch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            patch = x[:, 0, 2:5, 3:6]
            contrast = patch[:, :1].sum((1, 2)) - patch[:, 1:].sum((1, 2))
            return torch.stack([0.25 - contrast - 1.5, contrast + 1.5], 1)

    x, y = torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.long)
    assert (Patch()(x).argmax(1) == y).all()
    # 0.125 of contrast is missing: a length of 0.125 / 3 in L2 and 0.125 in L1 would do
    ball = make(0.125 if make is L2 else 0.5)
    assert not robust_accuracy(Patch(), [(x, y)], [name], ball=ball).robust.any()


@pytest.mark.parametrize("make", [L2, L1])
@pytest.mark.parametrize("name", [*PARTS, "pgd-20"])
def test_a_ball_wider_than_the_box_breaks_a_linear_model(name: str, make: type[Ball]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(20, 4)).double()
    x = images(12, 1, 4, 5)
    found = robust_accuracy(model, [(x, own_labels(model, x))], [name], ball=make(1000.0))
    assert found.correct[:, 0].all()
    assert int(found.robust.sum()) <= 1


# --- the package of the attacks' authors


def test_l1_projection_agrees_with_the_package_of_its_authors() -> None:
    from pyautoattack.autopgd_base import L1_projection

    # theirs is in fp32, and not the nearest point in two or three pixels
    x, delta = images(50, 1, 6, 8).float(), torch.randn(50, 1, 6, 8)
    for eps in (0.5, 2.0, 1000.0):
        theirs = delta + L1_projection(x, delta, eps)
        torch.testing.assert_close(L1(eps).project(x, delta), theirs, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ball", [L2(0.6), L1(1.0)], ids=repr)
def test_each_part_agrees_with_the_package_of_its_authors(
    digits_net: tuple[nn.Module, Tensor, Tensor],
    ball: Ball,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyautoattack import AutoAttack

    put(monkeypatch, Square("square", queries=1000))
    model, x, y = digits_net
    x, y = x[:50], y[:50]
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        standing = []
        for seed in (0, 1):
            judge = AutoAttack(model, norm=ball.norm.upper(), eps=ball.eps, seed=seed)
            judge.attacks_to_run = [name]
            judge.square.n_queries = 1000
            points, _ = judge.run_standard_evaluation(x, y, batch_size=50)
            standing.append(int((model(points).argmax(1) == y).sum()))
        ours = int(robust_accuracy(model, [(x, y)], [name], ball=ball).robust.sum())
        # one image is 2 points; their windows never lie in the last row and column of 8 by 8
        stronger = 8 if name == "square" else 1
        assert min(standing) - stronger <= ours <= max(standing) + 1, name
        assert 3 < ours < 45
