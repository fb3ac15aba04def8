"""FAB: walks along the decision boundary, for a perturbation as small as can be."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gratis.attacks.search import Attacked
from gratis.balls import Ball

OVERSHOOT = 1.05
BACKWARD = 0.9
LARGEST_BIAS = 0.1


@dataclass(frozen=True)
class FAB:
    """Targeted FAB: for each of the `targets` best other classes, `steps` steps.

    Each step takes the boundary between label and target as flat, moves the point and the image
    onto it inside the pixel box, mixes the two, and goes back towards the image where the point
    is misclassified.
    Source: Croce & Hein 2020b ("Minimally distorted adversarial examples"), algorithm 1 and
    section 3; the targeted variant and its constants as in AutoAttack's released code.
    Differs from the code: an image is done once a misclassified point lies in the ball; a step's
    forward also judges the point before it; no weight gradients.
    """

    name: str
    steps: int = 100
    targets: int = 9

    def parameters(self, ball: Ball) -> dict[str, float | int | str]:
        return {"steps": self.steps, "targets": self.targets, "start": "zero"}

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack."""
        with torch.no_grad():
            answers = attacked.model(attacked.x)
        attacked.meter.forwards += len(attacked.x)
        others = answers.scatter(1, attacked.y.unsqueeze(1), -torch.inf)
        others = others.argsort(1, descending=True)
        adversarial, broken = attacked.unbroken()
        for rank in range(min(self.targets, answers.shape[1] - 1)):
            todo = (~broken).nonzero().flatten()
            if not len(todo):
                break
            walk = _Walk(attacked.of(todo), others[todo, rank])
            adversarial[todo], broken[todo] = walk.go(self.steps)
        return adversarial, broken


class _Walk:
    """The walk of a batch of images towards one class each."""

    def __init__(self, attacked: Attacked, towards: Tensor) -> None:
        self.model, self.ball = attacked.model, attacked.ball
        self.correct, self.meter = attacked.correct, attacked.meter
        self.x, self.y, self.towards = attacked.x, attacked.y, towards
        self.rows = torch.arange(len(towards), device=towards.device)
        self.point = self.x.clone()
        self.points, self.fooled = attacked.unbroken()

    def go(self, steps: int) -> tuple[Tensor, Tensor]:
        """(points, fooled) of all images after at most so many steps."""
        for _ in range(steps):
            gap, slope = self._judged()
            if not len(self.rows):
                break
            self._step(gap, slope)
        else:
            self._judged()
        self.points[self.rows] = self.ball.place(
            self.x, self.ball.project(self.x, self.point - self.x)
        )
        return self.points, self.fooled

    def _judged(self) -> tuple[Tensor, Tensor]:
        """Take out the images whose point does it; (gap [n], slope) at the points of the rest."""
        gap, slope, wrong = self._boundary(self.point, slice(None))
        if not wrong.any():
            return gap, slope
        done = wrong & (self.ball.size(self.point - self.x) <= self.ball.eps)
        if done.any():
            self.points[self.rows[done]], self.fooled[self.rows[done]] = self.point[done], True
            left = (~done).nonzero().flatten()
            gap, slope, wrong = gap[left], slope[left], wrong[left]
            self.rows, self.x, self.y = self.rows[left], self.x[left], self.y[left]
            self.towards, self.point = self.towards[left], self.point[left]
        far = wrong.nonzero().flatten()
        if len(far):
            back = self.x[far] + BACKWARD * (self.point[far] - self.x[far])
            self.point[far] = back
            gap[far], slope[far], _ = self._boundary(back, far)
        return gap, slope

    def _boundary(self, point: Tensor, chosen: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """(target's logit minus the label's [n], its gradient, whether misclassified [n])."""
        point = point.detach().requires_grad_()
        labels, towards = self.y[chosen].unsqueeze(1), self.towards[chosen].unsqueeze(1)
        with torch.enable_grad():
            logits = self.model(point)
            gap = (logits.gather(1, towards) - logits.gather(1, labels)).squeeze(1)
            (slope,) = torch.autograd.grad(gap.sum(), point)
        self.meter.probes += len(point)
        return gap.detach(), slope, ~self.correct(logits.detach(), labels.squeeze(1))

    def _step(self, gap: Tensor, slope: Tensor) -> None:
        flat = slope.flatten(1)
        # the boundary's plane: slope . z = level
        level = (flat * self.point.flatten(1)).sum(1) - gap
        from_point = onto_plane(self.point, slope, level, self.ball)
        from_image = onto_plane(self.x, slope, level, self.ball)
        here, there = (self.ball.size(move).clamp_min(1e-8) for move in (from_point, from_image))
        bias = (here / (here + there)).clamp(0, LARGEST_BIAS)
        bias = bias.view(-1, *[1] * (self.x.dim() - 1))
        mixed = (self.point + OVERSHOOT * from_point) * (1 - bias) + (
            self.x + OVERSHOOT * from_image
        ) * bias
        finite = torch.isfinite(mixed.flatten(1)).all(1).view_as(bias)
        self.point = torch.where(finite, self.ball.clip(mixed), self.point)


def onto_plane(z: Tensor, slope: Tensor, level: Tensor, ball: Ball) -> Tensor:
    """The smallest move [n, ...] of z onto {slope . z = level [n]} that stays in the pixel box.

    Smallest in the ball's norm; where the plane lies beyond the box, the move that comes nearest.
    Source: Croce & Hein 2020b, equation 5 and the sections on its solution by sorting.
    """
    flat, w = z.flatten(1), slope.flatten(1)
    excess = (w * flat).sum(1) - level
    w = torch.where(excess[:, None] >= 0, w, -w)
    # each pixel moves against w, as far as it must and the box allows
    room = torch.where(w > 0, flat - ball.low, ball.high - flat).clamp_min(0)
    moved = _few_pixels if ball.norm == "l1" else _every_pixel
    far = moved(w.abs(), room, excess.abs(), ball)
    return (-w.sign() * far).view_as(z)


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
    """How far each pixel moves [n, pixels] in Linf and L2: min(time * speed, room)."""
    speed = torch.ones_like(weight) if ball.norm == "linf" else weight
    hit = torch.where(weight > 0, room / speed.clamp_min(1e-30), torch.inf)
    order = hit.argsort(1)
    sorted_hit = hit.gather(1, order)
    gain_rate = (weight * speed).gather(1, order)
    gained_at_box = (weight * room).gather(1, order)
    # with time t just at the i-th hit: pixels before it stand at the box, the others still move
    before = gained_at_box.cumsum(1) - gained_at_box
    rate = gain_rate.flip(1).cumsum(1).flip(1)
    finite_hit = torch.where(sorted_hit.isinf(), 0.0, sorted_hit)
    reached = torch.where(sorted_hit.isinf(), torch.inf, before + rate * finite_hit)
    place = (reached < excess[:, None]).sum(1, keepdim=True)
    last = weight.shape[1] - 1
    inside = place.clamp(max=last)
    time = (excess[:, None] - before.gather(1, inside)) / rate.gather(1, inside).clamp_min(1e-30)
    time = torch.where(place > last, torch.inf, time)
    return torch.where(time.isinf(), room, torch.minimum(torch.nan_to_num(time * speed), room))
