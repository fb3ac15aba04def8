"""Training on adversarial examples found by probes: PGD-K, and FGSM as its one-step case."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from torch import Tensor

from gratis.attacks.pgd import pgd
from gratis.balls import Ball
from gratis.budget import PASS, PROBE
from gratis.losses import cross_entropy_while_correct
from gratis.methods.carried import Carried
from gratis.passes import Batch, Method, Pass, Probe

Start = Literal["random", "zero", "previous"]

FAST_STEP = 1.25
"""The step of FGSM with a random start, in units of eps (Wong 2020, section 4.1)."""


@dataclass
class PGDTraining(Method):
    """`steps` probes climb the loss, then one pass learns from the point reached.

    ball: the threat model.  steps: K.
    step_size: in the ball's norm and pixel units; None takes max(eps / 4, eps / K), which is
        2/255 at 8/255 for K >= 4 (Madry 2018) and eps / 2 for K = 2.
    start: "random" in the ball, "zero", or "previous": where the minibatch before ended.
    clip_start: cut a random start to the pixel box before the first gradient. The MNIST
        code of Wong 2020 does not do so for FGSM; the default here does. On MNIST it matters:
        with most pixels at 0 a clipped start of (0, eps) and a step of 1.25 eps always end in
        the ball's corner, and training at eps 0.3 gets half as robust.
    only_correct: stop climbing where an image is already misclassified (the same code's PGD).
    Sources: Madry 2018, section 2.1; Wong 2020, algorithm 1 (PGD) and 3 (FGSM).
    """

    ball: Ball
    steps: int
    step_size: float | None = None
    start: Start = "random"
    clip_start: bool = True
    only_correct: bool = False
    _carried: Carried = field(default_factory=Carried, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1; without steps: Natural()")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")
        if self.start not in get_args(Start):
            raise ValueError(f"start={self.start!r} is none of {', '.join(get_args(Start))}")

    @property
    def resolved_step_size(self) -> float:
        if self.step_size is not None:
            return self.step_size
        return max(self.ball.eps / 4, self.ball.eps / self.steps)

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        x, y = batch.x, batch.y
        loss = cross_entropy_while_correct if self.only_correct else None
        delta = pgd(
            lambda point: probe(point, y, loss),
            x,
            self.ball,
            steps=self.steps,
            step_size=self.resolved_step_size,
            start=self._start(x),
        )
        if self.start == "previous":
            self._carried.keep(delta)
        yield Pass(self.ball.place(x, delta), y)

    def _start(self, x: Tensor) -> Tensor | None:
        if self.start == "zero":
            return None
        if self.start == "previous":
            return self._carried.onto(x, self.ball)
        return self.ball.sample(x) if self.clip_start else self.ball.sample_unclipped(x)

    def update_thirds(self, images: int) -> tuple[int, ...]:
        return ((PROBE * self.steps + PASS) * images,)

    def state(self) -> dict[str, Tensor]:
        return self._carried.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._carried.load_state(state)

    def gentler(self) -> tuple[Method, str] | None:
        """For one step: a start in the whole ball and a step of 1.25 eps, then shorter steps.

        Wong 2020 (section 4.1) names both causes: a start that covers too little of the ball
        and a step that forces the perturbation to its boundary.
        """
        if self.steps > 1:
            return None
        step, best_step = self.resolved_step_size, FAST_STEP * self.ball.eps
        if self.start != "random":
            gentler = replace(self, start="random", clip_start=False, step_size=best_step)
            change = f"start {self.start} -> random, step_size {step:.4g} -> {best_step:.4g}"
            return gentler, change
        if step > best_step * 1.001:
            return replace(self, step_size=best_step), f"step_size {step:.4g} -> {best_step:.4g}"
        if self.clip_start:
            return replace(self, clip_start=False), "clip_start true -> false"
        shorter = 0.75 * step
        return replace(self, step_size=shorter), f"step_size {step:.4g} -> {shorter:.4g}"


def fgsm_rs(ball: Ball, step_size: float | None = None, clip_start: bool = True) -> PGDTraining:
    """Fast: FGSM from a random start (Wong 2020, algorithm 3); step_size 1.25 eps unless given."""
    step = FAST_STEP * ball.eps if step_size is None else step_size
    return PGDTraining(ball, steps=1, step_size=step, clip_start=clip_start)


def fgsm(ball: Ball, step_size: float | None = None, start: Start = "zero") -> PGDTraining:
    """FGSM training with a step of eps: Goodfellow 2015's from "zero", Wong 2020's "previous".

    From zero it overfits catastrophically (Wong 2020, table 1): a rival, not a defence.
    """
    return PGDTraining(
        ball, steps=1, step_size=ball.eps if step_size is None else step_size, start=start
    )
