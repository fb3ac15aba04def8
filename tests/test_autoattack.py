"""APGD, FAB and Square: exact answers on linear models, and outcomes that nothing else can move."""

import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn

from gratis.attacks import Attacked, build_attack
from gratis.attacks.apgd import _checks
from gratis.attacks.fab import onto_plane
from gratis.balls import L2, Linf
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from gratis.losses import dlr, dlr_towards, margin
from tests.problems import WIDE, Counting, a_linear_problem, a_problem, batched

pytestmark = pytest.mark.usefixtures("few_queries")
quick = pytest.mark.usefixtures("few_steps")
DEAR, WIDE_L2 = ("apgd-t", "fab-t"), L2(0.2, **WIDE)
PARTS = ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]


# --- losses


def test_losses_by_hand():
    z = torch.tensor([[4.0, 1.0, 2.0, -1.0], [0.0, 1.0, 2.0, 3.0]])
    y = torch.tensor([0, 1])
    assert margin(z, y).tolist() == [-2, 2]
    assert dlr(z, y).tolist() == pytest.approx([-2 / 3, 2 / 2])
    # towards class 3: -(z_y - z_3) / (z_1st - (z_3rd + z_4th) / 2)
    towards = torch.tensor([3, 3])
    assert dlr_towards(z, y, towards).tolist() == pytest.approx([-5 / 4, 2 / 2.5])
    torch.testing.assert_close(dlr(1000 * z + 7, y), dlr(z, y), rtol=1e-4, atol=0)


def test_step_sizes_are_looked_at_when_the_paper_says():
    # 22 % of the steps, then 3 % less each time, but never less than 6 %
    expected, place, interval = set(), 22, 22
    while place <= 100:
        expected.add(place - 1)
        interval = max(interval - 3, 6)
        place += interval
    assert _checks(100) == expected
    assert min(_checks(1)) == 0


# --- the projection of FAB


@pytest.mark.parametrize("seed", range(20))
def test_onto_plane_in_linf_is_the_linear_programme(seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(1, 1, 2, 3, generator=generator, dtype=torch.float64)
    w = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    w[0, 0, 0, 0] *= seed % 3  # now and then a pixel without slope
    z[0, 0, 1, 1] = float(seed % 2)  # or one that stands at the box
    level = (w * torch.rand(z.shape, generator=generator, dtype=torch.float64)).sum().view(1)
    move = onto_plane(z, w, level, Linf(0.1))
    # minimise t over (move, t): -t <= move <= t, the box, the plane
    n, flat = 6, w.flatten().tolist()
    eye = torch.eye(n, dtype=torch.float64)
    ones = -torch.ones(n, 1, dtype=torch.float64)
    found = linprog(
        [0.0] * n + [1.0],
        A_ub=torch.cat([torch.cat([eye, ones], 1), torch.cat([-eye, ones], 1)]).numpy(),
        b_ub=[0.0] * (2 * n),
        A_eq=[[*flat, 0.0]],
        b_eq=[float(level - (w * z).sum())],
        bounds=[(-float(p), 1 - float(p)) for p in z.flatten()] + [(0, None)],
    )
    assert found.success
    assert float(move.abs().max()) == pytest.approx(found.fun, abs=1e-9)
    assert float((w * (z + move)).sum()) == pytest.approx(float(level), abs=1e-9)
    assert (z + move).min() >= -1e-12
    assert (z + move).max() <= 1 + 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_onto_plane_in_l2_is_the_quadratic_programme(seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(1, 1, 2, 2, generator=generator, dtype=torch.float64)
    w = torch.randn(z.shape, generator=generator, dtype=torch.float64)
    level = (w * torch.rand(z.shape, generator=generator, dtype=torch.float64)).sum().view(1)
    move = onto_plane(z, w, level, L2(0.1))
    flat_z, flat_w = z.flatten().numpy(), w.flatten().numpy()
    found = minimize(
        lambda d: (d**2).sum(),
        move.flatten().numpy() * 0,
        jac=lambda d: 2 * d,
        bounds=[(-p, 1 - p) for p in flat_z],
        constraints={"type": "eq", "fun": lambda d: flat_w @ (flat_z + d) - level.item()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    assert float(move.norm()) == pytest.approx(found.fun**0.5, abs=1e-5)


def test_a_plane_beyond_the_box_is_approached():
    z = torch.full((1, 1, 1, 2), 0.5)
    move = onto_plane(z, torch.tensor([[[[1.0, -2.0]]]]), torch.tensor([99.0]), Linf(0.1))
    assert move.flatten().tolist() == [0.5, -0.5]
    still = onto_plane(z, torch.zeros_like(z), torch.tensor([1.0]), L2(0.1))
    assert torch.equal(still, torch.zeros_like(z))


# --- the exact answer


# in L2 the fast part asks the dearest attacks this in test_norms, where the box binds besides
@pytest.mark.parametrize(
    ("name", "ball"),
    [
        pytest.param(name, ball, marks=[pytest.mark.slow] * (ball == WIDE_L2 and name in DEAR))
        for ball in (Linf(0.03), WIDE_L2)
        for name in PARTS
    ],
    ids=str,
)
def test_linear_models(name, ball):
    model, x, y, breakable = a_linear_problem(10, 1.0, ball)
    found = robust_accuracy(model, [(x, y)], [name], ball=ball)
    broken = found.correct[:, 0] & ~found.robust
    assert not (broken & ~breakable).any()
    missed = int((breakable & found.robust).sum())
    allowed = {"apgd-t": 0, "fab-t": 1, "apgd-dlr": 3, "apgd-ce": 25, "square": 40}[name]
    assert missed <= allowed
    assert int(broken.sum()) > 40


@pytest.mark.parametrize("name", PARTS)
def test_broken_images_come_with_a_point_that_proves_it(name):
    model, x, y, ball = a_problem(20)
    model.eval()
    clean = model(x).argmax(1) == y
    x, y = x[clean], y[clean]
    attacked = Attacked(
        model,
        x,
        y,
        ball=ball,
        losses=lambda z, labels: nn.functional.cross_entropy(z, labels, reduction="none"),
        correct=lambda z, labels: z.argmax(1) == labels,
        keys=list(range(len(x))),
        meter=Meter(),
    )
    points, broken = build_attack(name)(attacked)
    assert 0 < int(broken.sum()) < len(x)
    assert (model(points).argmax(1) != y)[broken].all()
    assert (ball.size(points - x) <= ball.eps * (1 + 1e-9)).all()
    assert points.min() >= 0
    assert points.max() <= 1


@quick
@pytest.mark.parametrize("name", ["apgd-dlr", "autoattack"])
def test_batch_size_and_order_change_nothing(name):
    model, x, y, ball = a_problem(13)
    whole = robust_accuracy(model, [(x, y)], [name], ball=ball).correct
    parts = robust_accuracy(model, batched(x, y, 4), [name], ball=ball).correct
    assert torch.equal(parts, whole)
    order = torch.randperm(len(x))
    shuffled = robust_accuracy(model, [(x[order], y[order])], [name], ball=ball).correct
    assert torch.equal(shuffled, whole[order])
    assert 0 < int(whole[:, 1].sum()) < int(whole[:, 0].sum())


@quick
def test_autoattack_is_its_parts_together():
    model, x, y, ball = a_problem(20)
    names = ["apgd-ce", "apgd-t", "fab-t", "square", "autoattack"]
    found = robust_accuracy(model, [(x, y)], names, ball=ball).correct
    assert torch.equal(found[:, 5], found[:, 1:5].all(1))


@quick
@pytest.mark.parametrize("name", [*PARTS, "autoattack"])
def test_meters_count_every_forward_and_backward(name):
    model, x, y, ball = a_problem(8)
    counting = Counting(model)
    found = robust_accuracy(counting, [(x, y)], [name], ball=ball)
    meter = found.meters[1]
    seen = counting.forwards - found.meters[0].forwards
    assert meter.probes + meter.forwards == seen
    assert meter.probes == counting.backwards


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    model, x, y, breakable = a_linear_problem(classes, 1.0, Linf(0.05))
    found = robust_accuracy(model, [(x, y)], ["autoattack"], ball=Linf(0.05))
    assert torch.equal(found.robust, found.correct[:, 0] & ~breakable)
    refused = "apgd-t" if classes == 3 else "apgd-dlr"
    with pytest.raises(ValueError, match=rf"{refused} needs \d classes or more, the model has"):
        robust_accuracy(model, [(x, y)], [refused], ball=Linf(0.05))


@quick
@pytest.mark.parametrize("name", [*PARTS, "autoattack"])
def test_a_model_that_always_says_the_same(name):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([3.0, 1.0, 0.0, -1.0]) + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = torch.rand(3, 1, 4, 5), torch.tensor([0, 0, 1])
    found = robust_accuracy(Constant(), [(x, y)], [name], ball=Linf(0.3))
    assert found.correct.tolist() == [[True, True], [True, True], [False, False]]
