"""The attacks in L2 and L1: exact answers where the pixel box binds, and what cannot matter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from gratis.attacks import Attacked, build_attack
from gratis.attacks.apgd import APGD
from gratis.attacks.climb_l1 import stages
from gratis.attacks.fab import onto_plane
from gratis.attacks.pgd import pgd
from gratis.attacks.square import Square
from gratis.attacks.windows import Windows
from gratis.balls import L1, L2, Ball, Linf
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from gratis.losses import cross_entropy
from tests.short_attacks import put
from tests.test_evaluate import Counting, a_problem, batched, digits_net, own_labels

__all__ = ["digits_net"]  # a fixture, asked for by name

PARTS = ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
BALLS = [L2(0.4), L1(2.0)]

balls = pytest.mark.parametrize("ball", BALLS, ids=repr)


@pytest.fixture(autouse=True)
def fewer_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than the standard, so that tests are quick."""
    put(monkeypatch, Square("square", queries=150))


quick = pytest.mark.usefixtures("few_steps")


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


def images(count: int, *shape: int) -> Tensor:
    """Random pixels in float64, a third of them at the edges of the box."""
    x, edge = torch.rand(count, *shape, dtype=torch.float64), torch.rand(count, *shape)
    return torch.where(edge < 1 / 6, 0.0, torch.where(edge > 5 / 6, 1.0, x))


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


# --- FAB's projection


pixels = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
slopes = st.floats(-2, 2) | st.sampled_from([0.0, -1.0, 1.0])


@given(
    image=st.lists(st.tuples(pixels, slopes), min_size=1, max_size=6),
    level=st.floats(-5, 5),
    norm=st.sampled_from(["linf", "l2", "l1"]),
)
def test_moves_onto_planes_stay_in_the_box_and_reach_what_they_can(
    image: list[tuple[float, float]], level: float, norm: str
) -> None:
    ball = {"linf": Linf(0.1), "l2": L2(1.0), "l1": L1(1.0)}[norm]
    z = torch.tensor([p for p, _ in image], dtype=torch.float64).view(1, 1, 1, -1)
    w = torch.tensor([s for _, s in image], dtype=torch.float64).view(1, 1, 1, -1)
    w = torch.where(w.abs() < 1e-6, 0.0, w)  # squares of smaller ones are out of L2's sight
    moved = z + onto_plane(z, w, torch.tensor([level], dtype=torch.float64), ball)
    assert moved.min() >= -1e-12
    assert moved.max() <= 1 + 1e-12
    lowest, highest = float(w.clamp_max(0).sum()), float(w.clamp_min(0).sum())
    reached = float((w * moved).sum())
    assert reached == pytest.approx(min(max(level, lowest), highest), abs=1e-6)
    assert torch.equal(moved[w == 0], z[w == 0])


@pytest.mark.parametrize("seed", range(20))
def test_onto_plane_in_l1_is_the_linear_programme(seed: int) -> None:
    torch.manual_seed(seed)
    z, w = images(1, 1, 2, 3), torch.randn(1, 1, 2, 3, dtype=torch.float64)
    w[0, 0, 0, 0] *= seed % 3  # now and then a pixel without slope
    level = (w * torch.rand_like(z)).sum().view(1)
    move = onto_plane(z, w, level, L1(0.1))
    flat, slope = z.flatten().tolist(), w.flatten().tolist()
    found = linprog(
        [1.0] * 12,
        A_eq=[slope + [-s for s in slope]],
        b_eq=[float(level - (w * z).sum())],
        bounds=[(0, 1 - p) for p in flat] + [(0, p) for p in flat],
    )
    assert found.success
    assert float(move.abs().sum()) == pytest.approx(found.fun, abs=1e-9)
    assert float((w * (z + move)).sum()) == pytest.approx(float(level), abs=1e-9)


# --- Square's windows


def some_windows(ball: Ball, x: Tensor, queries: int = 60) -> Windows:
    random = [torch.Generator().manual_seed(i) for i in range(len(x))]
    return Windows(random, x, ball, queries)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 9])
def test_bumps_have_length_one_and_two_signs(side: int) -> None:
    x = torch.zeros(2, 1, 9, 9, dtype=torch.float64)
    share = torch.tensor([0.2, 0.7])
    for ball in BALLS:
        bumps = some_windows(ball, x)._bumps(share, side, x)
        torch.testing.assert_close(ball.size(bumps), torch.ones(2, dtype=torch.float64))
        assert torch.equal(bumps[0], bumps[1].T)
        upper = bumps[1][: side // 2]
        assert (upper > 0).all()
        assert (bumps[1][side // 2 :] < 0).all()
        assert upper.numel() == 0 or upper.argmax() == upper.numel() // 2 // side * side + side // 2


def test_a_bump_by_hand() -> None:
    # three by three: the upper row alone, its middle 1 + 1/4 (L2), its ends 1/4
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    bump = some_windows(L2(1.0), x)._bumps(torch.tensor([0.9]), 3, x)[0]
    torch.testing.assert_close(bump[0] / bump[0, 0], torch.tensor([1.0, 5.0, 1.0]).double())
    torch.testing.assert_close(bump[1:] / bump[1, 0], torch.tensor([[1.0] * 3, [1, 5, 1]]).double())


@pytest.mark.parametrize(
    "shape", [(3, 7, 11), (1, 28, 28), (1, 1, 1), (2, 2, 9), (1, 4, 4)], ids=str
)
@pytest.mark.parametrize("make", [L2, L1])
def test_windows_use_the_whole_ball_and_never_leave_it(
    make: type[Ball], shape: tuple[int, ...]
) -> None:
    for ball in (make(0.5), make(0.5, low=-50.0, high=51.0)):
        x = images(3, *shape)
        proposals = some_windows(ball, x)
        best = proposals.first(x)
        assert not torch.equal(best, x)
        for query in range(1, 60):
            area = 0.8 * shape[1] * shape[2] / 2 ** (query // 10)
            tried = proposals.next(query, area, x, best)
            ball.check(tried)
            size = ball.size(tried - x)
            assert (size <= ball.eps * (1 + 1e-9)).all()
            # a box that never binds; in a single pixel a bump may undo what was there
            if ball.high > 1 and shape[1] > 1:
                torch.testing.assert_close(size, torch.full_like(size, ball.eps))
            best = tried if query % 3 else best


def test_a_window_gets_what_the_other_held() -> None:
    x = torch.full((1, 1, 9, 9), 0.5, dtype=torch.float64)
    ball = L2(0.1)
    proposals = some_windows(ball, x)
    best = proposals.first(x)
    before, after = best - x, proposals.next(1, 9.0, x, best) - x
    touched = before != after
    assert int(touched.sum()) <= 18  # two windows of three by three
    torch.testing.assert_close(before[touched].norm(), after[touched].norm())


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
        assert build_attack("apgd-ce").parameters(ball)["restarts"] == restarts
        assert build_attack("apgd-t").parameters(ball)["targets"] == targets
        told = whole.parameters(ball)
        assert told["attacks"] == "apgd-ce, apgd-t, fab-t, square"
        assert told["apgd-ce restarts"] == restarts
        assert told["apgd-t targets"] == targets
        assert told["fab-t targets"] == 9
        assert ("radii" in build_attack("apgd-ce").parameters(ball)) == (ball.norm == "l1")
    assert build_attack("apgd-ce").parameters(L1(12.0))["radii"] == (
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
    assert {one.parameters(b)["targets"] for b in (Linf(0.1), L1(1.0))} == {3}
    assert {one.parameters(b)["restarts"] for b in (Linf(0.1), L1(1.0))} == {2}


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
