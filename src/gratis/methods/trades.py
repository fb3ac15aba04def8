"""TRADES: accuracy on clean images traded against agreement with their worst neighbours."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gratis.attacks.pgd import pgd
from gratis.balls import Ball
from gratis.budget import FORWARD, PASS, PROBE
from gratis.losses import cross_entropy
from gratis.passes import Batch, Method, Pass, Probe
from gratis.tasks import NO_LABEL

NOISE = 0.001
"""Standard deviation of the start, as a share of the pixel range: at the image itself the
divergence has no slope."""


@dataclass
class Trades(Method):
    """Cross entropy at x plus `beta` times KL(p(x) || p(x')), x' where `steps` probes climb it.

    ball: the threat model.  steps: K.
    step_size: pixel units; None takes eps / 4 (0.007 at 0.031 in the paper).
    beta: 6 for CIFAR-10, 1 for MNIST in the paper.
    Images without a label (tasks.NO_LABEL) take part in the divergence, which needs none: the
    robust consistency of Carmon 2019 and the UAT-OT of Uesato 2019. The cross entropy is then
    the mean over the labelled images, the divergence that over all; of several processes each
    takes the mean over its own labelled images, which are equally many to within one.
    Costs 7/3 + 2K/3 passes: the clean answers once, K probes, a pass at x and one at x'.
    Source: Zhang 2019, equation 5 and algorithm 1; released trades.py.
    Differs from the code: the clean answers are computed once, not at every step; the attack
    uses the norms as the trainer's probe_norm says, where the code uses running statistics.
    """

    ball: Ball
    steps: int = 10
    step_size: float | None = None
    beta: float = 6.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")
        if not self.beta >= 0:
            raise ValueError(f"beta={self.beta} must be 0 or more")

    @property
    def resolved_step_size(self) -> float:
        return self.ball.eps / 4 if self.step_size is None else self.step_size

    @property
    def own_loop(self) -> bool:
        return False

    @property
    def unlabelled(self) -> bool:
        return True

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        x, y = batch.x, batch.y
        # cross entropy against the clean answers differs from the divergence by a constant
        answers = probe.logits(x).softmax(1)
        delta = pgd(
            lambda point: probe(point, answers, cross_entropy),
            x,
            self.ball,
            steps=self.steps,
            step_size=self.resolved_step_size,
            start=batch.draw(x, self._noise),
        )

        def loss(model: nn.Module, point: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            clean, there = model(x).float(), model(point).float()
            divergence = F.kl_div(
                there.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True
            )
            return _on_labelled(clean, y) + self.beta * divergence, there

        yield Pass(self.ball.place(x, delta), y, loss=loss, extra=PASS * len(x))

    def _noise(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        std = NOISE * (self.ball.high - self.ball.low)
        return torch.empty_like(like).normal_(std=std, generator=generator)

    def update_thirds(self, images: int) -> tuple[int, ...]:
        return ((FORWARD + PROBE * self.steps + 2 * PASS) * images,)


def _on_labelled(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy over the images that have a label; 0 where none has."""
    if y.dim() == 2:
        return F.cross_entropy(logits, y)
    total = F.cross_entropy(logits, y, ignore_index=NO_LABEL, reduction="sum")
    return total / (y != NO_LABEL).sum().clamp(min=1)
