"""Checks of the input gradient itself, image by image: M9, M11 and M13."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gratis.attacks.search import generator_for, image_keys
from gratis.balls import Ball
from gratis.evaluate.checks.outcome import Outcome
from gratis.evaluate.checks.subject import Subject
from gratis.evaluate.mode import as_evaluated
from gratis.losses import dlr
from gratis.prober import Prober


@dataclass
class Slopes:
    """Of the images that are right when clean, [n] each.

    flat, broken: zero, or not finite, for the task's loss or for DLR.  flat_both: zero for both.
    cosine: between the gradients at the image and at a random point of its ball; NaN where one
    is zero.  error: |loss - first-order loss| / |first-order rise| at FGSM's point.
    """

    flat: Tensor
    broken: Tensor
    cosine: Tensor
    error: Tensor


def price(subject: Subject) -> float:
    probes = 3 if subject.classes >= 3 else 2
    return (2 * probes + 2) / 3 * subject.share(subject.right)


def measured(subject: Subject) -> Slopes:
    parts = []
    if subject.differentiable:
        with as_evaluated(subject.model):
            parts = [_of_batch(subject, x, y) for _, x, y in subject.chosen(subject.right)]
    if not parts:
        return Slopes(*torch.zeros(2, 0, dtype=torch.bool), *torch.zeros(2, 0))
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Slopes(*(torch.cat(column) for column in columns))


def _of_batch(subject: Subject, x: Tensor, y: Tensor) -> Slopes:
    losses, ball = subject.task.losses, subject.ball
    probe = Prober(subject.model, losses, norm="eval", meter=subject.meter)
    grad = probe(x, y)
    grads = [grad, probe(x, y, dlr)] if subject.classes >= 3 else [grad]
    near = probe(ball.place(x, _samples(subject.seed, x, y, ball)), y)
    step = ball.into_box(x, ball.eps * ball.steepest(grad))
    with torch.no_grad():
        rise = losses(subject.model(x + step), y) - losses(subject.model(x), y)
    subject.meter.forwards += 2 * len(x)
    expected = (grad * step).flatten(1).sum(1)
    flat = torch.stack([(g == 0).flatten(1).all(1) for g in grads])
    finite = torch.stack([g.isfinite().flatten(1).all(1) for g in grads])
    return Slopes(
        flat.any(0).cpu(),
        (~finite).any(0).cpu(),
        _cosine(grad, near).cpu(),
        ((rise - expected).abs() / expected.abs()).cpu(),
    )


def _samples(seed: int, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    drawn = [
        ball.sample(image[None], generator_for(key, "near"))
        for image, key in zip(x.cpu(), image_keys(seed, x, y), strict=True)
    ]
    return torch.cat(drawn).to(x)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """[B]; NaN where either is zero. Entries are scaled first: gradients may be 1e-30."""
    one, other = (g.flatten(1).double() for g in (one, other))
    lengths = one.norm(dim=1) * other.norm(dim=1)
    return (one * other).sum(1) / torch.where(lengths > 0, lengths, torch.nan)


def useless(subject: Subject, slopes: Slopes) -> Outcome:
    if not subject.differentiable:
        shown = "the output carries no gradient back to its input"
        return Outcome(100 * subject.share(subject.right), shown)
    flat, broken = int(slopes.flat.sum()), int(slopes.broken.sum())
    bad = int((slopes.flat | slopes.broken).sum())
    losses = "cross entropy or DLR" if subject.classes >= 3 else "cross entropy"
    shown = f"{flat} images with a zero gradient, {broken} with one that is not finite, of {losses}"
    return Outcome(100 * bad / subject.images, shown)


def agreement(slopes: Slopes) -> Outcome:
    known = slopes.cosine[slopes.cosine.isfinite()]
    if 2 * len(known) <= len(slopes.cosine):
        return Outcome(None, "not applicable: most gradients are zero or not finite, see M9")
    mean = float(known.mean())
    return Outcome(mean, f"mean cosine {mean:.2f} over {len(known)} images", len(known))


def first_order(slopes: Slopes) -> Outcome:
    known = slopes.error[slopes.error.isfinite()]
    if not len(known):
        return Outcome(None, "not applicable: no gradient predicts any rise, see M9")
    median = float(known.median())
    shown = f"the loss at FGSM's point is off its prediction by {median:.2g} times that"
    return Outcome(median, f"{shown} (median of {len(known)} images)", len(known))
