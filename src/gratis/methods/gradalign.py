"""GradAlign: FGSM with a regulariser that keeps input gradients aligned inside the ball."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gratis.balls import Ball
from gratis.budget import PASS, PROBE
from gratis.losses import cross_entropy
from gratis.nn.batchnorm import untracked_statistics
from gratis.passes import Batch, Method, Pass, Probe

DOUBLE_BACKWARD = 4
"""Thirds of a pass: the backward through an input gradient's forward and backward."""

Start = Literal["zero", "random"]


@dataclass
class GradAlign(Method):
    """One FGSM step, and a penalty of `strength` times 1 - cos(gradient at x, gradient nearby).

    The nearby point is uniform in the ball; its gradient is differentiated with respect to the
    weights, so every layer needs a second derivative.
    ball: the threat model.
    step_size: None takes 1.25 eps, which from the zero start ends at eps after projection.
    strength: lambda; None takes the paper's 0.02 * 10^(eps / (8/255)) for CIFAR-10 (0.2 at
        8/255), eps as a share of the pixel range, but no more than its largest, 2 (16/255): the
        fit means nothing beyond.
    start: "zero", which the authors recommend, or "random".
    Costs 3 2/3 passes: a probe, a pass, a probe with its double backward (4/3). By the clock it
    is dearer.
    Source: Andriushchenko 2020, equation 5 and section 4.1; released train.py.
    Differs from the code: the nearby point's forward leaves running statistics alone.
    """

    ball: Ball
    step_size: float | None = None
    strength: float | None = None
    start: Start = "zero"

    def __post_init__(self) -> None:
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")
        if self.strength is not None and not self.strength >= 0:
            raise ValueError(f"strength={self.strength} must be 0 or more")
        if self.start not in get_args(Start):
            raise ValueError(f"start={self.start!r} is none of {', '.join(get_args(Start))}")

    @property
    def resolved_step_size(self) -> float:
        return 1.25 * self.ball.eps if self.step_size is None else self.step_size

    @property
    def resolved_strength(self) -> float:
        if self.strength is not None:
            return self.strength
        share = self.ball.eps / (self.ball.high - self.ball.low)
        return 0.02 * 10 ** min(share * 255 / 8, 2)

    @property
    def own_loop(self) -> bool:
        return False

    @property
    def loss_scaling(self) -> bool:
        return False

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        x, y = batch.x, batch.y
        if self.start == "random":
            start = self.ball.into_box(x, batch.draw(x, self.ball.sample_unclipped))
        else:
            start = torch.zeros_like(x)
        gradient = probe(self.ball.place(x, start), y)
        delta = self.ball.ascend(x, start, gradient, self.resolved_step_size)
        nearby = x + batch.draw(x, self.ball.sample_unclipped)

        def loss(model: nn.Module, point: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = model(point)
            beside = nearby.detach().requires_grad_()
            with untracked_statistics(model):
                total = cross_entropy(model(beside), y).sum()
            (other,) = torch.autograd.grad(total, beside, create_graph=True)
            learned = cross_entropy(logits, y).mean()
            return learned + self.resolved_strength * misalignment(gradient, other), logits

        beside_thirds = (PROBE + DOUBLE_BACKWARD) * len(x)
        yield Pass(self.ball.place(x, delta), y, loss=loss, extra=beside_thirds)

    def update_thirds(self, images: int) -> tuple[int, ...]:
        return ((PROBE + PASS + PROBE + DOUBLE_BACKWARD) * images,)

    def gentler(self) -> tuple[Method, str] | None:
        """Twice the strength."""
        now = self.resolved_strength
        return replace(self, strength=2 * now), f"strength {now:.4g} -> {2 * now:.4g}"


def misalignment(one: Tensor, other: Tensor) -> Tensor:
    """1 - the mean cosine of the images' gradients [B, ...]; images where one is 0 do not count."""
    one, other = one.flatten(1), other.flatten(1)
    largest, others = one.abs().amax(1, keepdim=True), other.detach().abs().amax(1, keepdim=True)
    told = (largest > 0) & (others > 0)
    # scaled first: squares of gradients this small would underflow; where nothing is told 1s stand
    # in, so that no value has to be asked for
    one = torch.where(told, one / largest.where(told, 1), 1)
    other = torch.where(told, other / others.where(told, 1), 1)
    apart = told.flatten() * (1 - F.cosine_similarity(one, other))
    return apart.sum() / told.sum().clamp(min=1)
