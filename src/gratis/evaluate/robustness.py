"""Clean and robust accuracy of a model under stated attacks."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gratis.attacks import Attack, Attacked, build_attack
from gratis.attacks.search import image_key
from gratis.balls import Ball
from gratis.budget import Meter
from gratis.tasks import Classification

Progress = Callable[[int], None]


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
    seconds, meters: one for each column.  examples: the first images under the last attack.
    """

    attacks: tuple[str, ...]
    correct: Tensor
    robust: Tensor
    seconds: tuple[float, ...]
    meters: tuple[Meter, ...]
    examples: Examples | None


def robust_accuracy(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    attacks: Sequence[str],
    *,
    ball: Ball,
    task: Classification | None = None,
    seed: int = 0,
    examples: int = 0,
    progress: Progress | None = None,
) -> Robustness:
    """Evaluate `model` (images in the ball's range -> logits [B, K]) in eval mode and fp32.

    loader: any iterable of (x, y), x [B, C, H, W], y [B].
    attacks: names such as "pgd-50-10" or "pgd-50-10:alpha=0.01".
    Random starts are a function of (seed, an image's pixels and label, restart), never of its
    place in a batch. The model's mode, gradients and running statistics are left as they were.
    examples: how many images to keep for pictures.  progress: called with images done so far.
    """
    task = task or Classification()
    plan = [build_attack(name) for name in attacks]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seconds = [0.0] * (1 + len(plan))
    meters = [Meter() for _ in range(1 + len(plan))]
    rows: list[Tensor] = []
    kept: Examples | None = None
    duplicates: dict[int, int] = {}
    done = 0
    with as_evaluated(model):
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            ball.check(x)
            clock = time.perf_counter()
            with torch.no_grad():
                logits = model(x)
            meters[0].forwards += len(x)
            right = task.correct(logits, y)
            seconds[0] += time.perf_counter() - clock
            keys = [
                _key(seed, image, int(label), duplicates) for image, label in zip(x, y, strict=True)
            ]
            columns, adversarial = [right], x
            for place, attack in enumerate(plan, 1):
                clock = time.perf_counter()
                adversarial, standing = _under(
                    attack, model, x, y, right, ball, task, keys, meters[place]
                )
                columns.append(standing)
                seconds[place] += time.perf_counter() - clock
            if examples and kept is None:
                kept = _examples(model, x[:examples], adversarial[:examples], y[:examples])
            rows.append(torch.stack(columns, 1).cpu())
            done += len(x)
            if progress:
                progress(done)
    if not rows:
        raise ValueError("no images to evaluate: the loader was empty")
    correct = torch.cat(rows)
    return Robustness(tuple(attacks), correct, correct.all(1), tuple(seconds), tuple(meters), kept)


def _under(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    right: Tensor,
    ball: Ball,
    task: Classification,
    keys: list[int],
    meter: Meter,
) -> tuple[Tensor, Tensor]:
    """The attacked images and which are still right; misclassified ones are left alone."""
    todo = right.nonzero().flatten()
    adversarial, standing = x.clone(), torch.zeros_like(right)
    if len(todo):
        whole = Attacked(model, x, y, ball, task.losses, task.correct, keys, meter)
        points, broken = attack(whole.of(todo))
        adversarial[todo], standing[todo] = points, ~broken
    return adversarial, standing


def _key(seed: int, image: Tensor, label: int, duplicates: dict[int, int]) -> int:
    """The image's key; the n-th copy of the same image and label gets one of its own."""
    key = image_key(seed, image, label)
    duplicates[key] = copy = duplicates.get(key, -1) + 1
    return key + copy


def _examples(model: nn.Module, x: Tensor, adversarial: Tensor, y: Tensor) -> Examples:
    with torch.no_grad():
        before, after = model(x).argmax(1), model(adversarial).argmax(1)
    return Examples(x.cpu(), adversarial.cpu(), y.cpu(), before.cpu(), after.cpu())


@contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode, parameters without gradients and no autocast; all put back on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    device = next((p.device.type for p, _ in wanted), "cpu")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
