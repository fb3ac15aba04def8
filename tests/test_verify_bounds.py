"""Bounds that no sampled point leaves, the network that is bounded, and what is refused."""

import pytest
import torch
from torch import nn

from gratis.balls import Linf
from gratis.nn import Normalize, add_aux, mnist_net, small_conv
from gratis.verify import Settings, Verifier, lowered
from gratis.verify.bounds import (
    Box,
    crown_bounds,
    interval_bounds,
    lines,
    lower_bound,
    margin_rows,
    unstable,
)
from gratis.verify.nodes import Problem, margin_bound, roots
from gratis.verify.slopes import improved, sharpened
from tests.verify_problems import IMAGE, conv_net, samples, tiny_net, verifier

# --- bounds


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


def test_a_layer_that_is_used_twice_counts_twice():
    torch.manual_seed(0)
    relu = nn.ReLU()
    inner = nn.Sequential(nn.Conv2d(1, 3, 3), relu, nn.Conv2d(3, 2, 3), relu)
    net = nn.Sequential(inner, nn.Flatten(), nn.Linear(2 * 4, 5))
    x = torch.rand(6, 1, 6, 6)
    network = lowered(net, (1, 6, 6))
    assert len(network.stages) == 3
    assert torch.allclose(network.logits(x), net.double()(x.double()), atol=1e-12)


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


class Capped(nn.ReLU):
    def forward(self, x):
        return super().forward(x).clamp(max=6)


def test_what_may_compute_something_else_is_refused():
    def with_hook(place):
        net = tiny_net(0)
        (net if place is None else net[place]).register_forward_hook(lambda m, g, out: 2 * out)
        return net

    capped = tiny_net(0)
    place = next(i for i, layer in enumerate(capped) if isinstance(layer, nn.ReLU))
    capped[place] = Capped()
    with pytest.raises(ValueError, match=rf"layer {place} \(Capped\)"):
        verifier(capped, 0.1)
    for place in (None, 1):
        with pytest.raises(ValueError, match="has hooks, which may compute anything"):
            verifier(with_hook(place), 0.1)


def test_one_image_within_the_pixel_range_is_needed():
    asked = verifier(tiny_net(0), 0.1)
    with pytest.raises(ValueError, match="normalisation into the model"):
        asked.verdict(torch.full((1, 1, 2, 2), -0.4), 0)
    with pytest.raises(ValueError, match="x holds 2 images; give one"):
        asked.verdict(torch.rand(2, 1, 2, 2), 0)


def test_another_pixel_range_is_another_question():
    asked = [
        Verifier(tiny_net(0), (1, 2, 2), ball, Settings()).question()
        for ball in (Linf(0.1), Linf(0.1, low=-1.0))
    ]
    assert asked[0] != asked[1]
    assert "pixels" not in asked[0], "records of the usual range count as ever"
