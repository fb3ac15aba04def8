"""What attacks share: looking at the model while remembering what fooled it, and starts by key."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from gratis.attacks.first_layer import input_gradients
from gratis.balls import Ball
from gratis.budget import Meter
from gratis.losses import Loss

Model = Callable[[Tensor], Tensor]
Correct = Callable[[Tensor, Tensor], Tensor]
STEPS_BETWEEN_DROPS = 10
"""Broken images leave a batch this often: rarer wastes steps, more often copies more and waits for
the device more often."""
Tell = Callable[[float], None]
"""Told what share of the work is done, 0 to 1, as often as it is known."""


def nobody(share: float) -> None:
    """Where nobody wants to know."""


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack is given: images x [B, C, H, W] with labels y that the model gets right.

    losses: what is climbed unless the attack has a loss of its own.  correct: what counts as
    right.  keys: one integer an image; everything random is a function of it.
    meter: where the cost is counted.  parts: where an attack made of several says how each fared.
    start: points [B, C, H, W] of the ball where the first restart begins, in place of the
    attack's own; for attacks that have a start.
    size: how many images the model is asked about at a time; None: all of them.
    tell: who wants to know how far the attack is.
    """

    model: Model
    x: Tensor
    y: Tensor
    ball: Ball
    losses: Loss
    correct: Correct
    keys: list[int]
    meter: Meter
    parts: list["Part"] = field(default_factory=list)
    start: Tensor | None = None
    size: int | None = None
    tell: Tell = nobody

    def of(self, rows: Tensor) -> "Attacked":
        """The images at `rows` [n] (indices) alone: a piece of the work, which tells nobody."""
        keys = [self.keys[i] for i in rows.tolist()]
        start = None if self.start is None else self.start[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], keys=keys, start=start, tell=nobody)

    def unbroken(self) -> tuple[Tensor, Tensor]:
        """(adversarial, broken) as they stand before anything is tried."""
        return self.x.clone(), torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)


@dataclass(frozen=True, eq=False)
class Part:
    """How one attack of several fared: which images [B] it was given, which of them it broke, as
    was confirmed (attacks.confirming).
    """

    attack: str
    given: Tensor
    broken: Tensor
    seconds: float
    meter: Meter

    def among(self, rows: Tensor, count: int) -> "Part":
        """The flags for all of `count` images, where this one was told of those at `rows` [B]."""
        given, broken = torch.zeros(2, count, dtype=torch.bool)
        given[rows.cpu()], broken[rows.cpu()] = self.given.cpu(), self.broken.cpu()
        return replace(self, given=given, broken=broken)

    def beside(self, other: "Part") -> "Part":
        """The same attack on other ones of the same images, taken together."""
        meter = Meter()
        meter.add(self.meter)
        meter.add(other.meter)
        given, broken = self.given | other.given, self.broken | other.broken
        return Part(self.attack, given, broken, self.seconds + other.seconds, meter)


class Attack(Protocol):
    """An attack for evaluation.

    Returns (adversarial, broken): for a broken image a misclassified point of the ball, for the
    others the last point tried; and a bool [B]. One that has `packs = True` may be given any
    number of images, and asks the model about `attacked.size` at a time.
    """

    @property
    def name(self) -> str: ...

    def parameters(self, ball: Ball, classes: int) -> dict[str, float | int | str]:
        """What besides the name and the ball makes it what it is, on a model of so many classes."""
        ...

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]: ...


class Search:
    """Gradients and answers at points tried, and the first misclassified point of each image.

    values: the loss [B] where the last gradient was taken.  fooled: bool [B].
    found: for a fooled image, the first point that fooled it; with `latest` the last one.
    towards: classes [B] that a targeted loss wants to know, where there is one.
    precision: dtype for autocast around the model, None for the model's own; points, losses and
    gradients keep the points' dtype.
    Nothing here waits for the device: no value is asked for, no shape depends on one.
    """

    def __init__(
        self,
        attacked: Attacked,
        losses: Loss | None = None,
        *,
        latest: bool = False,
        precision: torch.dtype | None = None,
    ) -> None:
        self.latest, self.precision = latest, precision
        self.model, self.y, self.meter = attacked.model, attacked.y, attacked.meter
        self.losses, self.correct = losses or attacked.losses, attacked.correct
        self.fooled = torch.zeros(len(self.y), dtype=torch.bool, device=self.y.device)
        self.found = torch.empty(0)
        self.values = torch.empty(0)
        self.towards: Tensor | None = None

    def grad(self, point: Tensor) -> Tensor:
        """The gradient of each image's loss at `point` [B, C, H, W], inside the pixel range."""
        point = point.detach().requires_grad_()
        with torch.enable_grad(), input_gradients(point):
            logits = self._answers(point)
            if not logits.requires_grad:
                raise ValueError(
                    "the model's output carries no gradient back to its input (torch.no_grad() or "
                    "torch.inference_mode() around it, a detach, a step function): an attack "
                    "that climbs the loss says nothing about it"
                )
            values = self.losses(logits, self.y)
            (grad,) = torch.autograd.grad(values.sum(), point)
        self.values = values.detach()
        self.meter.probes += len(point)
        self._remember(point.detach(), logits.detach())
        return grad

    def look(self, point: Tensor) -> Tensor:
        """The answers [B, K] at `point`, without a gradient."""
        with torch.no_grad():
            logits = self._answers(point)
        self.meter.forwards += len(point)
        self._remember(point, logits)
        return logits

    def keep(self, chosen: Tensor) -> None:
        """Go on with the images `chosen` [n] (indices) alone."""
        self.y, self.fooled = self.y[chosen], self.fooled[chosen]
        if len(self.found):
            self.found = self.found[chosen]
        if self.towards is not None:
            self.towards = self.towards[chosen]

    def _answers(self, point: Tensor) -> Tensor:
        if self.precision is None:
            return self.model(point)
        with torch.autocast(point.device.type, self.precision):
            return self.model(point).to(point.dtype)

    def _remember(self, point: Tensor, logits: Tensor) -> None:
        wrong = ~self.correct(logits, self.y)
        kept = wrong if self.latest else wrong & ~self.fooled
        found = self.found if len(self.found) else point
        self.found = torch.where(shaped(kept, point), point, found)
        self.fooled = self.fooled | wrong


def shaped(per_image: Tensor, like: Tensor) -> Tensor:
    """One value an image [B], to go with `like` [B, C, H, W]."""
    return per_image.view(-1, *[1] * (like.dim() - 1))


def either(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where `chosen` [n], else `old`, exactly: [n, C, H, W], all finite."""
    # at weights 0 and 1 lerp returns its ends; torch.where takes four times as long on CPUs
    return torch.lerp(old, new, shaped(chosen.to(old), old))


def waits(at: Tensor) -> bool:
    """Whether to read a value of `at` is to wait for a device: not where the host computes it."""
    return at.device.type != "cpu"


def may_drop(steps: int, at: Tensor) -> bool:
    """Whether an attack that would drop broken images after every step may after so many, for to
    know which they are is to read values of `at`.
    """
    return not waits(at) or steps % STEPS_BETWEEN_DROPS == 0


def image_key(seed: int, image: Tensor, label: int) -> int:
    """An integer from the seed, an image's pixels and its label: its identity in any order."""
    digest = hashlib.blake2b(image.contiguous().cpu().numpy().tobytes(), digest_size=8)
    digest.update(f"{seed}/{label}".encode())
    return int.from_bytes(digest.digest(), "little")


def image_keys(seed: int, x: Tensor, y: Tensor) -> list[int]:
    """The keys of images x [B, C, H, W] with labels y [B]."""
    # all at once from where they lie: to fetch one from a device takes as long
    pairs = zip(x.cpu(), y.tolist(), strict=True)
    return [image_key(seed, image, label) for image, label in pairs]


def generator_for(key: int, *what: str | int) -> torch.Generator:
    """A CPU generator that is a function of an image's key and of what is drawn."""
    text = "/".join(str(part) for part in (key, *what))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def starts(ball: Ball, x: Tensor, keys: list[int], restart: int) -> Tensor:
    """A random start for each image of x, drawn on the CPU so that every device gets the same."""
    drawn = [
        ball.sample(image[None], generator_for(key, restart))
        for image, key in zip(x.cpu(), keys, strict=True)
    ]
    return torch.cat(drawn).to(x.device)
