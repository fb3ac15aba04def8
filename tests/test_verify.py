"""Exact verification, held against brute force, samples, attacks and its own records."""

import itertools
import json
import time

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from gratis import train
from gratis.assess import trained
from gratis.balls import Linf
from gratis.cli import main
from gratis.data import load
from gratis.evaluate import robust_accuracy
from gratis.nn import Normalize, add_aux, mnist_net, small_conv
from gratis.recipe import from_plain
from gratis.verify import Settings, Verifier, lowered, verify_run
from gratis.verify import record as records
from gratis.verify.bounds import (
    Box,
    crown_bounds,
    interval_bounds,
    lines,
    lower_bound,
    margin_rows,
    unstable,
)
from gratis.verify.branch import branch_and_bound
from gratis.verify.leaf import best_multipliers
from gratis.verify.nodes import Problem, margin_bound, roots, split
from gratis.verify.slopes import improved, sharpened
from tests.recipes import tiny


def tiny_net(seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.ReLU(),
        nn.Linear(4, 3),
        nn.ReLU(),
        nn.Linear(3, classes),
    )


def conv_net(seed=0, classes=4, scale=2.0):
    """Normalize, convolutions, batch norm, pooling: every kind of layer, on 1x6x5 images."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        Normalize([0.4], [0.3]),
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 6, (2, 3), padding=(0, 1), bias=False), nn.ReLU()),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(12, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, classes),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    with torch.no_grad():
        net[-1].weight.mul_(scale)
    return net.eval()


IMAGE = (1, 6, 5)


def bent(classes, channels, image_size, width=4):
    """A network that is not piecewise linear, for a recipe."""
    pixels = channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.Linear(pixels, classes))


def verifier(net, eps, shape=(1, 2, 2), **settings):
    return Verifier(net, shape, Linf(eps), Settings(attack="cw-2", time_limit=20, **settings))


def problem_of(net, x, label, eps):
    network = lowered(net, tuple(x.shape[1:]))
    box = Box.around(x, eps)
    with torch.no_grad():
        return Problem(network, box, label, tuple(crown_bounds(network, box)))


def exact_minimum(net, x, label, eps):
    """The least margin over the ball: a linear program for each pattern of the seven ReLUs."""
    stages = [(m.weight.double().detach().numpy(), m.bias.double().detach().numpy())
              for m in net if isinstance(m, nn.Linear)]  # fmt: skip
    x = x.double().flatten().numpy()
    bounds = np.stack([np.maximum(x - eps, 0), np.minimum(x + eps, 1)], 1)
    sizes = [len(b) for _, b in stages[:-1]]
    least = np.inf
    weight, bias = stages[0]
    centre, radius = weight @ bounds.mean(1) + bias, abs(weight) @ (bounds[:, 1] - bounds[:, 0]) / 2
    first = [  # most of the first layer's signs are settled by the ball
        [sign for sign in (0.0, 1.0) if (c + r >= 0 if sign else c - r <= 0)]
        for c, r in zip(centre, radius, strict=True)
    ]
    rest = [(0.0, 1.0)] * (sum(sizes) - sizes[0])
    for pattern in itertools.product(*first, *rest):
        w, b = np.eye(len(x)), np.zeros(len(x))
        g, h, left = [], [], np.array(pattern)
        for (weight, bias), size in zip(stages, [*sizes, 0], strict=True):
            w, b = weight @ w, weight @ b + bias
            if size:
                on, left = left[:size], left[size:]
                g.append((1 - 2 * on)[:, None] * w)  # on: w x + b >= 0
                h.append((2 * on - 1) * b)
                w, b = on[:, None] * w, on * b
        for target in {*range(len(b))} - {label}:
            found = linprog(
                w[label] - w[target], np.concatenate(g), np.concatenate(h), bounds=bounds
            )
            if found.status == 0:
                least = min(least, found.fun + b[label] - b[target])
    return least


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


# --- bounds


def samples(box, count=3000):
    inside = torch.rand(count, *box.low.shape[1:], dtype=torch.double)
    corners = inside.round()
    return torch.cat([box.low + part * (box.high - box.low) for part in (inside, corners)])


@pytest.mark.parametrize("seed", range(3))
def test_no_sampled_point_leaves_the_bounds(seed):
    net = conv_net(seed)
    network, x = lowered(net, IMAGE), torch.rand(1, *IMAGE)
    box = Box.around(x, 0.1)
    crown, ibp = crown_bounds(network, box), interval_bounds(network, box)
    sharp = sharpened(Problem(network, box, 0, tuple(crown)), 10).bounds
    a = samples(box)
    for place, stage in enumerate(network.stages[:-1]):
        a = stage.apply(a)
        for low, high in (ibp[place], crown[place], sharp[place]):
            assert ((a >= low) & (a <= high)).all()
        for wide, tight in ((ibp, crown), (crown, sharp)):
            assert (tight[place][0] >= wide[place][0]).all()
            assert (tight[place][1] <= wide[place][1]).all()
        a = a.clamp_min(0)
    left = [sum(int(unstable(*b).sum()) for b in bounds) for bounds in (ibp[:-1], crown)]
    assert left[0] > left[1]

    logits = network.stages[-1].apply(a)
    targets = torch.tensor([1, 2, 3])
    values = lower_bound(
        network, margin_rows(network, 0, targets), [lines(*b) for b in crown], box
    ).values[0]
    least = (logits[:, :1] - logits[:, 1:]).amin(0)
    assert (values <= least).all()
    by_intervals = ibp[-1][0][0, 0] - ibp[-1][1][0, 1:]
    assert (values >= by_intervals - 1e-9).all()

    problem = Problem(network, box, 0, tuple(crown))
    better = improved(problem, roots(problem, targets), 40, enough=torch.inf)
    assert (better.value >= values).all()
    assert (better.value <= least).all()
    assert (better.value > values + 1e-3).any()
    again = margin_bound(problem, better).values[:, 0]
    assert torch.allclose(again, better.value, atol=1e-9)


def test_the_lowered_network_is_the_network():
    net = conv_net()
    x = torch.rand(5, *IMAGE)
    network = lowered(net, IMAGE)
    assert torch.allclose(network.logits(x), net.double()(x.double()), atol=1e-12)
    # <A, W a + b> = <A W, a> + <A, b> for every stage
    for stage in network.stages:
        a = torch.randn(3, *stage.inputs, dtype=torch.double)
        rows = torch.randn(3, 1, *stage.outputs, dtype=torch.double)
        back, constant = stage.transpose(rows)
        one = (rows[:, 0] * stage.apply(a)).flatten(1).sum(1)
        assert torch.allclose(one, (back[:, 0] * a).flatten(1).sum(1) + constant[:, 0])
    assert lowered(mnist_net(10), (1, 28, 28)).relus == 4804


def test_auxiliary_norms_are_left_out():
    net = small_conv(10, 1, 8, width=2).eval()
    plain = lowered(net, (1, 8, 8))
    x = torch.rand(2, 1, 8, 8)
    with_aux = lowered(add_aux(net), (1, 8, 8))
    assert torch.equal(plain.logits(x), with_aux.logits(x))


# --- what is refused


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Tanh(), r"layer 1.0 \(Tanh\) is none of these: .*Sequential of Normalize, Conv2d"),
        (nn.MaxPool2d(2), r"\(MaxPool2d\)"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), r"\(Conv2d\) pads otherwise"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), r"\(AvgPool2d\) divides"),
        (nn.BatchNorm2d(1, track_running_stats=False), "no running statistics"),
    ],
)
def test_other_layers_are_named(layer, message):
    net = nn.Sequential(Normalize([0.5], [0.5]), nn.Sequential(layer), nn.Flatten())
    with pytest.raises(ValueError, match=message):
        lowered(net, (1, 4, 4))


def test_weights_that_are_no_numbers_prove_nothing():
    net = tiny_net(0)
    with torch.no_grad():
        net[3].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer 3 \(Linear\) holds numbers that are not finite"):
        verifier(net, 0.1)


def test_too_large_and_other_ends():
    with pytest.raises(ValueError, match="ReLUs; exact verification here is for small ones"):
        lowered(small_conv(10, 1, 32, width=64), (1, 32, 32))
    with pytest.raises(ValueError, match="one logit a class"):
        lowered(nn.Sequential(nn.Conv2d(1, 2, 1)), (1, 2, 2))


def test_a_network_with_hooks_is_not_what_was_bounded():
    net = tiny_net(0)
    asked = verifier(net, 0.1)
    for one in (asked.model, asked.double):
        one[1].register_forward_hook(lambda module, given, out: 2 * out)
    x = torch.rand(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="disagree"):
        asked.verdict(x, 0)


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


# --- a trained network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    recipe = tiny("fgsm-rs", "method.ball.eps=0.1", passes=30)
    return train.run(recipe, tmp_path_factory.mktemp("verify") / "run")


BALL, SETTINGS = Linf(0.05), Settings(attack="cw-10", time_limit=5)


def lines_of(run, name="linf-0.05.jsonl"):
    return [json.loads(line) for line in (run.path / "verify" / name).read_text().splitlines()]


def without_seconds(record):
    return {key: value for key, value in record.items() if key != "seconds"}


@pytest.mark.slow
def test_no_attack_breaks_what_is_safe(run):
    images = load("digits", "test")
    summary = verify_run(run, BALL, SETTINGS, limit=40, images=images)
    found = lines_of(run)
    assert [r["index"] for r in found] == list(range(40))
    counts = summary["counts"]
    assert sum(counts.values()) == 40
    assert counts["safe"] > 10
    assert counts["unsafe"] > 0
    verified = summary["verified"]
    assert verified["low"]["correct"] == counts["safe"]
    assert verified["high"]["correct"] == counts["safe"] + counts["undecided"]
    assert verified["ci95"][0] < verified["low"]["accuracy"] <= verified["high"]["accuracy"]

    state, _ = run.load_checkpoint("last")
    net = trained(from_plain(run.recipe), images, state).eval()
    safe = torch.tensor([r["index"] for r in found if r["verdict"] == "safe"])
    loader = [(images.pixels(safe), images.y[safe])]
    attacked = robust_accuracy(net, loader, ["pgd-20-2", "cw-20-2", "apgd-t"], ball=BALL)
    assert attacked.robust.all()
    for record in found:
        if record["verdict"] == "unsafe":
            point = records.decoded(record["point"], tuple(images.x.shape[1:]))
            x = images.pixels(slice(record["index"], record["index"] + 1))
            assert (point.double() - x.double()).abs().max() <= BALL.eps
            assert 0 <= point.min() <= point.max() <= 1
            assert net(point).argmax() != record["label"]
            assert net.double()(point.double()).argmax() != record["label"]
            net.float()


@pytest.mark.usefixtures("few_steps")
def test_resumed_equals_whole(run, tmp_path, monkeypatch):
    images = load("digits", "test")
    path = run.path / "verify" / "linf-0.05.jsonl"
    path.unlink(missing_ok=True)
    whole = verify_run(run, BALL, SETTINGS, limit=7, images=images)
    expected = [without_seconds(r) for r in lines_of(run)]
    path.unlink()

    original, done = Verifier.verdict, []

    def interrupted(self, *given):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return original(self, *given)

    monkeypatch.setattr(Verifier, "verdict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify_run(run, BALL, SETTINGS, limit=7, images=images)
    monkeypatch.undo()
    assert len(lines_of(run)) == 3
    with path.open("a") as file:
        file.write('{"question": "torn')
    resumed = verify_run(run, BALL, SETTINGS, limit=7, images=images)
    text = path.read_text().splitlines()
    assert len(text) == 8
    kept = [json.loads(line) for line in text if not line.endswith("torn")]
    assert [without_seconds(r) for r in kept] == expected
    assert resumed["counts"] == whole["counts"]


@pytest.mark.usefixtures("few_steps")
def test_other_networks_and_balls_are_not_mixed(run):
    images = load("digits", "test")
    path = run.path / "verify" / "linf-0.05.jsonl"
    path.unlink(missing_ok=True)
    verify_run(run, BALL, SETTINGS, limit=3, images=images)
    verify_run(run, BALL, SETTINGS, limit=4, images=images)
    assert len(lines_of(run)) == 4
    verify_run(run, BALL, SETTINGS, limit=3, checkpoint="best", images=images)
    verify_run(run, Linf(0.0), SETTINGS, limit=3, images=images)
    assert {r["index"] for r in lines_of(run, "linf-0.jsonl")} == {0, 1, 2}
    questions = {r["question"] for r in lines_of(run)}
    assert len(questions) in (1, 2), "best may be last"


def test_the_command(run, capsys):
    out = str(run.path)
    assert main(["verify", out, "--eps", "8/255", "--limit", "6", "--time-limit", "5"]) == 0
    printed = capsys.readouterr().out
    assert "verified at linf 8/255, 6 test images, checkpoint last" in printed
    assert "verified accuracy:" in printed
    summary = json.loads((run.path / "verify" / "linf-8over255.json").read_text())
    assert summary["images"] == {"split": "test", "start": 0, "count": 6}
    assert main(["verify", out, "--time-limit", "-1"]) == 2
    assert main(["verify", str(run.path / "nothing")]) == 2


def test_the_command_refuses_other_networks_and_norms(tmp_path, capsys):
    run = train.run(tiny("natural", "method.ball.norm=l2", passes=1), tmp_path / "l2")
    assert main(["verify", str(run.path)]) == 2
    assert "exact verification is in Linf" in capsys.readouterr().err
    run = train.run(tiny("natural", "model.name=tests.test_verify:bent", passes=1), tmp_path / "u")
    assert main(["verify", str(run.path), "--limit", "1"]) == 2
    assert "layer 1 (Sigmoid) is none of these" in capsys.readouterr().err
