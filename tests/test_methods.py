"""Every method against the flattest loop, through the trainer's engine and a user's own loop."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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
from gratis.passes import Batch
from gratis.prober import Prober
from tests.reference import loops

EPS = 0.1


def small_net(channels=1, classes=4):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, classes),
    )


def some_batches(sizes=(8, 8, 5), channels=1):
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.rand(n, channels, 6, 5, generator=generator),
            torch.randint(0, 4, (n,), generator=generator),
        )
        for n in sizes
    ]


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[k], other[k]) for k in one)


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


class ConvolutionBackwards(TorchDispatchMode):
    """Notes which gradients each convolution's backward computes: (input, weight)."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(tuple(args[-1][:2]))
        return func(*args, **(kwargs or {}))


def test_probe_computes_no_weight_gradient():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    x, y = torch.rand(4, 4, 6, 6), torch.zeros(4, dtype=torch.long)
    with ConvolutionBackwards() as probe:
        Prober(model)(x, y)
    assert probe.masks == [(True, False)] * 2
    with ConvolutionBackwards() as whole:
        F.cross_entropy(model(x.requires_grad_()), y).backward()
    assert whole.masks == [(True, True)] * 2


@pytest.mark.parametrize(("norm", "moves"), [("batch", False), ("tracked", True), ("eval", False)])
def test_probe_leaves_the_model_alone(norm, moves):
    model = small_net().train()
    model[3].eval()  # somebody froze a layer
    before, (x, y) = weights(model), some_batches()[0]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    gradient = Prober(model, norm=norm)(x, y)
    assert gradient.shape == x.shape
    assert not x.requires_grad
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert model.training
    assert model[1].training
    assert not model[3].training
    moved = not torch.equal(before["1.running_mean"], model[1].running_mean)
    assert moved == moves
    assert (model[1].num_batches_tracked > before["1.num_batches_tracked"]) == moves
    # what the gradient is of: batch statistics, or in eval mode the running ones
    model[1].train(norm != "eval")
    point = x.clone().requires_grad_()
    F.cross_entropy(model(point), y, reduction="sum").backward()
    torch.testing.assert_close(gradient, point.grad)


def test_free_keeps_its_perturbation_over_batches_and_epochs():
    method, model = Free(Linf(EPS), replays=2), small_net()
    learner = Learner(model, sgd(model))
    (x1, y1), (x2, y2), (x3, y3) = some_batches()
    learner.fit(method, Batch(x1, y1))
    kept = method.state()["delta"].clone()
    seen = []
    for p in method.passes(Batch(x2, y2), learner.probe):
        seen.append(p.x.detach().clone())
        learner.backward(p)
    assert torch.equal(seen[0], Linf(EPS).place(x2, Linf(EPS).project(x2, kept)))
    assert seen[0].min() >= 0
    assert seen[0].max() <= 1
    # a short last batch: its places change, the others stay as they were
    before = method.state()["delta"].clone()
    learner.fit(method, Batch(x3, y3))
    after = method.state()["delta"]
    assert not torch.equal(before[:5], after[:5])
    assert torch.equal(before[5:], after[5:])
    # the next epoch begins where this one ended
    first = next(iter(method.passes(Batch(x1, y1), learner.probe)))
    assert torch.equal(first.x.detach(), Linf(EPS).place(x1, Linf(EPS).project(x1, after)))


def test_free_state_survives_a_copy():
    model = small_net()
    learner, method = Learner(model, sgd(model)), Free(Linf(EPS), replays=2)
    for x, y in some_batches():
        learner.fit(method, Batch(x, y))
    copied = Free(Linf(EPS), replays=2)
    copied.load_state({k: v.clone() for k, v in method.state().items()})
    x, y = some_batches()[0]
    one = next(iter(method.passes(Batch(x, y), learner.probe)))
    other = next(iter(copied.passes(Batch(x, y), learner.probe)))
    assert torch.equal(one.x, other.x)


def test_break_in_mid_replay_loses_nothing():
    method, model = Free(Linf(EPS), replays=4), small_net()
    optimizer = sgd(model)
    for n, (x, y) in enumerate(method.batches(some_batches())):
        if n == 2:
            break
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    kept = method.state()["delta"]
    assert kept.abs().max() == pytest.approx(EPS, rel=1e-5)


def test_missing_backward_is_explained():
    with pytest.raises(RuntimeError, match=r"x\.grad is still empty.*loss\.backward\(\)"):
        for _ in Free(Linf(EPS)).batches(some_batches()):
            pass


def test_missing_model_is_explained():
    with pytest.raises(ValueError, match=r"batches\(loader, model\)"):
        next(fgsm_rs(Linf(EPS)).batches(some_batches()))


def test_normalised_input_is_explained():
    x, y = some_batches()[0]
    with pytest.raises(ValueError, match="move normalisation into the model"):
        next(Free(Linf(EPS)).batches([((x - 0.5) / 0.25, y)]))


@pytest.mark.parametrize("ball", [Linf(EPS), L2(0.5)], ids=["linf", "l2"])
def test_scaled_loss_changes_nothing(ball):
    """A gradient scaler multiplies the loss: only the direction of x.grad may count."""
    deltas = []
    for scale in (1.0, 65536.0):
        method, model = Free(ball, replays=3), small_net().double()
        batches = [(x.double(), y) for x, y in some_batches()]
        for x, y in method.batches(batches):
            (scale * F.cross_entropy(model(x), y)).backward()
        deltas.append(method.state()["delta"])
    torch.testing.assert_close(deltas[0], deltas[1])


def test_image_with_infinite_gradient_keeps_its_perturbation():
    method = Free(Linf(EPS), replays=3)
    x, y = some_batches()[0]
    passes = method.passes(Batch(x, y), None)
    p = next(passes)
    p.x.grad = torch.ones_like(x)
    p = next(passes)
    before = method.state()["delta"].clone()
    p.x.grad = -torch.ones_like(x)
    p.x.grad[2, 0, 0, 0] = torch.inf
    p.x.grad[4, 0, 1, 1] = torch.nan
    next(passes)
    after = method.state()["delta"]
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(before, after, strict=True)])
    assert kept.nonzero().flatten().tolist() == [2, 4]
    assert after.isfinite().all()


def test_own_loop_under_autocast():
    method, model = Free(Linf(EPS), replays=2), small_net()
    optimizer = sgd(model)
    for x, y in method.batches(some_batches()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert x.dtype == torch.float32
        assert x.grad.dtype == torch.float32
    assert method.state()["delta"].dtype == torch.float32


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


def test_gentler_keeps_the_carried_perturbation():
    method = Free(Linf(EPS), replays=1)
    x, y = some_batches()[0]
    passes = method.passes(Batch(x, y), None)
    next(passes).x.grad = torch.ones_like(x)
    next(passes, None)
    changed, _ = method.gentler()
    assert torch.equal(changed.state()["delta"], method.state()["delta"])
    assert changed.step_size == pytest.approx(0.75 * EPS)


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
