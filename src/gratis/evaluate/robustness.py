"""Clean and robust accuracy of a model under stated attacks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gratis import clock
from gratis.attacks import Attack, Attacked, build_attack
from gratis.attacks.confirming import confirmed
from gratis.attacks.packing import in_batches, portion
from gratis.attacks.search import Part, image_keys
from gratis.balls import Ball
from gratis.budget import Meter
from gratis.evaluate.answered import Answered, Outcomes, deciding, joined
from gratis.evaluate.clean import right_when_clean
from gratis.evaluate.mode import as_evaluated
from gratis.nn.wrapped import bare
from gratis.tasks import Classification

Progress = Callable[[int], None]


def always(place: int) -> bool:
    """Every pool's turn."""
    return True


BATCHES_IN_A_POOL = 4
"""Batches of the loader that are attacked together: what survives of them fills batches again.
More keep batches fuller; but a pool is also what an interrupted evaluation loses."""


@dataclass(frozen=True)
class Examples:
    """A few images as evaluated, for pictures: clean and adversarial [n, C, H, W], [n] labels."""

    clean: Tensor
    adversarial: Tensor
    label: Tensor
    clean_prediction: Tensor
    adversarial_prediction: Tensor


@dataclass(frozen=True)
class Robustness:
    """correct: bool [N, 1 + attacks]; column 0 clean, column k attack k alone (only images
    that are right when clean can be right under attack). robust: bool [N], under all of them.
    With alone=False column k is what stands after the first k attacks.
    seconds, meters: one for each column.  examples: the first images under the last attack; with
    alone=False under the one that broke them.
    parts: for each attack how its parts fared, for one that has any (autoattack).
    adversarial: [attacks, N, C, H, W] on the CPU, where the points were asked for: for a broken
    image a misclassified point, for the others the last one tried.
    rejected: for each attack how many successes were none when looked at again: images that count
    as robust though it left them.
    """

    attacks: tuple[str, ...]
    correct: Tensor
    robust: Tensor
    seconds: tuple[float, ...]
    meters: tuple[Meter, ...]
    examples: Examples | None
    parts: tuple[tuple[Part, ...], ...] = ()
    adversarial: Tensor | None = None
    rejected: tuple[int, ...] = ()


def robust_accuracy(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    attacks: Sequence[str],
    *,
    ball: Ball,
    task: Classification | None = None,
    seed: int = 0,
    alone: bool = True,
    examples: int = 0,
    points: bool = False,
    outcomes: Outcomes | None = None,
    turn: Callable[[int], bool] = always,
    progress: Progress | None = None,
) -> Robustness:
    """Evaluate `model` (images in the ball's range -> logits [B, K]) in eval mode and fp32.

    loader: any iterable of (x, y), x [B, C, H, W], y [B]. The model is asked about as many
    images at a time as the loader gives; BATCHES_IN_A_POOL batches are attacked together.
    attacks: names such as "pgd-50-10" or "pgd-50-10:alpha=0.01".
    Random starts are a function of (seed, an image's pixels and label, restart), never of its
    place in a batch. The model's mode, gradients and running statistics are left as they were.
    An image counts as broken by an attack only if the point found is misclassified when the
    model is asked again, and lies in the ball.
    alone: every attack is given every image that is right when clean; otherwise only what the
    attacks before have left, which costs less and is all that `robust` needs.
    examples: how many images to keep for pictures.  points: keep every adversarial point.
    outcomes: where pools already answered are kept; the same loader and arguments are needed.
    turn: whether pool number k is to be answered; the others are left out, as for processes that
    share the pools.
    progress: called with images done so far, among them a share of those being attacked.

    Raises ValueError where there is no image, where logits and labels do not go together, or where
    `points` are asked for of images of several shapes.
    """

    def tell(images: float) -> None:
        if progress:
            progress(int(images))

    task, model = task or Classification(), bare(model)
    plan = [build_attack(name) for name in attacks]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    answers: list[Answered] = []
    kept: Examples | None = None
    duplicates: dict[int, int] = {}
    done = 0
    with as_evaluated(model):
        for place, (x, y, size) in enumerate(_pools(loader, ball, device)):
            if points and answers and x.shape[1:] != answers[0].adversarial.shape[2:]:
                raise ValueError(
                    f"points of images {tuple(x.shape[1:])} and of "
                    f"{tuple(answers[0].adversarial.shape[2:])} are no one tensor; evaluate those "
                    "of each shape by themselves, or leave points out"
                )
            keys = _keys(seed, x, y, duplicates)
            if not turn(place):
                done += len(x)
                continue
            answered = outcomes.get(place) if outcomes else None
            if answered is None:
                attacked = Attacked(
                    *(model, x, y, ball, task.losses, task.correct, keys, Meter()),
                    size=size,
                    tell=portion(tell, done, len(x)),
                )
                wanted = len(x) if points else min(examples, len(x)) * (place == 0)
                answered = _answer(plan, attacked, alone, wanted)
                if outcomes:
                    outcomes.put(place, answered)
            if examples and place == 0:
                last = _shown(answered, alone)[:examples] if plan else x[:examples]
                kept = _examples(model, x[:examples], last.to(x), y[:examples])
            answers.append(answered)
            done += len(x)
            tell(done)
    if not answers:
        raise ValueError("no images to evaluate: the loader was empty")
    return _together(tuple(attacks), answers, kept, points)


def _shown(answered: Answered, alone: bool) -> Tensor:
    points = answered.adversarial
    return points[-1] if alone else deciding(answered.correct, points)


def pools_of(images: int, batch_size: int) -> int:
    """How many pools so many images make."""
    return -(-images // (BATCHES_IN_A_POOL * batch_size))


def _pools(
    loader: Iterable[tuple[Tensor, Tensor]], ball: Ball, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(x, y, largest batch) of several batches of the loader together; images of another shape
    begin a new pool.
    """
    pool: list[tuple[Tensor, Tensor]] = []
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        ball.check(x)
        if not len(x):
            continue
        alike = pool and (x.shape[1:], x.dtype) == (pool[0][0].shape[1:], pool[0][0].dtype)
        if pool and (not alike or len(pool) == BATCHES_IN_A_POOL):
            yield _pool(pool)
            pool = []
        pool.append((x, y))
    if pool:
        yield _pool(pool)


def _pool(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, int]:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return x, y, max(len(part) for part, _ in batches)


def _together(
    attacks: tuple[str, ...], answers: list[Answered], kept: Examples | None, points: bool
) -> Robustness:
    """The pools' answers as one."""
    correct = torch.cat([answered.correct for answered in answers])
    meters = [Meter() for _ in range(1 + len(attacks))]
    for answered in answers:
        for total, meter in zip(meters, answered.meters, strict=True):
            total.add(meter)
    return Robustness(
        attacks,
        correct,
        correct.all(1),
        tuple(map(sum, zip(*(answered.seconds for answered in answers), strict=True))),
        tuple(meters),
        kept,
        tuple(joined(answers, k) for k in range(len(attacks))),
        torch.cat([answered.adversarial for answered in answers], 1) if points else None,
        tuple(map(sum, zip(*(answered.rejected for answered in answers), strict=True))),
    )


def _answer(plan: list[Attack], attacked: Attacked, alone: bool, points: int) -> Answered:
    """One pool under every attack; the first `points` images' points are kept."""
    x = attacked.x
    began = clock.seconds(x.device)
    clean = right_when_clean(attacked)
    seconds = [clock.seconds(x.device) - began]
    columns, meters, parts, rejected = [clean], [attacked.meter], [], []
    found = [x.new_empty((0, points, *x.shape[1:]))]
    for place, attack in enumerate(plan):
        began = clock.seconds(x.device)
        tell = portion(attacked.tell, place / len(plan), 1 / len(plan))
        given = replace(attacked, meter=Meter(), parts=[], tell=tell)
        adversarial, standing, doubtful = _under(attack, given, clean if alone else columns[-1])
        columns.append(standing)
        rejected.append(doubtful)
        meters.append(given.meter)
        parts.append(given.parts)
        found.append(adversarial[None, :points])
        seconds.append(clock.seconds(x.device) - began)
    correct = torch.stack(columns, 1).cpu()
    return Answered(correct, seconds, meters, parts, torch.cat(found).cpu(), rejected)


def _under(attack: Attack, attacked: Attacked, right: Tensor) -> tuple[Tensor, Tensor, int]:
    """The attacked images, which are still right, and how many successes did not hold; images not
    `right` are left alone.
    """
    todo, rejected = right.nonzero().flatten(), 0
    adversarial, standing = attacked.x.clone(), torch.zeros_like(right)
    if len(todo):
        given = replace(attacked.of(todo), tell=attacked.tell)
        points, broken = in_batches(attack, given)
        really = confirmed(given, points, broken) if not given.parts else _held(given.parts)
        rejected = int((broken & ~really).sum())
        adversarial[todo], standing[todo] = points, ~really
        attacked.parts[:] = [part.among(todo, len(right)) for part in attacked.parts]
    return adversarial, standing, rejected


def _held(parts: list[Part]) -> Tensor:
    """Which images [B] an attack broke whose parts were confirmed one by one."""
    return torch.stack([part.broken for part in parts]).any(0)


def _keys(seed: int, x: Tensor, y: Tensor, duplicates: dict[int, int]) -> list[int]:
    """The images' keys; the n-th copy of the same image and label gets one of its own."""
    found = []
    for key in image_keys(seed, x, y):
        duplicates[key] = copy = duplicates.get(key, -1) + 1
        found.append(key + copy)
    return found


def _examples(model: nn.Module, x: Tensor, adversarial: Tensor, y: Tensor) -> Examples:
    with torch.no_grad():
        before, after = model(x).argmax(1), model(adversarial).argmax(1)
    return Examples(x.cpu(), adversarial.cpu(), y.cpu(), before.cpu(), after.cpu())
