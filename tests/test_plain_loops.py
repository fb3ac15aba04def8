"""Paths that are quick against the plainest loops: memory formats, precisions, APGD, counts."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gratis import Learner
from gratis.attacks import Attacked
from gratis.attacks.apgd import APGD, _checks
from gratis.balls import Linf
from gratis.budget import Meter
from gratis.evaluate import robust_accuracy
from gratis.passes import Batch
from gratis.tasks import Classification
from tests.problems import a_problem
from tests.reference import evaluation, loops
from tests.small_net import sgd, some_batches, weights
from tests.test_hot_paths import Counted
from tests.test_methods import CASES, EPS, net_for

PLAIN = [name for name in CASES if not name.startswith("yopo")]
"""YOPO's loop takes the network apart, and no autocast can stand around its forward."""


class Autocast(nn.Module):
    """A network as plain PyTorch asks it in bf16: autocast around each forward, nothing kept."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            answers: Tensor = self.inner(x)
        return answers.float()


def learned(name: str, **how: Any) -> dict[str, Tensor]:
    method, _, _ = CASES[name]
    method, model = copy.deepcopy(method), net_for(method)
    learner = Learner(model, sgd(model), **how)
    torch.manual_seed(5)
    for x, y in some_batches():
        learner.fit(method, Batch(x, y))
    return weights(model)


def in_a_plain_loop(name: str, wrapped: Callable[[nn.Module], nn.Module]) -> dict[str, Tensor]:
    method, loop, settings = CASES[name]
    model = net_for(method)
    if loop is not loops.natural:
        settings = {"eps": EPS, **settings}
    torch.manual_seed(5)
    loop(wrapped(model), sgd(model), some_batches(), **settings)
    return weights(model)


# --- training


@pytest.mark.parametrize("name", CASES)
def test_channels_last_learns_what_the_flattest_loop_learns(name: str) -> None:
    expected = in_a_plain_loop(name, lambda model: model)
    for key, value in learned(name, channels_last=True).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", PLAIN)
def test_bf16_learns_what_the_flattest_loop_learns_under_autocast(name: str) -> None:
    """Within 2 % of how far a weight moved: gradients of sums and of means round otherwise. TRADES
    within 5 %: its attack begins where the divergence is nearly 0, and bf16 rounds its slope.
    """
    near = 0.05 if name.startswith("trades") else 0.02
    before = weights(net_for(CASES[name][0]))
    expected = in_a_plain_loop(name, Autocast)
    for key, value in learned(name, precision="bf16").items():
        moved = (expected[key] - before[key]).abs().max()
        assert (value - expected[key]).abs().max() <= near * moved, key


# --- APGD


@pytest.mark.parametrize("steps", [10, 23, 40])
def test_apgd_ends_where_the_plain_algorithm_ends(steps: int) -> None:
    """From given starts, so that nothing is random: who is broken, and where the others are."""
    model, x, y, ball = a_problem(24)
    model.eval()
    attack = APGD("apgd-ce", steps=steps)
    task, right = Classification(), model(x).argmax(1) == y
    x, y = x[right], y[right]
    start = ball.place(x, ball.sample(x, torch.Generator().manual_seed(2)))
    given = Attacked(
        *(model, x, y, ball, task.losses, task.correct, list(range(len(x))), Meter()), start=start
    )
    points, broken = attack(given)
    stops = {stop + 1 for stop in _checks(steps)}
    for i in range(len(x)):
        one = slice(i, i + 1)
        fooled, last = evaluation.apgd_linf(model, x[one], y[one], start[one], 0.03, steps, stops)
        assert fooled == broken[i]
        if not fooled:
            torch.testing.assert_close(points[one], last.detach())
    assert 0 < int(broken.sum()) < len(x)


# --- counts


@pytest.mark.parametrize(
    ("attack", "steps"), [("pgd-10", 10), ("cw-10", 10), ("apgd-ce", 20), ("fab-t", 10)]
)
@pytest.mark.usefixtures("few_steps")
def test_an_evaluation_takes_input_gradients_alone(attack: str, steps: int) -> None:
    model, x, y, ball = a_problem(12)
    with Counted() as counts:
        robust_accuracy(model, [(x, y)], [attack], ball=ball)
    assert counts.weight_gradients == 0
    assert counts.calls["aten::convolution"] >= steps
    assert counts.input_gradients == counts.calls["aten::convolution_backward"]


def test_an_evaluation_copies_few_bytes() -> None:
    """At most four times the images a step, and nothing that grows with the network."""
    model, x, y, _ = a_problem(12)
    with Counted() as short:
        robust_accuracy(model, [(x, y)], ["pgd-10"], ball=Linf(1e-9))
    with Counted() as long:
        robust_accuracy(model, [(x, y)], ["pgd-20"], ball=Linf(1e-9))
    images = x.numel() * x.element_size()
    assert long.bytes_copied - short.bytes_copied <= 10 * 4 * images
