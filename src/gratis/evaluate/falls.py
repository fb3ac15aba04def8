"""At which radius each image falls, and how sure the network was before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gratis.attacks.pgd import pgd
from gratis.balls import Ball
from gratis.budget import Meter
from gratis.evaluate.mode import as_evaluated
from gratis.evaluate.robustness import robust_accuracy
from gratis.prober import Prober

CLIMB = 10


@dataclass(frozen=True)
class Falls:
    """eps [B]: the smallest radius tried that breaks the image; 0 where it is wrong as it is,
    infinite where it stands at all of them.
    points [B, C, H, W]: of a fallen image one that breaks it at that radius, of one that stands
    the last one tried.  before, after [B]: the label's softmax probability at the image, and at
    the point.  prediction [B]: the answer there.
    """

    eps: Tensor
    before: Tensor
    after: Tensor
    prediction: Tensor
    points: Tensor


def falls(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    ball: Ball,
    radii: Sequence[float],
    attack: str = "pgd-10",
    seed: int = 0,
    meter: Meter | None = None,
) -> Falls:
    """Attack images x [B, C, H, W] with labels y [B] at each of `radii`, in eval mode and fp32.

    The radii are tried in growing order, each on the images that stand so far: whatever breaks
    an image inside a ball does so inside every larger one. Everything comes back on the CPU.
    An attack ends at the first point that fools the network, where it is hardly ever sure of the
    wrong class: from there the loss is climbed on, CLIMB steps of a quarter of the radius.
    meter: where the cost is counted.
    """
    meter = meter if meter is not None else Meter()
    fallen_at = torch.full((len(x),), torch.inf, dtype=torch.float64)
    points = x.detach().cpu().clone()
    standing = torch.arange(len(x))
    for radius in sorted(radii):
        if not len(standing):
            break
        at = standing.to(x.device)
        batch = [(x[at], y[at])]
        found = robust_accuracy(
            model, batch, [attack], ball=ball.of(radius), seed=seed, points=True
        )
        for spent in found.meters:
            meter.add(spent)
        assert found.adversarial is not None
        points[standing] = found.adversarial[0]
        right, stands = found.correct.T
        fallen = standing[right & ~stands]
        there = fallen.to(x.device)
        points[fallen] = _climbed(
            model, x[there], y[there], points[fallen].to(x), ball.of(radius), meter
        ).cpu()
        fallen_at[fallen] = radius
        fallen_at[standing[~right]] = 0.0
        standing = standing[stands]
    before, _ = _answers(model, x, y)
    after, prediction = _answers(model, points.to(x), y)
    meter.forwards += 2 * len(x)
    return Falls(fallen_at, before, after, prediction, points)


def _climbed(
    model: nn.Module, x: Tensor, y: Tensor, points: Tensor, ball: Ball, meter: Meter
) -> Tensor:
    """`points` that fool the network moved on up the loss; where it is fooled no more, as given."""
    if not len(x):
        return points
    probe = Prober(model, norm="eval", meter=meter)
    with as_evaluated(model):
        delta = pgd(
            lambda point: probe(point, y),
            x,
            ball,
            steps=CLIMB,
            step_size=ball.eps / 4,
            start=points - x,
        )
        moved = ball.place(x, delta)
        fooled = probe.logits(moved).argmax(1) != y
    return torch.where(fooled.view(-1, *[1] * (x.dim() - 1)), moved, points)


def _answers(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The label's probability [B] and the class answered [B]."""
    with as_evaluated(model), torch.no_grad():
        probabilities = model(x).softmax(1)
    return probabilities.gather(1, y[:, None])[:, 0].cpu(), probabilities.argmax(1).cpu()
