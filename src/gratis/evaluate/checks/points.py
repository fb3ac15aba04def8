"""Checks of adversarial points: M12 (are they maxima?), M19 (do they survive 8 bits?), M20."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gratis.attacks import Attacked, build_attack
from gratis.attacks.apgd import CLASSES_NEEDED
from gratis.attacks.confirming import near
from gratis.attacks.search import image_keys
from gratis.evaluate.checks.outcome import Outcome
from gratis.evaluate.checks.outputs import Answers
from gratis.evaluate.checks.subject import Subject, thirds
from gratis.evaluate.mode import as_evaluated
from gratis.prober import Prober

IMAGES = 64
ATTACK = "pgd-50"
REJECTED = 0.002
"""Of the images: so many successes may not hold when asked again, for rounding."""


@dataclass
class Points:
    """Images x [n, C, H, W] with labels y, where PGD-50 ended, and whether that is a success."""

    x: Tensor
    y: Tensor
    point: Tensor
    broken: Tensor


def price(subject: Subject) -> float:
    """Of the attack; a gradient at its points is `asking`, in passes per evaluated image."""
    each = thirds(build_attack(ATTACK), subject.ball, subject.classes)
    return each / 3 * subject.share(subject.first(IMAGES))


def asking(subject: Subject) -> float:
    return 2 / 3 * subject.share(subject.first(IMAGES))


def attacked(subject: Subject) -> Points:
    x, y = subject.at_once(IMAGES)
    keys = image_keys(subject.seed, x, y)
    task = subject.task
    with as_evaluated(subject.model):
        point, broken = build_attack(ATTACK)(
            Attacked(
                subject.model, x, y, subject.ball, task.losses, task.correct, keys, subject.meter
            )
        )
    return Points(x, y, point, broken)


def stationarity(subject: Subject, points: Points) -> Outcome:
    """FOSC with the true box: how much of the first-order rise within the box is left."""
    left = ~points.broken
    count = int(left.sum())
    if not count:
        return Outcome(None, f"not applicable: {ATTACK} left no image standing")
    x, y, point = points.x[left], points.y[left], points.point[left]
    with as_evaluated(subject.model):
        grad = Prober(subject.model, subject.task.losses, norm="eval", meter=subject.meter)(
            point, y
        )
    ball = subject.ball
    low, high = (x - ball.eps).clamp_min(ball.low), (x + ball.eps).clamp_max(ball.high)
    vertex = torch.where(grad > 0, high, low)
    rise = ((vertex - point) * grad).flatten(1).sum(1)
    whole = ((high - low) * grad.abs()).flatten(1).sum(1)
    shares = (rise / whole)[whole > 0]
    if not len(shares):
        return Outcome(None, "not applicable: the gradient is zero at every point, see M9")
    mean = float(shares.mean())
    return Outcome(mean, f"mean {mean:.2f} over {len(shares)} points of {ATTACK}", len(shares))


def rounded(subject: Subject, points: Points) -> Outcome:
    broken = points.broken
    count = int(broken.sum())
    if not count:
        return Outcome(None, f"not applicable: {ATTACK} broke none of {len(broken)} images")
    low, width = subject.ball.low, subject.ball.high - subject.ball.low
    grey = ((points.point[broken] - low) / width * 255).round() / 255 * width + low
    subject.meter.forwards += count
    with as_evaluated(subject.model), torch.no_grad():
        wrong = ~subject.task.correct(subject.model(grey), points.y[broken])
    survived = int(wrong.sum())
    shown = f"{survived} of {count} successes of {ATTACK} survive rounding to 8 bits"
    return Outcome(100 * survived / count, shown, count)


def audit(subject: Subject, answers: Answers, points: Points | None) -> Outcome:
    """Points inside the threat model, eval mode, classes enough, the same images."""
    wrong = [*_outside(subject, points)]
    if answers.training:
        wrong.append(f"{answers.training[0]} was in training mode")
    if answers.otherwise > max(1, 0.005 * subject.images) and not subject.randomised:
        wrong.append(f"{answers.otherwise} clean answers are not those of the evaluation")
    rejected = sum(subject.found.rejected)
    if rejected > max(1, REJECTED * subject.images) and not subject.randomised:
        wrong.append(f"{rejected} successes of the evaluation did not hold when asked again")
    for name in subject.found.attacks:
        loss = {"apgd-t": "dlr-t", "apgd-dlr": "dlr"}.get(name)
        if loss and subject.classes < CLASSES_NEEDED[loss]:
            wrong.append(f"{name} needs {CLASSES_NEEDED[loss]} classes, not {subject.classes}")
    audited = len(points.x) if points else 0
    examples = len(subject.found.examples.clean) if subject.found.examples else 0
    shown = f"{audited + examples} points audited: " + ("; ".join(wrong) or "nothing wrong")
    return Outcome(float(len(wrong)), shown)


def _outside(subject: Subject, points: Points | None) -> list[str]:
    ball, out = subject.ball, []
    pairs = [(points.x, points.point)] if points else []
    if subject.found.examples:
        pairs.append((subject.found.examples.clean, subject.found.examples.adversarial))
    for x, point in pairs:
        far = ~near(ball, x, point).cpu()
        box = (point < ball.low) | (point > ball.high)
        if count := int((far | box.cpu().flatten(1).any(1)).sum()):
            out.append(f"{count} points lie outside the ball or the pixel range")
    if points and bool(points.broken.any()):
        subject.meter.forwards += int(points.broken.sum())
        with as_evaluated(subject.model), torch.no_grad():
            again = subject.model(points.point[points.broken])
        right = int(subject.task.correct(again, points.y[points.broken]).sum())
        if right and not subject.randomised:
            out.append(f"{right} successes are classified rightly when asked again")
    return out
