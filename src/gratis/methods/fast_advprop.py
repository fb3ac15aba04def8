"""Fast AdvProp: adversarial examples that improve accuracy, at the price of vanilla training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gratis.balls import Ball
from gratis.budget import PASS, PROBE
from gratis.methods.mixing import Mix, mixed
from gratis.passes import Batch, Method, Pass, Probe

Start = Literal["random", "clean"]


@dataclass
class FastAdvProp(Method):
    """The first images of a batch are learned clean, the others noisy and then adversarial.

    The noisy pass, through auxiliary norms, serves the weights and the perturbation at once: one
    backward, untargeted, batch statistics. Tested with the main norms alone.
    ball: of the attack, 1/255 on ImageNet.  step_size: None takes eps.
    adversarial: p, the share of the batch that becomes adversarial.
    start: of the noisy pass: "random" in the ball, or "clean" (appendix A.1's FGSM).
    shuffle: permute the adversarial images among the norm groups before the adversarial pass, so
        that it does not meet the statistics its perturbations were made with (section 4.3).
        Groups are processes, or recipe's model.aux_groups on one; with one group this changes
        nothing but the order.
    rebalance: noisy and adversarial passes count one half each (beta), else one each.
    equalise: norms learn as fast as the layers that all images go through.
    reuse: the noisy pass's own backward makes the perturbation; without, a probe of the noisy
        images does, which can climb another loss than the one learned (the recipe's task.attack).
    mix, mix_alpha: MixUp or CutMix of the clean part alone; the paper does not state alpha.
    Costs 1 + p passes, 1 + 5/3 p without reuse; divide the epochs by it for the price of vanilla
    training.
    Source: Mei 2022, section 3.2 and algorithm 1; released fast_advprop.py. Passes are weighed
    by image counts, as in the code; the paper's algorithm writes means.
    Differs from the code: the start is always random, where the code starts 58 % of the batches
    from the clean images; noisy images are cut to the pixel range.
    """

    ball: Ball
    adversarial: float = 0.2
    step_size: float | None = None
    start: Start = "random"
    shuffle: bool = True
    rebalance: bool = True
    equalise: bool = True
    reuse: bool = True
    mix: Mix = "none"
    mix_alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.adversarial < 1:
            raise ValueError(
                f"adversarial={self.adversarial} must be a share between 0 and 1; 0 is Natural()"
            )
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")
        if self.start not in get_args(Start):
            raise ValueError(f"start={self.start!r} is none of {', '.join(get_args(Start))}")
        if self.mix not in get_args(Mix):
            raise ValueError(f"mix={self.mix!r} is none of {', '.join(get_args(Mix))}")
        if not self.mix_alpha > 0:
            raise ValueError(f"mix_alpha={self.mix_alpha} must be positive")

    @property
    def resolved_step_size(self) -> float:
        return self.ball.eps if self.step_size is None else self.step_size

    @property
    def own_loop(self) -> bool:
        return False

    @property
    def auxiliary(self) -> bool:
        return True

    @property
    def equal_speed(self) -> bool:
        return self.equalise

    def parts(self, images: int) -> tuple[int, ...]:
        clean = max(1, round((1 - self.adversarial) * images))
        return clean, images - clean

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        clean, attacked = self.parts(len(batch.x))
        beta = 0.5 if self.rebalance else 1.0
        total = clean + 2 * beta * attacked
        x, y = batch.x[:clean], batch.y[:clean]
        loss = None
        if self.mix != "none":
            x, loss = mixed(batch, x, y, self.mix, self.mix_alpha)
        yield Pass(x, y, weight=clean / total, loss=loss, update=attacked == 0)
        if attacked:
            x, y = batch.x[clean:], batch.y[clean:]
            yield from self._adversarial(batch, probe, x, y, beta * attacked / total)

    def _adversarial(
        self, batch: Batch, probe: Probe, x: Tensor, y: Tensor, weight: float
    ) -> Iterator[Pass]:
        if self.start == "random":
            delta = self.ball.into_box(x, batch.draw(x, self.ball.sample_unclipped))
        else:
            delta = torch.zeros_like(x)
        noisy = self.ball.place(x, delta)
        grad = None if self.reuse else probe(noisy, y, norm="aux")
        p = Pass(noisy.requires_grad_(self.reuse), y, weight, norm="aux", update=False)
        yield p
        grad = p.input_grad() if grad is None else grad
        delta = self.ball.ascend(x, delta, grad, self.resolved_step_size)
        point = self.ball.place(x, delta)
        if self.shuffle:
            point, y = batch.shuffled(point, y)
        yield Pass(point, y, weight, norm="aux")

    def update_thirds(self, images: int) -> tuple[int, ...]:
        clean, attacked = self.parts(images)
        return (PASS * (clean + 2 * attacked) + (0 if self.reuse else PROBE * attacked),)

    @property
    def cost(self) -> float:
        """Passes per image and data pass."""
        return 1 + self.adversarial * (1 if self.reuse else 1 + PROBE / PASS)
