"""Masking checks find what is planted, and networks overfitted to one step."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gratis.balls import Linf
from gratis.evaluate.checks import paired
from gratis.evaluate.checks.rules import RULES
from gratis.methods import fgsm, fgsm_rs
from gratis.passes import Method
from tests.masking import (
    Quantise,
    Through,
    checked,
    failed,
    finding,
    healthy,
    masked,
    subject,
    trained,
    verdict,
)

__all__ = ["healthy"]  # a fixture, asked for by name


# --- planted failures


def optimised(model: nn.Module) -> nn.Module:
    """Sharpens its answer by a step on the input before it gives it."""

    def step(x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            logits = model(inner)
            (grad,) = torch.autograd.grad(logits.logsumexp(1).sum(), inner)
        return x + 0.01 * grad.sign()

    return Through(model, before=step)


class Moving(nn.Module):
    """Batch norm that goes on learning its statistics in evaluation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.norm = model, nn.BatchNorm1d(10, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x)
        self.norm.train()
        self.norm(torch.cat([z, -z]).detach())
        return z


PLANTED: dict[str, tuple[Callable[[nn.Module], nn.Module], set[str]]] = {
    "softmaxed output": (lambda m: nn.Sequential(m, nn.Softmax(1)), {"M16"}),
    "quantised input": (lambda m: nn.Sequential(Quantise(), m), {"M9", "M14"}),
    "randomised logits": (
        lambda m: Through(m, after=lambda z: z + 0.1 * torch.randn_like(z)), {"M15"},
    ),
    "dropout in eval": (
        lambda m: Through(m, before=lambda x: F.dropout(x, 0.1, training=True)), {"M15"},
    ),
    "logits x 1000": (lambda m: Through(m, after=lambda z: 1000 * z), {"M9"}),
    "zeroed gradient": (masked, {"M9", "M14"}),
    "constant": (lambda m: Through(m, after=lambda z: 0 * z + 9 * torch.eye(10)[3]), {"M9"}),
    "test-time optimiser": (optimised, {"M17"}),
    "moving statistics": (Moving, {"M17", "M20"}),
}  # fmt: skip

UNRELIABLE = {"M15", "M16", "M17", "M20"}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found(healthy: nn.Module, what: str) -> None:
    plant, expected = PLANTED[what]
    found = checked(plant(healthy).eval())
    assert expected <= failed(found)
    if expected & UNRELIABLE:
        assert found.verdict == "evaluation unreliable"
    else:
        assert found.verdict.startswith("signs: M")
        assert expected <= set(found.verdict.removeprefix("signs: ").split(", "))
    for id in failed(found):
        assert RULES[id].advice in finding(found, id).about


def test_probabilities_are_refused_before_anything_else(healthy: nn.Module) -> None:
    found = checked(nn.Sequential(healthy, nn.Softmax(1)), "pgd-10", full=True)
    others = [f for f in found.findings if f.id not in ("M15", "M16", "M17")]
    assert {f.verdict for f in others} == {"not run"}
    assert {f.shown for f in others} == {"not applicable: the outputs are probabilities, see M16"}
    assert "Give the logits" in finding(found, "M16").about


def test_a_named_module_is_attacked_past(healthy: nn.Module) -> None:
    """With an identity backward the quantised network is about as breakable as the one inside."""
    found = checked(nn.Sequential(Quantise(), healthy))
    shown = finding(found, "M14").shown
    assert "in 0 (Quantise); with an identity backward for it pgd-10 leaves" in shown
    left, before = shown.partition("pgd-10 leaves ")[2].split(" images standing, the evaluation ")
    assert int(left.split()[0]) < int(before) - 10


def test_a_step_in_the_forward_itself_is_named_with_advice(healthy: nn.Module) -> None:
    found = checked(masked(healthy))
    assert "in Through; make the step a module of its own" in finding(found, "M14").shown


def test_a_straight_through_gradient_is_not_the_slope(healthy: nn.Module) -> None:
    model = Through(healthy, before=lambda x: x + ((x * 4).round() / 4 - x).detach())
    assert {"M14"} <= failed(checked(model))


def test_maxima_and_kinks_are_differentiable_enough() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.MaxPool2d(2), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    assert finding(checked(model), "M14").verdict == "pass"


# --- overfitting to one step


STRONG = Linf(0.3)


@pytest.mark.parametrize(
    "method", [fgsm(STRONG), fgsm_rs(STRONG, step_size=0.6)], ids=["zero start", "step of 2 eps"]
)
def test_networks_of_one_step_fail_the_overfitting_check(method: Method) -> None:
    model = trained(method, epochs=40, width=128, rate=0.02)
    found = checked(model, ball=STRONG)
    assert "M2" in failed(found)
    assert found.verdict.startswith("signs: ")
    assert "pgd-10" in finding(found, "M2").shown


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([0.5, 0.6, 0.1], "fail"),
        ([0.5, 0.6, 0.1, 0.55], "pass"),  # undone, by the guard for example
        ([0.5, 0.45, 0.4, 0.35, 0.3], "pass"),
        ([], "pass"),
    ],
)
def test_falls_in_a_training_log(healthy: nn.Module, history: list[float], expected: str) -> None:
    outcome = paired._overfitting(subject(healthy, "fgsm", "pgd-10", history=tuple(history)))
    assert outcome.certain == (expected == "fail")
    assert outcome.certain or verdict("M2", outcome) == "pass"
    assert "falls by" in outcome.shown


def test_a_fall_in_the_training_log_fails_the_check(healthy: nn.Module) -> None:
    found = checked(healthy, history=[0.6, 0.1])
    assert finding(found, "M2").verdict == "fail"


def test_activations_in_place_do_not_stop_the_check(healthy: nn.Module) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(512, 10)
    )
    found = finding(checked(nn.Sequential(Quantise(), inner), "pgd-10"), "M14")
    assert found.verdict == "fail"
    assert "in 0 (Quantise); with" in found.shown


def test_answers_that_depend_on_the_batch_are_found(healthy: nn.Module) -> None:
    def normalised(x: Tensor) -> Tensor:
        return (x - x.mean(0)) / (x.std(0, unbiased=False) + 0.1)

    assert "M15" in failed(checked(Through(healthy, before=normalised), "pgd-10"))

    def rounded(x: Tensor) -> Tensor:  # as if another batch took another way to the sum
        return x + 1e-3 * len(x) / 64

    assert "M15" not in failed(checked(Through(healthy, after=rounded), "pgd-10"))
