"""M14: is the gradient the slope? Which module is to blame, and what BPDA then finds."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gratis.attacks import build_attack
from gratis.evaluate.checks.outcome import Outcome
from gratis.evaluate.checks.paired import NEAR
from gratis.evaluate.checks.rules import RULES
from gratis.evaluate.checks.subject import Subject, thirds
from gratis.evaluate.mode import as_evaluated
from gratis.evaluate.robustness import robust_accuracy
from gratis.losses import margin

IMAGES = 32
DIRECTIONS = 8
STEP = 1e-7
"""Of the differences, in pixels: so short that a ReLU's kink is rarely met, long in float64."""
TOLERANCE = 0.05
FLAT = 1e-6
"""A slope so small, as a share of the values, is none; then a step across the ball is tried."""
BPDA_IMAGES = 100
AGREE = RULES["M14"].passes or 0.0

Function = Callable[[Tensor], Tensor]
"""Inputs [B, ...] -> one number each, [B]."""


def price(subject: Subject) -> float | str:
    if not subject.differentiable:
        return "the output carries no gradient, see M9"
    if subject.randomised:
        return "differences of a randomised model are noise, see M15"
    differences = 2 + DIRECTIONS * 4
    looked = differences / 3 * subject.share(subject.first(IMAGES))
    # only after a failure: its modules one by one, and an attack past them
    rerun = (thirds(build_attack(NEAR), subject.ball, subject.classes) + 2) / 3
    return 2 * looked + rerun * subject.share(subject.first(BPDA_IMAGES))


def measured(subject: Subject) -> Outcome:
    """The share of (image, direction) pairs in which gradient and difference agree."""
    x, y = subject.at_once(IMAGES)
    ball, reach = subject.ball, max(subject.ball.eps / 2, STEP)
    generator = torch.Generator().manual_seed(subject.seed)
    try:
        model = copy.deepcopy(subject.model).double()
        with as_evaluated(model), torch.no_grad():
            dtype = model(x[:1].double()).dtype
    except (RuntimeError, TypeError, NotImplementedError) as error:
        first = str(error).partition("\n")[0][:80]
        return Outcome(None, f"not applicable: no float64 copy of the model works ({first})")
    if dtype != torch.float64:
        return Outcome(None, "not applicable: the model does not compute in float64")
    # next to the image, where pixels are not alike and within the box whatever is added
    room = min(ball.eps, (ball.high - ball.low) / 4) / 10 + STEP
    point = x.double().clamp(ball.low + 2 * room, ball.high - 2 * room)
    point = point + room * (2 * _uniform(point, generator) - 1)

    def value(inputs: Tensor) -> Tensor:
        subject.meter.forwards += len(inputs)
        return margin(model(inputs), y)

    with as_evaluated(model):
        agree = agreement(value, point, reach, generator, lambda p: p.clamp(ball.low, ball.high))
        # the first of the values was the forward of a gradient
        subject.meter.forwards -= len(x)
        subject.meter.probes += len(x)
        percent = 100 * float(agree.double().mean())
        shown = f"gradient and difference agree in {percent:.1f} % of {agree.numel()} comparisons"
        if percent > AGREE:
            return Outcome(percent, shown, len(x))
        named = blamed(subject, model, point, generator)
    return Outcome(percent, f"{shown}; {_past(subject, named)}", len(x))


def agreement(
    function: Function, point: Tensor, reach: float, generator: torch.Generator, fit: Function
) -> Tensor:
    """Whether autograd's slope is the difference's, bool [B, DIRECTIONS].

    Both may be zero: then a step of `reach` either way, cut by `fit`, must change nothing either.
    """
    inputs = point.detach().requires_grad_()
    with torch.enable_grad():
        values = function(inputs.clone())  # what works in place may not touch a leaf
        if not values.requires_grad:
            return torch.zeros(len(point), DIRECTIONS, dtype=torch.bool)
        (grad,) = torch.autograd.grad(values.sum(), inputs, allow_unused=True)
    grad = torch.zeros_like(point) if grad is None else grad
    least = FLAT * (1 + values.detach().abs())
    columns = []
    with torch.no_grad():
        for _ in range(DIRECTIONS):
            way = (_uniform(point, generator) < 0.5).to(point) * 2 - 1
            slope = (grad * way).flatten(1).sum(1)
            seen = (function(point + STEP * way) - function(point - STEP * way)) / (2 * STEP)
            largest = torch.maximum(slope.abs(), seen.abs())
            same = (slope - seen).abs() <= TOLERANCE * largest
            flat = largest <= least
            if bool(flat.any()):
                far = function(fit(point + reach * way)) - function(fit(point - reach * way))
                same = torch.where(flat, far.abs() <= 1e3 * least, same)
            columns.append(same)
    return torch.stack(columns, 1)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype).to(like.device)


@dataclass
class Blamed:
    """A module whose own gradient is not its slope; shaped: its output is shaped like its input."""

    name: str
    kind: str
    shaped: bool


def blamed(
    subject: Subject, model: nn.Module, point: Tensor, generator: torch.Generator
) -> list[Blamed]:
    """The modules that disagree while none inside them does; the model itself if none other."""
    inputs: dict[str, Tensor] = {}
    entered: dict[str, list[Tensor | None]] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[object, ...]) -> None:
            alone = given[0] if len(given) == 1 and isinstance(given[0], Tensor) else None
            # a copy: the module may work in place
            kept = None if alone is None else alone.detach().clone()
            entered.setdefault(name, []).append(kept)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[object, ...], out: object) -> None:
            kept = entered[name].pop()
            if kept is not None and isinstance(out, Tensor):
                inputs.setdefault(name, kept)

        return hook

    few = point[:4]
    handles = [
        handle
        for name, module in model.named_modules()
        for handle in (
            module.register_forward_pre_hook(enter(name)),
            module.register_forward_hook(leave(name)),
        )
    ]
    with torch.no_grad():
        model(few.clone())
    for handle in handles:
        handle.remove()
    subject.meter.forwards += len(few)
    modules = dict(model.named_modules())
    wrong = [
        name
        for name, given in inputs.items()
        if given.is_floating_point() and not _agrees(modules[name], given, generator)
    ]
    subject.meter.forwards += len(few) * (2 + DIRECTIONS * 4)  # all the modules are one model
    inner = [
        name
        for name in wrong
        if not any(
            other != name and other.startswith(f"{name}." if name else "") for other in wrong
        )
    ]
    with torch.no_grad():
        return [
            Blamed(
                name,
                type(modules[name]).__name__,
                modules[name](inputs[name].clone()).shape == inputs[name].shape,
            )
            for name in inner or [""]
        ]


def _agrees(module: nn.Module, given: Tensor, generator: torch.Generator) -> bool:
    """Whether most slopes of a random mixture of the module's outputs are right."""
    spread = float(given.std()) if given.numel() > 1 else 1.0
    # equal inputs of a maximum have no one slope
    given = given + 1e-3 * (spread or 1.0) * _uniform(given, generator)
    with torch.no_grad():
        weights = _uniform(module(given.clone()), generator) - 0.5

    def mixture(inputs: Tensor) -> Tensor:
        out: Tensor = module(inputs)
        return (out * weights).flatten(1).sum(1)

    agree = agreement(mixture, given, 0.25 * (spread or 1.0), generator, lambda inputs: inputs)
    return 100 * float(agree.double().mean()) > AGREE


class StraightThrough(nn.Module):
    """A module's output [B, ...] with the identity as its backward (BPDA, Athalye 2018)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return x + (out - x).detach()


def _past(subject: Subject, named: list[Blamed]) -> str:
    """Which modules are to blame, and what PGD-10 finds with an identity backward for them."""
    listed = ", ".join(f"{b.name} ({b.kind})" if b.name else b.kind for b in named)
    if not all(b.name and b.shaped for b in named):
        return (
            f"in {listed}; make the step a module of its own, shaped alike in and out, to have "
            "it attacked with an identity backward"
        )
    model = copy.deepcopy(subject.model)
    for blame in named:
        parent, _, last = blame.name.rpartition(".")
        step = StraightThrough(model.get_submodule(blame.name))
        setattr(model.get_submodule(parent), last, step)
    tried = subject.first(BPDA_IMAGES)
    loader = ((x, y) for _, x, y in subject.chosen(tried))
    found = robust_accuracy(
        model, loader, [NEAR], ball=subject.ball, task=subject.task, seed=subject.seed
    )
    for meter in found.meters:
        subject.meter.add(meter)
    before = int((subject.found.robust & tried).sum())
    return (
        f"in {listed}; with an identity backward for it {NEAR} leaves {int(found.robust.sum())} "
        f"of {int(tried.sum())} images standing, the evaluation {before}"
    )
