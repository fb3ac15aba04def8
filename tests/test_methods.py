"""Every method against the flattest loop, through the trainer's engine and a user's own loop."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gratis import (
    L2,
    AdvProp,
    FastAdvProp,
    Free,
    GradAlign,
    Learner,
    Linf,
    Natural,
    PGDTraining,
    Trades,
    Yopo,
    add_aux,
    fgsm,
    fgsm_rs,
    n_fgsm,
)
from gratis.methods import METHODS
from gratis.methods.gradalign import misalignment
from gratis.passes import Batch
from gratis.prober import Prober
from tests.reference import loops
from tests.small_net import EPS, same, sgd, small_net, some_batches, weights

CASES = {
    "natural": (Natural(), loops.natural, {}),
    "natural-3": (Natural(replays=3), loops.natural, {"replays": 3}),
    "fgsm-rs": (fgsm_rs(Linf(EPS)), loops.pgd_training, {"step": 1.25 * EPS, "steps": 1}),
    "fgsm-zero": (
        fgsm(Linf(EPS)),
        loops.pgd_training,
        {"step": EPS, "steps": 1, "start": "zero"},
    ),
    "fgsm-previous": (
        fgsm(Linf(EPS), start="previous"),
        loops.pgd_training,
        {"step": EPS, "steps": 1, "start": "previous"},
    ),
    "pgd-4": (PGDTraining(Linf(EPS), 4), loops.pgd_training, {"step": EPS / 4, "steps": 4}),
    "pgd-3-while-correct": (
        PGDTraining(Linf(EPS), 3, step_size=0.04, only_correct=True),
        loops.pgd_training,
        {"step": 0.04, "steps": 3, "only_correct": True},
    ),
    "free-3": (Free(Linf(EPS), replays=3), loops.free, {"replays": 3}),
    "n-fgsm": (n_fgsm(Linf(EPS)), loops.n_fgsm, {"noise": 2, "step": EPS}),
    "trades-3": (Trades(Linf(EPS), 3), loops.trades, {"step": EPS / 4, "steps": 3, "beta": 6}),
    "gradalign": (
        GradAlign(Linf(EPS), strength=0.2),
        loops.gradalign,
        {"step": 1.25 * EPS, "strength": 0.2},
    ),
    "gradalign-random": (
        GradAlign(Linf(EPS), strength=2.0, step_size=0.07, start="random"),
        loops.gradalign,
        {"step": 0.07, "strength": 2.0, "start": "random"},
    ),
    "yopo-3-2": (Yopo(Linf(EPS), 3, 2), loops.yopo, {"step": EPS / 4, "rounds": 3, "steps": 2}),
    "advprop-2": (AdvProp(Linf(EPS), 2), loops.advprop, {"step": EPS, "steps": 2}),
    "fast-advprop": (
        FastAdvProp(Linf(EPS), adversarial=0.4),
        loops.fast_advprop,
        {"step": EPS, "share": 0.4},
    ),
    "fast-advprop-plain": (
        FastAdvProp(Linf(EPS), 0.4, step_size=0.05, rebalance=False, equalise=False, shuffle=False),
        loops.fast_advprop,
        {"step": 0.05, "share": 0.4, "rebalance": False, "equalise": False, "shuffle": False},
    ),
}
OWN_LOOP = [name for name, (method, _, _) in CASES.items() if method.own_loop]


def net_for(method):
    return add_aux(small_net()) if method.auxiliary else small_net()


def reference_weights(method, loop, settings):
    model = net_for(method)
    if loop is not loops.natural:
        settings = {"eps": EPS, **settings}
    torch.manual_seed(5)
    loop(model, sgd(model), some_batches(), **settings)
    return weights(model)


@pytest.mark.parametrize("name", CASES)
def test_engine_equals_the_flattest_loop(name):
    method, loop, settings = CASES[name]
    method, model = copy.deepcopy(method), net_for(method)
    learner = Learner(model, sgd(model))
    torch.manual_seed(5)
    for x, y in some_batches():
        learner.fit(method, Batch(x, y))
    expected = reference_weights(method, loop, settings)
    for key, value in weights(model).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)


def test_every_method_has_a_case():
    kinds = {name.split("-")[0] for name in CASES}
    assert {name.split("-")[0] for name in METHODS} <= kinds


@pytest.mark.parametrize("name", OWN_LOOP)
def test_own_loop_is_bitwise_the_engine(name):
    method, _, _ = CASES[name]
    ours, theirs = small_net(), small_net()
    learner = Learner(ours, sgd(ours))
    fit, lent = copy.deepcopy(method), copy.deepcopy(method)
    torch.manual_seed(5)
    for x, y in some_batches():
        learner.fit(fit, Batch(x, y))
    optimizer = sgd(theirs)
    torch.manual_seed(5)
    for x, y in lent.batches(some_batches(), theirs):
        loss = F.cross_entropy(theirs(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert same(weights(ours), weights(theirs))


@pytest.mark.parametrize("name", CASES)
def test_meter_equals_the_stated_cost(name):
    method = copy.deepcopy(CASES[name][0])
    model = net_for(method)
    learner = Learner(model, sgd(model))
    for x, y in some_batches():
        before = learner.spent.thirds
        metrics = learner.fit(method, Batch(x, y))
        costs = method.update_thirds(len(x))
        assert len(metrics.losses) == len(costs)
        assert learner.spent.thirds - before == sum(costs)


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        (Natural(), 1),
        (Natural(replays=4), 4),
        (fgsm_rs(Linf(EPS)), 5 / 3),
        (PGDTraining(Linf(EPS), 7), 1 + 14 / 3),
        (PGDTraining(Linf(EPS), 40), 1 + 80 / 3),
        (Free(Linf(EPS)), 8),
        (n_fgsm(Linf(EPS)), 5 / 3),
        (GradAlign(Linf(EPS)), 11 / 3),
        (Trades(Linf(EPS), 10), 7 / 3 + 20 / 3),
        (Yopo(Linf(EPS), 5, 3), 5),  # and the first layer's share, once the network is known
        (AdvProp(Linf(EPS), 5), 2 + 10 / 3),
        (AdvProp(Linf(EPS), 1), 2 + 2 / 3),
        (FastAdvProp(Linf(EPS)), 1.2),
        (FastAdvProp(Linf(EPS), adversarial=0.5), 1.5),
    ],
)
def test_nominal_cost(method, cost):
    assert method.cost == pytest.approx(cost)


def test_step_sizes_are_the_papers():
    ball = Linf(8 / 255)
    assert fgsm_rs(ball).resolved_step_size == pytest.approx(10 / 255)
    assert fgsm(ball).resolved_step_size == 8 / 255
    assert PGDTraining(ball, 7).resolved_step_size == 2 / 255
    assert PGDTraining(ball, 10).resolved_step_size == 2 / 255
    assert PGDTraining(ball, 2).resolved_step_size == 4 / 255
    assert Free(ball).resolved_step_size == 8 / 255


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ball", [Linf(EPS), L2(0.4)], ids=["linf", "l2"])
@pytest.mark.parametrize("name", ["fgsm-rs", "pgd", "free"])
def test_training_points_stay_in_the_threat_model(name, ball, precision):
    method = {
        "fgsm-rs": fgsm_rs(ball),
        "pgd": PGDTraining(ball, 3),
        "free": Free(ball, replays=3),
    }[name]
    model = small_net()
    learner = Learner(model, sgd(model), precision=precision)
    largest = 0.0
    for x, y in some_batches():
        for p in method.passes(Batch(x, y), learner.probe):
            assert p.x.dtype == torch.float32
            assert p.x.min() >= 0
            assert p.x.max() <= 1
            largest = max(largest, ball.size(p.x.detach() - x).max().item())
            learner.backward(p)
            learner.update()
    assert largest <= ball.eps * (1 + 1e-5)
    assert largest == pytest.approx(ball.eps, rel=1e-3)


def test_attack_raises_the_true_labels_loss():
    method, model = PGDTraining(Linf(EPS), 5), small_net()
    x, y = some_batches()[0]
    p = next(iter(method.passes(Batch(x, y), Prober(model))))
    assert F.cross_entropy(model(p.x), y) > F.cross_entropy(model(x), y) + 0.05


def test_gentler_goes_from_zero_start_to_shorter_steps():
    changed, said = fgsm(Linf(EPS)).gentler()
    assert (changed.start, changed.step_size) == ("random", pytest.approx(1.25 * EPS))
    assert not changed.clip_start
    assert "zero -> random" in said
    changed, _ = fgsm_rs(Linf(EPS), step_size=2 * EPS).gentler()
    assert changed.step_size == pytest.approx(1.25 * EPS)
    changed, said = changed.gentler()
    assert changed.step_size == pytest.approx(1.25 * EPS)
    assert not changed.clip_start
    assert "clip_start" in said
    again, said = changed.gentler()
    assert again.step_size == pytest.approx(0.75 * 1.25 * EPS)
    assert "step_size" in said
    assert PGDTraining(Linf(EPS), 7).gentler() is None
    assert Natural().gentler() is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PGDTraining(Linf(EPS), 0),
        lambda: PGDTraining(Linf(EPS), 1, step_size=-1),
        lambda: PGDTraining(Linf(EPS), 1, start="sideways"),
        lambda: Free(Linf(EPS), replays=0),
        lambda: Natural(replays=0),
    ],
)
def test_senseless_hyperparameters_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must|none of"):
        wrong()


def test_start_is_cut_to_the_pixel_box_unless_told_otherwise():
    x, y = some_batches()[0]
    x = x.round()
    seen = {}
    for clip in (True, False):
        points = []

        def probe(point, label, loss=None, norm="main", points=points):
            points.append(point)
            return torch.zeros_like(point)

        method = replace(fgsm_rs(Linf(EPS)), clip_start=clip)
        (p,) = method.passes(Batch(x, y), probe)
        seen[clip] = points[0]
        assert p.x.min() >= 0
        assert p.x.max() <= 1
    assert seen[True].min() >= 0
    assert seen[False].min() < -EPS / 2


def test_images_without_a_gradient_say_nothing_of_alignment():
    one = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1e-30, 1e-30]])
    other = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2e-30, 2e-30]], requires_grad=True)
    apart = misalignment(one, other)
    assert apart.item() == pytest.approx((1 + 0) / 2)
    (grad,) = torch.autograd.grad(apart, other)
    assert grad.isfinite().all()
    assert grad[0].tolist() == pytest.approx([-0.5, 0.0])
    assert not grad[1].any()
    nothing = misalignment(torch.zeros_like(one), other)
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, other)[0].any()


def test_targeted_attacks_take_the_likeliest_class_of_soft_labels():
    ends = []
    for soft in (False, True):
        method, model = AdvProp(Linf(0.1), 2), add_aux(small_net())
        learner = Learner(model, sgd(model), seed=0)
        x, y = some_batches()[0]
        learner.fit(method, Batch(x, F.one_hot(y, 4).float() if soft else y))
        ends.append(weights(model))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], msg=name)
