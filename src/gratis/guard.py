"""Checks on held-out training images while a run goes on, and what is done about a collapse.

Catastrophic overfitting (Wong 2020, section 4.1): within an epoch, training on one-step
examples learns to defeat just those, and robust accuracy under PGD falls to about zero.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gratis.attacks.pgd import pgd
from gratis.balls import Ball
from gratis.budget import Meter
from gratis.data.images import Images
from gratis.evaluate import robust_accuracy
from gratis.learner import Learner
from gratis.losses import cross_entropy
from gratis.passes import Batch, Method
from gratis.prober import Prober
from gratis.recipe import Recipe

COLLAPSED = 0.5
"""Robust accuracy below this share of the best so far counts as a collapse ..."""
STANDARD_ERRORS = 3
"""... if the fall is also this many standard errors of the check."""
MASKED = 0.15
"""So does robust accuracy below this share of the accuracy on the examples trained on: a network
that was never robust, but defeats the one-step examples that it is shown. Healthy runs measured
here had 0.28 at least (MNIST at 0.3, early); masked ones 0.13 at most."""
MOST_CHANGES = 4
"""After so many changes the threat itself is likely too strong, and training is left alone."""
GOOD = 0.8
"""Weights within this share of the best so far are kept to fall back on."""


@dataclass(frozen=True)
class Outcome:
    """Shares of the held-out images answered rightly, clean and under the check's attack."""

    clean: float
    robust: float


class Checker:
    """PGD on fixed held-out images in eval mode and fp32, from the same starts every time.

    size: images that the network is asked about at a time.
    """

    def __init__(
        self, held_out: Images, images: int, attack: str, ball: Ball, seed: int, size: int
    ) -> None:
        chosen = held_out.select(torch.arange(min(images, len(held_out))))
        self.x, self.y = chosen.pixels(torch.arange(len(chosen))), chosen.y
        self.attack, self.ball, self.seed, self.size = attack, ball, seed, size

    def __call__(self, model: nn.Module, meter: Meter) -> Outcome:
        parts = math.ceil(len(self.x) / self.size)
        batches = zip(self.x.tensor_split(parts), self.y.tensor_split(parts), strict=True)
        found = robust_accuracy(model, batches, [self.attack], ball=self.ball, seed=self.seed)
        for spent in found.meters:
            meter.probes += spent.probes
            meter.forwards += spent.forwards
        clean, robust = found.correct.double().mean(0).tolist()
        return Outcome(clean, robust)


class Recovery:
    """Undoes a collapse: last good weights and optimizer, a gentler method, on with the budget.

    After each check `look` either keeps the weights, if they are good, or, if robust accuracy
    has collapsed, puts the last good ones back and returns a gentler method. Where there are
    none, since the network never was robust, the run starts afresh: first weights, and the
    schedule over the updates that are left. (On MNIST at 0.3 from a zero start, going on from the
    masked weights ended at 34 % under PGD-50-10, first weights in mid-schedule at 45 %.) If it
    then still answers by chance after as many updates as had taught it more before, it does so
    once more.
    """

    def __init__(self, images: int, classes: int) -> None:
        self.images, self.classes = images, classes
        self.best = 0.0
        self.started: int | None = None  # updates after which a check first found more than chance
        self.good: dict[str, Any] = {}
        self.changes: list[str] = []

    def begin(self, learner: Learner) -> None:
        """Keep the weights that a run starts with."""
        self.good = {"update": learner.updates, **_weights(learner)}

    def look(
        self, found: Outcome, trained: float, learner: Learner, method: Method, *, left: int
    ) -> tuple[Method, dict[str, Any]] | None:
        """None while all is well; after a collapse the method to go on with and what to log.

        found: by the check; trained: accuracy on the examples learned from since the last one;
        left: updates still to come.
        """
        robust, gone = found.robust, learner.updates - learner.begun
        by_chance = self._by_chance(found.clean) and self._by_chance(trained)
        if not by_chance and self.started is None:
            self.started = gone
        # begun anew and at chance where it had learned before: one-step training at a large eps
        # begins with hundreds of updates at chance, and for some seeds stays there
        stuck = by_chance and learner.begun > 0 and gone >= (self.started or math.inf)
        if not (stuck or self._fell(robust) or self._masked(robust, trained)):
            if robust >= max(GOOD * self.best, MASKED * trained) and not by_chance:
                self.good = {"update": learner.updates, **_weights(learner)}
            self.best = max(self.best, robust)
            return None
        gentler = method.gentler() if len(self.changes) < MOST_CHANGES else None
        afresh = self.good["update"] == 0
        if afresh and (gentler is None or not left):
            return None  # untrained weights are no better, and nothing would go differently
        event: dict[str, Any] = {
            "event": "restored",
            "restored_update": self.good["update"],
            "robust_accuracy": robust,
            "best_robust_accuracy": self.best,
        }
        # a copy: an optimizer takes moments as they are given, and goes on in them
        _put_back(learner, copy.deepcopy(self.good))
        if afresh:
            learner.begun = learner.updates
        if gentler is None:
            return method, event | {"change": "none is known to help this method"}
        method, change = gentler
        self.changes.append(change)
        return method, event | {"change": change}

    def _by_chance(self, share: float) -> bool:
        """Whether chance alone answers so many of the check's images rightly."""
        chance = 1 / self.classes
        error = math.sqrt(chance * (1 - chance) / self.images)
        return share <= chance + STANDARD_ERRORS * error

    def _masked(self, robust: float, trained: float) -> bool:
        # so few right answers are nothing to be suspicious of yet; so few images tell nothing
        clear = trained > self._above_chance(3) and self.images * MASKED * trained >= 3
        return clear and robust < MASKED * trained

    def _fell(self, robust: float) -> bool:
        if self.best <= self._above_chance(2):
            return False  # no robustness yet that could be lost
        error = math.sqrt(self.best * (1 - self.best) / self.images)
        return robust < COLLAPSED * self.best and self.best - robust > STANDARD_ERRORS * error

    def _above_chance(self, times: float) -> float:
        """So many times chance, but for few classes half way from chance to all right."""
        chance = 1 / self.classes
        return min(times * chance, (1 + chance) / 2)

    def again(self, method: Method) -> Method:
        """The method after the changes made so far, for a resumed run."""
        for _ in self.changes:
            gentler = method.gentler()
            assert gentler is not None
            method = gentler[0]
        return method

    def state(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "started": self.started,
            "good": self.good,
            "changes": list(self.changes),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.best, self.good, self.changes = state["best"], state["good"], state["changes"]
        self.started = state.get("started")  # checkpoints of earlier versions lack it


class EarlyStop:
    """Wong 2020's own guard (appendix B): stop where PGD-5 accuracy falls over 20 points.

    At the end of each epoch, on that epoch's first minibatch as augmented; the weights after
    the epoch before are put back. Differs from the released code: the check does not move the
    running statistics, though it uses the minibatch's own.
    """

    STEPS = 5
    FALL = 0.20

    def __init__(self, ball: Ball) -> None:
        self.ball = ball
        self.previous = 0.0
        self.kept: dict[str, Any] | None = None

    def look(self, batch: Batch, learner: Learner, meter: Meter) -> dict[str, Any] | None:
        """None while all is well; else what to log: the run is over."""
        robust = self._accuracy(batch, learner, meter)
        if robust - self.previous < -self.FALL:
            assert self.kept is not None
            _put_back(learner, self.kept)
            return {
                "event": "stopped",
                "restored_update": self.kept["update"],
                "change": "stopped early",
                "robust_accuracy": robust,
                "best_robust_accuracy": self.previous,
            }
        self.previous = robust
        self.kept = {"update": learner.updates, **_weights(learner)}
        return None

    def _accuracy(self, batch: Batch, learner: Learner, meter: Meter) -> float:
        prober, processes = Prober(learner.model, cross_entropy), learner.processes
        generator = torch.Generator(batch.x.device).manual_seed(learner.updates)
        batch = learner.placed(Batch(batch.x, batch.y, generator))

        def grad(x: Tensor) -> Tensor:
            meter.probes += len(x) * processes.world
            return prober(x, batch.y)

        delta = pgd(
            grad,
            batch.x,
            self.ball,
            steps=self.STEPS,
            step_size=self.ball.eps / 4,
            start=self.ball.into_box(batch.x, batch.draw(batch.x, self.ball.sample_unclipped)),
        )
        meter.forwards += len(batch.x) * processes.world
        with torch.no_grad(), prober.as_probed():
            logits = learner.model(self.ball.place(batch.x, delta))
        right = learner.task.correct(logits, batch.y).double().mean()
        return processes.total(right).item() / processes.world

    def state(self) -> dict[str, Any]:
        return {"previous": self.previous, "kept": self.kept}

    def load_state(self, state: dict[str, Any]) -> None:
        self.previous, self.kept = state["previous"], state["kept"]


def watchers(
    recipe: Recipe, held_out: Images
) -> tuple[Checker | None, Recovery | None, EarlyStop | None]:
    """What watches over a run of `recipe`; natural training has nothing that could collapse, and
    for boxes there is no check.
    """
    if recipe.detects:
        return None, None, None
    ball = recipe.build_method().ball if recipe.defends else None
    ball = ball or recipe.evaluation_balls()[0]  # whatever else it is evaluated at
    size = recipe.evaluation.together(recipe.data.batch_size, recipe.engine.parts)
    checker = (
        Checker(held_out, recipe.check.images, recipe.check.attack, ball, recipe.seed, size)
        if len(held_out)
        else None
    )
    mode = recipe.guard.mode if recipe.defends else "off"
    recovery = (
        Recovery(len(checker.y), len(held_out.classes)) if mode == "recover" and checker else None
    )
    return checker, recovery, EarlyStop(ball) if mode == "early-stop" else None


def _put_back(learner: Learner, state: dict[str, Any]) -> None:
    learner.load_weights(state)
    learner.replica.hook.load_state({})  # what gradients of other weights were rounded by


def _weights(learner: Learner) -> dict[str, Any]:
    state = learner.state()
    return copy.deepcopy({key: state[key] for key in ("model", "optimizer", "averaged")})
