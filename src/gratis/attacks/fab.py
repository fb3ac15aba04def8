"""FAB: walks along the decision boundary, for a perturbation as small as can be."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gratis.attacks.first_layer import input_gradients
from gratis.attacks.rounds import in_rounds, other_classes
from gratis.attacks.search import Attacked, either, may_drop, shaped, waits
from gratis.balls import Ball, finite
from gratis.losses import hard

OVERSHOOT = 1.05
BACKWARD = 0.9
LARGEST_BIAS = 0.1


@dataclass(frozen=True)
class FAB:
    """Targeted FAB: for each of the `targets` best other classes, `steps` steps.

    Classes are breadth-first: each is tried on all images that still stand, packed into batches.

    Each step takes the boundary between label and target as flat, moves the point and the image
    onto it inside the pixel box, mixes the two, and goes back towards the image where the point
    is misclassified.
    Source: Croce & Hein 2020b ("Minimally distorted adversarial examples"), algorithm 1 and
    section 3; the targeted variant and its constants as in AutoAttack's released code.
    Differs from the code: an image is done once a misclassified point lies in the ball; no weight
    gradients; on a CPU the projections are found without sorting.
    """

    name: str
    steps: int = 100
    targets: int = 9

    packs: ClassVar[bool] = True

    def parameters(self, ball: Ball, classes: int) -> dict[str, float | int | str]:
        return {"steps": self.steps, "targets": min(self.targets, classes - 1), "start": "zero"}

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack."""
        others = other_classes(attacked)

        def go(some: Attacked, rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
            return _Walk(some, others[rows, rank]).go(self.steps)

        return in_rounds(attacked, range(min(self.targets, others.shape[1])), go)


class _Walk:
    """The walk of a batch of images towards one class each.

    done: whose point is misclassified and in the ball [n]; it stays there.
    """

    def __init__(self, attacked: Attacked, towards: Tensor) -> None:
        self.model, self.ball = attacked.model, attacked.ball
        self.correct, self.meter = attacked.correct, attacked.meter
        self.x, self.y, self.towards = attacked.x, attacked.y, towards
        self.rows = torch.arange(len(towards), device=towards.device)
        self.point = self.x.clone()
        self.points, self.fooled = attacked.unbroken()
        self.done = torch.zeros_like(self.fooled)

    def go(self, steps: int) -> tuple[Tensor, Tensor]:
        """(points, fooled) of all images after at most so many steps."""
        for step in range(1, steps + 1):
            self._step(*self._boundary())
            self._judge()
            if may_drop(step, self.x):
                self._drop()
                if not len(self.rows):
                    break
        last = self.ball.place(self.x, self.ball.project(self.x, self.point - self.x))
        self.points[self.rows] = either(self.done, self.point, last)
        self.fooled[self.rows] = self.done
        return self.points, self.fooled

    def _boundary(self) -> tuple[Tensor, Tensor]:
        """(target's logit minus the label's [n], its gradient) at the points."""
        point = self.point.detach().requires_grad_()
        labels, towards = hard(self.y).unsqueeze(1), self.towards.unsqueeze(1)
        with torch.enable_grad(), input_gradients(point):
            logits = self.model(point)
            gap = (logits.gather(1, towards) - logits.gather(1, labels)).squeeze(1)
            (slope,) = torch.autograd.grad(gap.sum(), point)
        self.meter.probes += len(point)
        return gap.detach(), slope

    def _judge(self) -> None:
        """See which points do it, and lead those back that are wrong but too far."""
        # most points are wrong and led back: a gradient that came with these answers would be lost
        with torch.no_grad():
            wrong = ~self.correct(self.model(self.point), self.y)
        self.meter.forwards += len(wrong)
        near = self.ball.size(self.point - self.x) <= self.ball.eps
        self.done = self.done | (wrong & near)
        share = shaped(torch.where(wrong & ~self.done, BACKWARD, 1.0), self.x)
        self.point = torch.lerp(self.x, self.point, share.to(self.x))

    def _drop(self) -> None:
        """Take out the images that are done."""
        if not self.done.any():
            return
        out = self.rows[self.done]
        self.points[out], self.fooled[out] = self.point[self.done], True
        left = (~self.done).nonzero().flatten()
        self.rows, self.x, self.y = self.rows[left], self.x[left], self.y[left]
        self.towards, self.point, self.done = self.towards[left], self.point[left], self.done[left]

    def _step(self, gap: Tensor, slope: Tensor) -> None:
        # the boundary's plane: slope . z = level
        level = (slope.flatten(1) * self.point.flatten(1)).sum(1) - gap
        # both at once: few images are left for most of the time, and each operation has its price
        moves = onto_plane(
            torch.cat([self.point, self.x]),
            torch.cat([slope, slope]),
            torch.cat([level, level]),
            self.ball,
        )
        from_point, from_image = moves.chunk(2)
        here, there = self.ball.size(moves).clamp_min(1e-8).chunk(2)
        bias = shaped((here / (here + there)).clamp(0, LARGEST_BIAS), slope)
        mixed = torch.lerp(
            self.point + OVERSHOOT * from_point, self.x + OVERSHOOT * from_image, bias
        )
        moves_on = shaped(finite(mixed) & ~self.done, mixed)
        self.point = torch.where(moves_on, self.ball.clip(mixed), self.point)


def onto_plane(z: Tensor, slope: Tensor, level: Tensor, ball: Ball) -> Tensor:
    """The smallest move [n, ...] of z onto {slope . z = level [n]} that stays in the pixel box.

    Smallest in the ball's norm; where the plane lies beyond the box, the move that comes nearest.
    Source: Croce & Hein 2020b, equation 5 and the sections on its solution by sorting.
    """
    flat, w = z.flatten(1), slope.flatten(1)
    excess = (w * flat).sum(1) - level
    # each pixel moves against w, as far as it must and the box allows
    away = -w.sign() * torch.where(excess >= 0, 1.0, -1.0).to(w)[:, None]
    room = (ball.clip(flat + 2 * (ball.high - ball.low) * away) - flat).abs()
    moved = _few_pixels if ball.norm == "l1" else _every_pixel
    return (away * moved(w.abs(), room, excess.abs(), ball)).view_as(z)


def _few_pixels(weight: Tensor, room: Tensor, excess: Tensor, ball: Ball) -> Tensor:
    """How far each pixel moves [n, pixels] in L1: those of largest weight first, each as far as
    the box allows.
    """
    heaviest, order = weight.sort(dim=1, descending=True, stable=True)
    gain = heaviest * room.gather(1, order)
    wanted = excess[:, None] - (gain.cumsum(1) - gain)  # what those before it have left to do
    share = torch.where(gain > 0, wanted / gain.clamp_min(1e-30), 0.0).clamp(0, 1)
    return torch.zeros_like(room).scatter(1, order, share * room.gather(1, order))


def _every_pixel(weight: Tensor, room: Tensor, excess: Tensor, ball: Ball) -> Tensor:
    """How far each pixel moves [n, pixels] in Linf and L2: min(time * speed, room).

    What all of them gain together grows with the time, ever more slowly as pixels arrive at the
    box.
    """
    flat = ball.norm == "linf"
    tiny = torch.finfo(weight.dtype).tiny
    arrival = room if flat else room / weight.clamp_min(tiny)
    gain, rate = weight * room, weight if flat else weight * weight
    when = _by_sorting if waits(weight) else _by_newton
    time = when(arrival, gain, rate, excess[:, None])
    return torch.minimum(time if flat else time * weight, room)


def _by_newton(arrival: Tensor, gain: Tensor, rate: Tensor, excess: Tensor) -> Tensor:
    """The time [n, 1] at which all pixels [n, pixels] together have gained `excess` [n, 1].

    A pixel gains at its rate until its arrival, by then `gain`. Where all gain less than is
    wanted, a time after the last arrival. Newton's steps from 0 never go too far, since what is
    gained grows ever more slowly, and end, exactly, as soon as none but pixels known to have
    arrived do.
    """
    tiny, largest = torch.finfo(rate.dtype).tiny, torch.finfo(rate.dtype).max
    time = torch.zeros_like(excess)
    while True:
        # 1 for pixels on their way, 0 for others: on CPUs masks are slower than numbers
        moving = (arrival - time).clamp_min_(0).sign_()
        still = (rate * moving).sum(1, keepdim=True)
        arrived = gain.sub(gain * moving).sum(1, keepdim=True)
        later = ((excess - arrived) / still.clamp_min(tiny)).clamp_max(largest)
        # not "until equal": what is no number would go on for ever
        if not (later > time).any():
            return time
        time = torch.maximum(time, later)


def _by_sorting(arrival: Tensor, gain: Tensor, rate: Tensor, excess: Tensor) -> Tensor:
    """As `_by_newton`, in one go: the last of the times at which each stretch between arrivals,
    drawn out in a straight line, would reach `excess`, since what is gained grows ever more slowly.

    A CPU takes far longer to sort; elsewhere no step may ask how far it has come, for that is to
    wait for the device.
    """
    tiny, largest = torch.finfo(rate.dtype).tiny, torch.finfo(rate.dtype).max
    order = arrival.argsort(1)
    gain, rate = gain.gather(1, order), rate.gather(1, order)
    arrived = gain.cumsum(1) - gain
    still = rate.flip(1).cumsum(1).flip(1)
    reached = ((excess - arrived) / still.clamp_min(tiny)).clamp_max(largest)
    return reached.amax(1, keepdim=True).clamp_min(0)
