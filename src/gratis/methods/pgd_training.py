"""Training on adversarial examples found by probes: PGD-K, and FGSM as its one-step case."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from gratis.attacks.pgd import pgd
from gratis.balls import Ball
from gratis.budget import PASS, PROBE
from gratis.losses import Loss, cross_entropy_while_correct, hard, towards_another
from gratis.methods.carried import Carried
from gratis.nn.auxbn import Branch
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
    noise: the radius of a random start, in units of eps.
    project: keep each step inside the ball; without, only inside the pixel range (N-FGSM).
    clip_start: cut a random start to the pixel box before the first gradient. The MNIST
        code of Wong 2020 does not do so for FGSM; the default here does. On MNIST it matters:
        with most pixels at 0 a clipped start of (0, eps) and a step of 1.25 eps always end in
        the ball's corner, and training at eps 0.3 gets half as robust.
    only_correct: stop climbing where an image is already misclassified (the same code's PGD).
    clean: the share of the loss that a pass over the images as they are has; 0 for none. 1/2 is
        the objective of AdvProp and, but for a factor 2 in the rate, of DAT.
    norm: the norms that adversarial images go through, when attacked and when learned from.
    targeted: climb towards a label drawn at random for each image, its own not excluded.
    shuffle: permute the adversarial images among processes before they are learned from, so that
        they do not meet the batch statistics that their perturbations were made with.
    Sources: Madry 2018, section 2.1; Wong 2020, algorithm 1 (PGD) and 3 (FGSM).
    """

    ball: Ball
    steps: int
    step_size: float | None = None
    start: Start = "random"
    noise: float = 1.0
    project: bool = True
    clip_start: bool = True
    only_correct: bool = False
    clean: float = 0.0
    norm: Branch = "main"
    targeted: bool = False
    shuffle: bool = False
    _carried: Carried = field(default_factory=Carried, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1; without steps: Natural()")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")
        if self.start not in get_args(Start):
            raise ValueError(f"start={self.start!r} is none of {', '.join(get_args(Start))}")
        if not self.noise > 0:
            raise ValueError(f"noise={self.noise} must be positive; no noise: start='zero'")
        if not 0 <= self.clean < 1:
            raise ValueError(f"clean={self.clean} is no share of the loss; give 0 or more, below 1")
        if self.norm not in get_args(Branch):
            raise ValueError(f"norm={self.norm!r} is none of {', '.join(get_args(Branch))}")
        if self.targeted and self.only_correct:
            raise ValueError("targeted steps have no use for only_correct; leave one out")

    @property
    def resolved_step_size(self) -> float:
        if self.step_size is not None:
            return self.step_size
        return max(self.ball.eps / 4, self.ball.eps / self.steps)

    @property
    def own_loop(self) -> bool:
        return not self.clean and self.norm == "main"

    @property
    def auxiliary(self) -> bool:
        return self.norm == "aux"

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        x, y = batch.x, batch.y
        loss = self._climbed(batch)
        delta = pgd(
            lambda point: probe(point, y, loss, self.norm),
            x,
            self._reach,
            steps=self.steps,
            step_size=self.resolved_step_size,
            start=self._start(batch),
        )
        if self.start == "previous":
            self._carried.keep(delta)
        if self.clean:
            yield Pass(x, y, weight=self.clean, update=False)
        point = self.ball.place(x, delta)
        if self.shuffle:
            point, y = batch.shuffled(point, y)
        yield Pass(point, y, weight=1 - self.clean, norm=self.norm)

    def _climbed(self, batch: Batch) -> Loss | None:
        if self.targeted:
            shares = batch.draw(hard(batch.y).float(), _uniform)
            return lambda logits, y: towards_another(logits, y, shares)
        return cross_entropy_while_correct if self.only_correct else None

    @property
    def _reach(self) -> Ball:
        """What steps are projected onto; without `project` a ball that they cannot leave."""
        if self.project:
            return self.ball
        return self.ball.of(self.noise * self.ball.eps + self.steps * self.resolved_step_size)

    def _start(self, batch: Batch) -> Tensor | None:
        if self.start == "zero":
            return None
        if self.start == "previous":
            return self._carried.onto(batch.x, self.ball)
        within = self.ball.of(self.noise * self.ball.eps)
        delta: Tensor = batch.draw(batch.x, within.sample_unclipped)
        return within.into_box(batch.x, delta) if self.clip_start else delta

    def update_thirds(self, images: int) -> tuple[int, ...]:
        return ((PROBE * self.steps + PASS * (2 if self.clean else 1)) * images,)

    def state(self) -> dict[str, Tensor]:
        return self._carried.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._carried.load_state(state)

    def gentler(self) -> tuple[Method, str] | None:
        """For one step: a start in the whole ball and a step of 1.25 eps, then shorter steps.

        Wong 2020 (section 4.1) names both causes: a start that covers too little of the ball
        and a step that forces the perturbation to its boundary.
        """
        if self.steps > 1 or self.clean:
            return None
        step, best_step = self.resolved_step_size, FAST_STEP * self.ball.eps
        if not self.project:
            return replace(self, step_size=0.75 * step), _shorter(step)
        if self.start != "random":
            gentler = replace(self, start="random", clip_start=False, step_size=best_step)
            change = f"start {self.start} -> random, step_size {step:.4g} -> {best_step:.4g}"
            return gentler, change
        if step > best_step * 1.001:
            return replace(self, step_size=best_step), f"step_size {step:.4g} -> {best_step:.4g}"
        if self.clip_start:
            return replace(self, clip_start=False), "clip_start true -> false"
        return replace(self, step_size=0.75 * step), _shorter(step)


def _shorter(step: float) -> str:
    return f"step_size {step:.4g} -> {0.75 * step:.4g}"


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device)


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


def n_fgsm(ball: Ball, noise: float = 2.0, step_size: float | None = None) -> PGDTraining:
    """N-FGSM: stronger noise, one step, and no projection (de Jorge 2022, section 3).

    noise: k, the radius of the start in units of eps.  step_size: eps unless given.
    Images learned from lie up to (k + 1) eps away, inside the pixel range; what is promised,
    and evaluated, is eps.
    """
    step = ball.eps if step_size is None else step_size
    return PGDTraining(ball, steps=1, step_size=step, noise=noise, project=False)


def AdvProp(  # noqa: N802
    ball: Ball, steps: int = 5, step_size: float | None = None, targeted: bool = True
) -> PGDTraining:
    """AdvProp: clean images through main norms, their adversarial twins through auxiliary ones.

    Half the loss each; `steps` targeted probes through the auxiliary norms; tested with the main
    norms alone, to be more accurate rather than robust. Needs gratis.add_aux(model).
    step_size: eps unless given, as in the code that Mei 2022's started from.
    Source: Xie 2020, algorithm 1; Mei 2022, section 3.1.
    Differs from the code: every batch starts at random, where that code starts some of them
    from the images as they are.
    """
    step = ball.eps if step_size is None else step_size
    return PGDTraining(ball, steps=steps, step_size=step, clean=0.5, norm="aux", targeted=targeted)
