"""Auto-PGD: projected gradient with momentum whose step size looks after itself."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gratis.attacks.search import Attacked, Search, generator_for
from gratis.balls import Ball
from gratis.losses import dlr, dlr_towards

MOMENTUM = 0.75
CLASSES_NEEDED = {"ce": 2, "dlr": 3, "dlr-t": 4}
RISES = 0.75
"""A step size goes on as long as the loss rises in this share of the steps between checks."""
STEPS_BETWEEN_DROPS = 10


@dataclass(frozen=True)
class APGD:
    """APGD-`steps` on cross entropy ("ce"), DLR ("dlr") or targeted DLR ("dlr-t").

    The step starts at 2 eps and is halved, back at the best point so far, where the loss
    oscillates or no longer improves. "dlr-t" goes towards each of the `targets` best other
    classes of the clean answer in turn (as many as there are).
    Source: Croce & Hein 2020, algorithm 1, section 4; released apgd code.
    Differs from the code: everything random is a function of the image's key; at the first
    check the first loss is compared with the start's, where the code compares it with 0; broken
    images leave the search. Linf and L2 alone.
    """

    name: str
    loss: Literal["ce", "dlr", "dlr-t"] = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9

    def parameters(self, ball: Ball) -> dict[str, float | int | str]:
        named = {"ce": "cross-entropy", "dlr": "dlr", "dlr-t": "targeted dlr"}
        return {
            "loss": named[self.loss],
            "steps": self.steps,
            "restarts": self.restarts,
            **({"targets": self.targets} if self.loss == "dlr-t" else {}),
            "start": "random",
        }

    def __call__(self, attacked: Attacked) -> tuple[Tensor, Tensor]:
        """Attack images that the model gets right; see Attack.

        Raises ValueError where there are too few classes for the loss.
        """
        x, ball = attacked.x, attacked.ball
        answers = self._answers(attacked)
        adversarial, broken = attacked.unbroken()
        rounds = [(r, t) for r in range(self.restarts) for t in self._targets(answers)]
        for restart, target in rounds:
            todo = (~broken).nonzero().flatten()
            if not len(todo):
                break
            part = attacked.of(todo)
            search = self._search(part, None if answers is None else answers[todo], target)
            random = [generator_for(key, restart, target) for key in part.keys]
            delta = _start(x[todo], ball, random)
            adversarial[todo], broken[todo] = _climb(search, x[todo], ball, delta, self.steps)
        return adversarial, broken

    def _answers(self, attacked: Attacked) -> Tensor | None:
        """The clean logits, where the loss depends on how the classes are ranked there."""
        if self.loss == "ce":
            return None
        with torch.no_grad():
            logits: Tensor = attacked.model(attacked.x)
        attacked.meter.forwards += len(attacked.x)
        classes, needed = logits.shape[1], CLASSES_NEEDED[self.loss]
        if classes < needed:
            raise ValueError(
                f"{self.name} needs {needed} classes or more, the model has {classes}; "
                "use apgd-ce or cw instead"
            )
        return logits

    def _targets(self, answers: Tensor | None) -> range:
        """The ranks of the classes to go towards, 1 being the best other one; or one untargeted."""
        if self.loss != "dlr-t":
            return range(1)
        assert answers is not None
        return range(1, min(self.targets, answers.shape[1] - 1) + 1)

    def _search(self, attacked: Attacked, answers: Tensor | None, target: int) -> Search:
        if self.loss != "dlr-t":
            return Search(attacked, dlr if self.loss == "dlr" else None)
        assert answers is not None

        def towards(logits: Tensor, labels: Tensor) -> Tensor:
            assert search.towards is not None
            return dlr_towards(logits, labels, search.towards)

        search = Search(attacked, towards)
        others = answers.scatter(1, attacked.y.unsqueeze(1), -torch.inf)
        search.towards = others.argsort(1, descending=True)[:, target - 1]
        return search


def _start(x: Tensor, ball: Ball, random: list[torch.Generator]) -> Tensor:
    """A start on the boundary of the ball, in a random direction, then cut to the pixel box."""
    shape = x.shape[1:]
    if ball.norm == "linf":
        drawn = torch.stack([2 * torch.rand(shape, generator=g) - 1 for g in random])
    else:
        drawn = torch.stack([torch.randn(shape, generator=g) for g in random])
    drawn = drawn.to(x)
    length = ball.size(drawn).view(-1, *[1] * len(shape)).clamp_min(1e-12)
    return ball.project(x, ball.eps * drawn / length)


@dataclass
class _State:
    """Where the search of each image stands; every tensor [n, ...], so that images can leave."""

    rows: Tensor  # places among the images that the search began with
    x: Tensor
    delta: Tensor
    before: Tensor  # the delta of the step before
    grad: Tensor
    value: Tensor
    best: Tensor  # the delta of the highest loss so far
    best_grad: Tensor
    best_value: Tensor
    step: Tensor
    rises: Tensor  # steps since the last check that raised the loss
    checked_value: Tensor  # the highest loss at the last check
    halved: Tensor  # whether the step was halved there

    def keep(self, chosen: Tensor) -> None:
        for name, tensor in vars(self).items():
            setattr(self, name, tensor[chosen])

    def shaped(self, per_image: Tensor) -> Tensor:
        return per_image.view(-1, *[1] * (self.x.dim() - 1))


def _climb(
    search: Search, x: Tensor, ball: Ball, delta: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """(points, fooled) after `steps` steps from `delta`, as Attack returns them."""
    points, fooled = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    state = _begun(search, x, ball, delta)
    checks = _checks(steps)
    since = 0
    for step in range(steps):
        _step(search, state, ball, MOMENTUM if step else 1.0)
        since += 1
        if step in checks:
            _check(state, since)
            since = 0
        if (step + 1) % STEPS_BETWEEN_DROPS == 0 or step + 1 == steps:
            points[state.rows] = ball.place(state.x, state.delta)
            out = search.fooled
            points[state.rows[out]], fooled[state.rows[out]] = search.found[out], True
            left = (~out).nonzero().flatten()
            if not len(left):
                break
            if len(left) < len(out):
                search.keep(left)
                state.keep(left)
    return points, fooled


def _begun(search: Search, x: Tensor, ball: Ball, delta: Tensor) -> _State:
    grad = search.grad(ball.place(x, delta))
    value = search.values
    return _State(
        rows=torch.arange(len(x), device=x.device),
        x=x,
        delta=delta,
        before=delta,
        grad=grad,
        value=value,
        best=delta,
        best_grad=grad,
        best_value=value,
        step=torch.full_like(value, 2 * ball.eps),
        rises=torch.zeros_like(value),
        checked_value=value,
        halved=torch.ones_like(value, dtype=torch.bool),
    )


def _step(search: Search, state: _State, ball: Ball, momentum: float) -> None:
    """One step along the gradient, `momentum` of it, the rest along the step before."""
    stepped = ball.project(
        state.x, state.delta + state.shaped(state.step) * ball.steepest(state.grad)
    )
    drift = state.delta - state.before
    state.before, state.delta = (
        state.delta,
        ball.project(
            state.x, state.delta + momentum * (stepped - state.delta) + (1 - momentum) * drift
        ),
    )
    grad = search.grad(ball.place(state.x, state.delta))
    # a gradient that is no number leads nowhere: stay where the last one was
    finite = state.shaped(torch.isfinite(grad.flatten(1)).all(1))
    state.grad = torch.where(finite, grad, torch.zeros_like(grad))
    value = search.values
    state.rises = state.rises + (value > state.value)
    state.value = value
    better = value > state.best_value
    state.best_value = torch.where(better, value, state.best_value)
    state.best = torch.where(state.shaped(better), state.delta, state.best)
    state.best_grad = torch.where(state.shaped(better), state.grad, state.best_grad)


def _check(state: _State, since: int) -> None:
    """Halve the steps that do not pay, and go back to the best points."""
    stuck = ~state.halved & (state.best_value <= state.checked_value)
    halve = (state.rises <= RISES * since) | stuck
    state.checked_value, state.halved = state.best_value, halve
    state.step = torch.where(halve, state.step / 2, state.step)
    state.delta = torch.where(state.shaped(halve), state.best, state.delta)
    state.grad = torch.where(state.shaped(halve), state.best_grad, state.grad)
    state.rises = torch.zeros_like(state.rises)


def _checks(steps: int) -> set[int]:
    """The steps (from 0) after which step sizes are looked at: at first after 22 % of all, then
    at intervals that shrink by 3 % down to 6 %.
    """
    interval, least, shrink = (max(1, int(share * steps)) for share in (0.22, 0.06, 0.03))
    found, place = set(), interval - 1
    while place < steps:
        found.add(place)
        interval = max(interval - shrink, least)
        place += interval
    return found
