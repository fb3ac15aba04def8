"""Networks that mask their gradients and one that does not, and what the checks say of them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gratis.attacks import autoattack
from gratis.attacks.apgd import APGD
from gratis.attacks.square import Square
from gratis.balls import Ball, Linf
from gratis.evaluate import Checks, Finding, check_masking, robust_accuracy
from gratis.evaluate.checks.outcome import Outcome
from gratis.evaluate.checks.rules import RULES, judged
from gratis.evaluate.checks.subject import Subject
from gratis.methods import PGDTraining
from gratis.passes import Method
from gratis.tasks import Classification

BALL = Linf(0.15)
IMAGES = 100


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.tensor(data.target)[order]


X, Y = digits()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Images that no network here was trained on."""
    for first in range(1500, 1500 + IMAGES, 64):
        last = min(first + 64, 1500 + IMAGES)
        yield X[first:last], Y[first:last]


def trained(method: Method, epochs: int, width: int = 64, rate: float = 0.01) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * 15 + 1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        chosen = torch.randperm(1500, generator=generator).split(100)
        for x, y in method.batches([(X[c], Y[c]) for c in chosen], model):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    return model.eval()


@functools.cache
def defended() -> nn.Module:
    """A network that PGD trained: once, however many files of tests look at it."""
    return trained(PGDTraining(BALL, 7), epochs=8)


@pytest.fixture(scope="module")
def healthy() -> nn.Module:
    return defended()


def checked(
    model: nn.Module, attack: str = "pgd-50-4", ball: Ball = BALL, **options: Any
) -> Checks:
    """What the checks find behind an evaluation under `attack`."""
    found = robust_accuracy(model, batches(), [attack], ball=ball, examples=4)
    return check_masking(model, batches, found, ball=ball, **options)


def subject(model: nn.Module, *attacks: str, ball: Ball = BALL, **options: Any) -> Subject:
    """What single checks are given, after an evaluation under `attacks`."""
    found = robust_accuracy(model, batches(), attacks, ball=ball)
    given = {"alone": True, "surrogate": None, "history": None, "classes": 10} | options
    return Subject(model, batches, found, ball, Classification(), 0, **given)


def verdict(id: str, outcome: Outcome) -> str:
    assert outcome.statistic is not None
    return judged(RULES[id], outcome.statistic, outcome.images or IMAGES)


def finding(checks: Checks, id: str) -> Finding:
    return next(f for f in checks.findings if f.id == id)


def failed(checks: Checks) -> set[str]:
    return {f.id for f in checks.findings if f.verdict == "fail"}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """An AutoAttack of two attacks and a Square of few queries."""
    from gratis.attacks import _WHOLE

    square = Square("square", queries=100)
    monkeypatch.setitem(_WHOLE, "square", square)
    monkeypatch.setattr(autoattack, "STANDARD", (APGD("apgd-ce"), square))


# --- ways to mask


class Quantise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 4).round() / 4


class Through(nn.Module):
    """A model and something done to its input or its logits."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(self.model(self.before(x)))
        return out


class NoGradient(torch.autograd.Function):
    """The identity, with a backward of zeros: a gradient-zeroing hook."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0])


def masked(model: nn.Module) -> nn.Module:
    return Through(model, before=NoGradient.apply)
