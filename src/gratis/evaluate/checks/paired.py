"""Checks that compare attacks image by image: M1 to M8, M10 and M18."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from gratis.attacks.search import generator_for, image_keys
from gratis.balls import Ball
from gratis.evaluate.checks.outcome import Check, Outcome
from gratis.evaluate.checks.subject import Subject
from gratis.evaluate.mode import as_evaluated
from gratis.prober import Prober

NEAR = "pgd-10"
SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)
BOX_IMAGES = 100
NOISES = 100
FALL = 20.0
"""Points of robust accuracy between two checks of a training log (Wong 2020, appendix B)."""


def _beats(subject: Subject, weak: Tensor, strong: Tensor, names: tuple[str, str]) -> Outcome:
    """Images that `weak` [N] breaks and `strong` leaves standing."""
    count = subject.right & ~weak & strong
    shown = f"{names[0]} breaks {int(count.sum())} of {subject.images} images that {names[1]} "
    return Outcome(subject.percent(count), shown + "does not")


def _one_step(subject: Subject) -> Outcome:
    strong = subject.climber.name
    return _beats(subject, subject.standing("fgsm"), subject.standing(strong), ("fgsm", strong))


def _one_step_price(subject: Subject) -> float:
    return subject.price("fgsm") + subject.price(subject.climber.name)


def _overfitting(subject: Subject) -> Outcome:
    one, ten = (subject.percent(subject.standing(name)) for name in ("fgsm", NEAR))
    shown = f"{one:.1f} % right under fgsm, {ten:.1f} % under {NEAR}"
    if subject.history is None:
        return Outcome(one - ten, f"{shown}; falls in training: no log, not applicable")
    falls = [100 * (before - after) for before, after in pairwise(subject.history)]
    largest = max(falls, default=0.0)
    # a guard may have undone a fall: what counts is one that the end has not made good
    lost = 100 * (max(subject.history, default=0.0) - (subject.history or (0.0,))[-1])
    shown += f"; the training log falls by {max(largest, 0.0):.1f} points at most at once"
    return Outcome(one - ten, shown, certain=largest > FALL and lost > FALL)


def _square(subject: Subject) -> Outcome:
    measured = _measured_square(subject)
    if measured is None:
        _run_autoattack(subject)
        measured = _measured_square(subject)
    none = torch.zeros_like(subject.right)
    given, broken = measured or (none, none)  # where nothing was left for Square
    shown = f"square breaks {int(broken.sum())} of the {int(given.sum())} images left standing"
    return Outcome(subject.percent(broken), f"{shown} by attacks with gradients")


def _measured_square(subject: Subject) -> tuple[Tensor, Tensor] | None:
    """The images [N] left standing by attacks with gradients, and those that Square breaks."""
    if "square" in subject.parts:
        return subject.parts["square"]
    for name, parts in zip(subject.found.attacks, subject.found.parts, strict=False):
        for part in parts:
            if (name, part.attack) == ("autoattack", "square"):
                return part.given, part.broken
    left, column = subject.sharp(), subject.given("square")
    if left is None or column is None or not subject.alone:
        return None
    return left, left & ~column


def _square_price(subject: Subject) -> float:
    return 0.0 if _measured_square(subject) else _run_price(subject)


def _whole_box(subject: Subject) -> Outcome:
    tried = subject.first(BOX_IMAGES)
    whole = subject.ball.of(_widest(subject))
    left = subject.standing("pgd-100", tried, whole)
    images = int(tried.sum())
    shown = f"{int(left.sum())} of {images} images stand under pgd-100 at eps {whole.eps:g}"
    return Outcome(100 * int(left.sum()) / max(images, 1), shown, images)


def _widest(subject: Subject) -> float:
    """The eps from which on the ball holds every image."""
    ball = subject.ball
    width = ball.high - ball.low
    if ball.norm == "linf":
        return width
    x, _ = next(iter(subject.batches()))
    pixels = x[0].numel()
    return float(width * (pixels if ball.norm == "l1" else pixels**0.5))


def _rise(subject: Subject) -> Outcome:
    # of() cuts to the pixel range, beyond which nothing new would be measured
    radii = sorted({subject.ball.of(share * subject.ball.eps).eps for share in SHARES})
    found = [
        subject.percent(
            subject.standing(NEAR)
            if eps == subject.ball.eps
            else subject.standing(NEAR, subject.right, subject.ball.of(eps))
        )
        for eps in radii
    ]
    rise = max(after - before for before, after in pairwise(found))
    listed = ", ".join(f"{a:.1f} % at {eps:.4g}" for a, eps in zip(found, radii, strict=True))
    return Outcome(max(rise, 0.0), f"right under {NEAR}: {listed}")


def _rise_price(subject: Subject) -> float | str:
    if subject.ball.eps == 0:
        return "eps is 0"
    return subject.price(NEAR) + (len(SHARES) - 1) * subject.price(NEAR, subject.right)


def _random_points(subject: Subject) -> Outcome:
    left = subject.standing(NEAR)
    broken = torch.zeros_like(left)
    with as_evaluated(subject.model), torch.no_grad():
        for places, x, y in subject.chosen(left):
            broken[places] = _by_noise(subject, x, y).cpu()
    shown = f"{2 * NOISES} random points break {int(broken.sum())} of {subject.images} images "
    return Outcome(subject.percent(broken), f"{shown}that {NEAR} does not")


def _by_noise(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    """Which images [b] some random point of the ball or some corner of it breaks."""
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    keys = image_keys(subject.seed, x, y)
    generators = [generator_for(key, "noise") for key in keys]
    for draw in range(2 * NOISES):
        todo = (~broken).nonzero().flatten()
        if not len(todo):
            break
        noise = [_noise(x[i].cpu(), subject.ball, generators[i], draw % 2 == 1) for i in todo]
        point = subject.ball.place(x[todo], torch.stack(noise).to(x))
        subject.meter.forwards += len(todo)
        broken[todo] = ~subject.task.correct(subject.model(point), y[todo])
    return broken


def _noise(image: Tensor, ball: Ball, generator: torch.Generator, corner: bool) -> Tensor:
    """A perturbation uniform in the ball, or in a random one of its corners (of its sphere)."""
    if not corner:
        return ball.sample(image[None], generator)[0]
    normal = torch.randn(image.shape, generator=generator, dtype=image.dtype)
    return ball.into_box(image, ball.eps * ball.steepest(normal[None])[0])


def _random_price(subject: Subject) -> float:
    known = subject.given(NEAR)
    left = subject.right if known is None else known
    return subject.price(NEAR) + 2 * NOISES / 3 * subject.share(left)


def _converged(subject: Subject) -> Outcome:
    base = subject.climber
    few, short = (subject.variant(base, 50, r).name for r in (10, 1))
    single = subject.standing(short)
    steps = single & ~subject.standing(subject.variant(base, 200, 1).name, single)
    # restarts have the same starts in any attack, so that the ten hold the one
    known = subject.given(few)
    restarts = single & ~(subject.standing(few, single) if known is None else known)
    drops = [subject.percent(steps), subject.percent(restarts)]
    shown = f"50 -> 200 steps: {drops[0]:.1f} points less; 1 -> 10 restarts: {drops[1]:.1f}"
    return Outcome(max(drops), shown)


def _converged_price(subject: Subject) -> float:
    base = subject.climber
    short, few, many = (
        subject.variant(base, *numbers).name for numbers in ((50, 1), (50, 10), (200, 1))
    )
    known = subject.given(short)
    left = subject.right if known is None else known
    restarts = 0.0 if subject.given(few) is not None else subject.price(few, left)
    return subject.price(short) + subject.price(many, left) + restarts


def _step_size(subject: Subject) -> Outcome:
    given = subject.climber.name
    near = subject.standing(NEAR)
    long, ten = subject.percent(subject.standing(given)), subject.percent(near)
    shown = f"{long:.1f} % right under {given}, {ten:.1f} % under {NEAR}"
    if subject.steps < int(NEAR.removeprefix("pgd-")):  # it claims no more than a few steps
        return Outcome(long - ten, shown)
    missed = subject.found.robust & ~near
    shown += f", which breaks {int(missed.sum())} images that the evaluation does not"
    return Outcome(max(long - ten, subject.percent(missed)), shown)


def _transfer(subject: Subject) -> Outcome:
    assert subject.surrogate is not None
    left = subject.found.robust
    broken = torch.zeros_like(left)
    for places, x, y in subject.chosen(left):
        with as_evaluated(subject.surrogate):
            point = momentum_fgsm(subject.surrogate, x, y, subject.ball)
        subject.meter.probes += 10 * len(x)
        subject.meter.forwards += len(x)
        with as_evaluated(subject.model), torch.no_grad():
            broken[places] = ~subject.task.correct(subject.model(point), y).cpu()
    shown = f"{int(broken.sum())} of the {int(left.sum())} images left standing are broken by "
    return Outcome(subject.percent(broken), shown + "mi-fgsm-10 made on the surrogate")


def _transfer_price(subject: Subject) -> float | str:
    if subject.surrogate is None:
        return "needs a surrogate"
    return 7 * subject.share(subject.found.robust)


def momentum_fgsm(
    model: nn.Module, x: Tensor, y: Tensor, ball: Ball, steps: int = 10, decay: float = 1.0
) -> Tensor:
    """Points [B, C, H, W] of the ball made to fool other models than `model`.

    Source: Dong 2018, algorithm 1 (MI-FGSM): steps of eps / `steps` along a running sum of
    gradients, each over its sum of absolute values.
    """
    probe = Prober(model, norm="eval")
    delta = momentum = torch.zeros_like(x)
    for _ in range(steps):
        grad = probe(ball.place(x, delta), y)
        size = grad.flatten(1).abs().sum(1).clamp_min(1e-30)
        momentum = decay * momentum + grad / size.view(-1, *[1] * (x.dim() - 1))
        delta = ball.ascend(x, delta, momentum, ball.eps / steps)
    return ball.place(x, delta)


def _autoattack(subject: Subject) -> Outcome:
    before, after = subject.standing(_ten_restarts(subject)), subject.given("autoattack")
    if after is None:
        after = _run_autoattack(subject)
    gap = subject.percent(before) - subject.percent(after)
    shown = f"{subject.percent(before):.1f} % right under {_ten_restarts(subject)}, "
    return Outcome(gap, f"{shown}{subject.percent(after):.1f} % under autoattack")


def _autoattack_price(subject: Subject) -> float:
    if subject.given("autoattack") is None:
        return _run_price(subject)
    return subject.price(_ten_restarts(subject))


def _run_autoattack(subject: Subject) -> Tensor:
    """What stands [N] under AutoAttack, which is given what PGD-50-10 leaves; run once."""
    if "autoattack" not in subject.columns:
        left = subject.standing(_ten_restarts(subject))
        subject.columns["autoattack"] = subject.standing("autoattack", left)
    return subject.columns["autoattack"]


def _run_price(subject: Subject) -> float:
    if "autoattack" in subject.columns:
        return 0.0
    known = subject.given(_ten_restarts(subject))
    left = subject.right if known is None else known
    return subject.price(_ten_restarts(subject)) + subject.price("autoattack", left)


def _ten_restarts(subject: Subject) -> str:
    return subject.variant(subject.climber, 50, 10).name


PAIRED = (
    Check("M1", _one_step_price, _one_step),
    Check("M2", lambda s: s.price("fgsm") + s.price(NEAR), _overfitting),
    Check("M3", _square_price, _square),
    Check("M4", lambda s: s.price("pgd-100", s.first(BOX_IMAGES)), _whole_box),
    Check("M5", _rise_price, _rise),
    Check("M6", _random_price, _random_points),
    Check("M7", _converged_price, _converged),
    Check("M8", lambda s: s.price(s.climber.name) + s.price(NEAR), _step_size),
    Check("M10", _transfer_price, _transfer),
    Check("M18", _autoattack_price, _autoattack),
)
