"""Checks that only ask: does the model answer twice alike, with logits, and stay as it is?"""

import cProfile
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from gratis.evaluate.checks.outcome import Outcome
from gratis.evaluate.checks.subject import Subject
from gratis.evaluate.mode import as_evaluated

REPEATS = 5
SAME = 1e-4
"""How far unit-normalised logits may differ between two askings (AutoAttack's flag)."""
ROUNDED = 1e-2
"""And where a batch is asked in halves: a model that computes in bfloat16 by itself rounds so."""

PRICE = REPEATS / 3


@dataclass
class Answers:
    """What asking every image five times showed.

    differ, probabilities: bool [N].  otherwise: images whose clean answer is not the evaluation's.
    traced: functions of autograd that the model called.  changed: tensors that moved.
    training: modules in training mode while the model answered in evaluation.
    """

    differ: Tensor
    probabilities: Tensor
    otherwise: int
    traced: tuple[str, ...]
    changed: tuple[str, ...]
    training: tuple[str, ...]


def asked(subject: Subject) -> Answers:
    """Ask the model about every image; tells `subject` how many classes there are.

    ValueError where the images are not as many as the evaluation saw.
    """
    model = subject.model
    differ, probabilities, right = [], [], []
    traced: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    with as_evaluated(model):
        before = _state(model)
        for number, (x, y) in enumerate(subject.batches()):
            x, y = x.to(subject.device), y.to(subject.device)
            with torch.no_grad():
                if number == 0:
                    with autograd_calls() as calls:
                        answers = [model(x)]
                    traced = tuple(sorted(calls))
                    training = tuple(n or "itself" for n, m in model.named_modules() if m.training)
                else:
                    answers = [model(x)]
                answers += [model(x) for _ in range(REPEATS - 2)]
                halves = x.tensor_split(2) if len(x) > 1 else (x,)
                apart = torch.cat([model(half) for half in halves])
            subject.meter.forwards += REPEATS * len(x)
            if number == 0:
                subject.classes = answers[0].shape[1]
                subject.differentiable = _differentiable(model, x)
            differ.append((_differ(answers) | _elsewhere(answers[0], apart)).cpu())
            probabilities.append(_probabilities(answers[0]).cpu())
            right.append(subject.task.correct(answers[0], y).cpu())
        changed = tuple(
            name for name, value in _state(model).items() if not _same(before.get(name), value)
        )
    if sum(map(len, right)) != subject.images:
        raise ValueError(
            f"batches() gives {sum(map(len, right))} images, the evaluation has {subject.images}; "
            "give the same images in the same order"
        )
    otherwise = int((torch.cat(right) != subject.right).sum())
    found = Answers(
        torch.cat(differ), torch.cat(probabilities), otherwise, traced, changed, training
    )
    subject.randomised = bool(found.differ.any())
    return found


def _differ(answers: list[Tensor]) -> Tensor:
    """Whether the predictions [B] or the directions of the logits differ between the askings."""
    first, *others = (answer.double() for answer in answers)
    unit = torch.nn.functional.normalize(first, dim=1)
    out = torch.zeros(len(first), dtype=torch.bool, device=first.device)
    for other in others:
        far = (torch.nn.functional.normalize(other, dim=1) - unit).abs().amax(1)
        out |= (other.argmax(1) != first.argmax(1)) | ~(far < SAME) & unit.isfinite().all(1)
    return out


def _elsewhere(answers: Tensor, apart: Tensor) -> Tensor:
    """Whether logits point elsewhere [B] where an image is asked among others; rounding may."""
    one, other = (torch.nn.functional.normalize(a.double(), dim=1) for a in (answers, apart))
    return ~((one - other).abs().amax(1) < ROUNDED) & one.isfinite().all(1)


def _probabilities(logits: Tensor) -> Tensor:
    """Whether each row [B, K] lies in [0, 1] and sums to 1."""
    logits = logits.double()
    inside = ((logits >= 0) & (logits <= 1)).all(1)
    return inside & ((logits.sum(1) - 1).abs() < 1e-3)


def _differentiable(model: nn.Module, x: Tensor) -> bool:
    """Whether the output is connected with the input at all."""
    with torch.enable_grad():
        return bool(model(x[:1].detach().requires_grad_()).requires_grad)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().clone()
        for name, value in (*model.named_parameters(), *model.named_buffers())
    }


def _same(before: Tensor | None, after: Tensor) -> bool:
    return before is not None and torch.equal(before.nan_to_num(), after.nan_to_num())


@contextmanager
def autograd_calls() -> Iterator[set[str]]:
    """Collects the functions of torch.autograd that are called inside, however imported."""
    watched: dict[CodeType, str] = {
        torch.autograd.grad.__code__: "autograd.grad",
        torch.autograd.backward.__code__: "autograd.backward",
    }
    called: set[str] = set()
    profile = sys.getprofile()

    def look(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in watched:
            called.add(watched[frame.f_code])

    sys.setprofile(look)
    try:
        yield called
    finally:
        # before Python 3.12 cProfile stands there as an object that nothing but itself can start
        sys.setprofile(profile if callable(profile) else None)
        if isinstance(profile, cProfile.Profile):
            profile.enable()


def randomised(subject: Subject, answers: Answers) -> Outcome:
    count = int(answers.differ.sum())
    return Outcome(
        subject.percent(answers.differ),
        f"{count} of {subject.images} images were answered otherwise when asked {REPEATS} times",
    )


def probabilities(subject: Subject, answers: Answers) -> Outcome:
    count = int(answers.probabilities.sum())
    return Outcome(
        subject.percent(answers.probabilities),
        f"{count} of {subject.images} outputs lie in [0, 1] and sum to 1",
    )


def dynamic(answers: Answers) -> Outcome:
    signs = [*(f"{call} inside the forward" for call in answers.traced)]
    if answers.changed:
        signs.append(f"{answers.changed[0]} and {len(answers.changed) - 1} more tensors changed")
    return Outcome(float(len(signs)), "; ".join(signs) or "nothing optimised, nothing changed")
