"""One image after the other up the ladder: clean, attacks, CROWN, alpha-CROWN, complete search."""

import copy
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gratis.attacks import Attacked, build_attack
from gratis.attacks.search import image_keys
from gratis.balls import Linf
from gratis.budget import Meter
from gratis.evaluate.mode import as_evaluated
from gratis.losses import margin
from gratis.tasks import Classification
from gratis.verify.bounds import ROUNDING, Box, crown_bounds, lines, lower_bound, margin_rows
from gratis.verify.lower import lowered
from gratis.verify.nodes import Problem, roots
from gratis.verify.search import Search, timed
from gratis.verify.slopes import improved, sharpened
from gratis.verify.solver import installed

RUNGS = ("clean", "attack", "crown", "alpha", "second attack", "sharpen", "branch", "lp", "milp")
"""From cheap to dear; each sees what the ones before have left."""

VERDICTS = ("safe", "unsafe", "undecided", "misclassified")

LEAST_MARGIN = 1e-6
"""A margin counts as proved above LEAST_MARGIN, and above ROUNDING times the largest sum of
absolute terms that bounds pass through."""

CLASSES_FOR_TARGETED = 4


@dataclass(frozen=True)
class Settings:
    """How hard an image is tried; only whether it stays undecided depends on it.

    attack: tried on every image, in float32.  second_attack: on those that CROWN leaves; used
    with four classes or more.  alpha_steps: Adam steps on the slopes.
    time_limit: seconds of branch and bound and linear programs an image, and as many again of
    integer programs.
    """

    attack: str = "cw-50-2"
    second_attack: str = "apgd-t"
    alpha_steps: int = 40
    time_limit: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.time_limit > 0:
            raise ValueError(f"a time limit of {self.time_limit} s leaves no time; give more")


@dataclass(frozen=True)
class Verdict:
    """What is known of one image.

    bound: all over the ball, the label's logit exceeds every other by at least this, in reals;
    None where nothing was proved (only "safe" asserts it is positive).
    rung: which one decided, the last one where none did.  nodes: subproblems bounded.
    point: a float32 image [1, C, H, W] inside the ball; margins: the best other logit minus the
    label's there, in float32 and in float64, both above 0.
    """

    verdict: Literal["safe", "unsafe", "misclassified", "undecided"]
    rung: str
    bound: float | None = None
    nodes: int = 0
    point: Tensor | None = None
    margins: tuple[float, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Verifier:
    """Complete verification of `model` on images of `shape` (C, H, W) within a Linf ball.

    ValueError for a network that is not piecewise linear and sequential: see `lowered`.
    """

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], ball: Linf, settings: Settings
    ) -> None:
        self.network = lowered(model, shape)
        self.model = model
        self.double = copy.deepcopy(model).double()
        self.ball, self.settings, self.task = ball, settings, Classification()
        self.solvers = installed()

    def question(self) -> dict[str, Any]:
        """What the verdicts are about, for records: they hold whatever the settings were."""
        low, high = self.ball.low, self.ball.high
        return {
            "network_sha256": self.network.sha256,
            "threat": {"norm": self.ball.norm, "eps": self.ball.eps},
            **({} if (low, high) == (0.0, 1.0) else {"pixels": [low, high]}),
            "least_margin": [LEAST_MARGIN, ROUNDING],
        }

    def enough(self, x: Tensor) -> float:
        """What a margin must exceed on images like x to count as proved."""
        largest = self.network.magnitude(x, max(abs(self.ball.low), abs(self.ball.high)))
        return max(LEAST_MARGIN, ROUNDING * largest)

    # --- points

    def margins(self, point: Tensor, label: int) -> tuple[float, float]:
        """Best other logit minus the label's in float32 and float64, point [1, C, H, W]."""
        y = torch.tensor([label], device=point.device)
        with as_evaluated(self.model), as_evaluated(self.double), torch.no_grad():
            single = margin(self.model(point), y)
            return float(single), float(margin(self.double(point.double()), y))

    def confirm(self, x: Tensor, label: int, point: Tensor) -> Tensor | None:
        """`point` moved into the ball, float32, if both precisions misclassify it there.

        The ball is that of real numbers: |point - x| <= eps and 0 <= point <= 1 hold exactly for
        the float32 pixels.
        """
        box = Box.around(x, self.ball.eps, self.ball.low, self.ball.high)
        inside = point.double().clamp(box.low, box.high).float()
        for limit, beyond in ((box.high, torch.gt), (box.low, torch.lt)):
            towards = torch.nextafter(inside, x)  # x lies in the box, so this is inwards
            inside = torch.where(beyond(inside.double(), limit), towards, inside)
        if not ((inside.double() >= box.low) & (inside.double() <= box.high)).all():
            return None
        return inside if min(self.margins(inside, label)) > 0 else None

    def attacked(self, name: str, x: Tensor, y: Tensor) -> list[Tensor | None]:
        """A confirmed counterexample or None for each image of x [B, C, H, W]."""
        found: list[Tensor | None] = [None] * len(x)
        with as_evaluated(self.model), torch.no_grad():
            right = self.task.correct(self.model(x), y).nonzero().flatten()
        if not len(right):
            return found
        with as_evaluated(self.model):
            keys = image_keys(self.settings.seed, x[right], y[right])
            points, broken = build_attack(name)(
                Attacked(
                    self.model,
                    x[right],
                    y[right],
                    self.ball,
                    self.task.losses,
                    self.task.correct,
                    keys,
                    Meter(),
                )
            )
        for place, index in enumerate(right.tolist()):
            if broken[place]:
                one = slice(index, index + 1)
                found[index] = self.confirm(x[one], int(y[index]), points[place : place + 1])
        return found

    # --- the ladder

    def verdict(self, x: Tensor, label: int, attacked: Tensor | None = None) -> Verdict:
        """The verdict on one image x [1, C, H, W], float32, in the ball's pixel range.

        attacked: the counterexample of the first attack (`attacked`), where it found one.
        ValueError for several images, or pixels out of range: nothing could be said of those.
        """
        if len(x) != 1:
            raise ValueError(f"x holds {len(x)} images; give one, as x[i : i + 1]")
        self.ball.check(x)
        seconds: dict[str, float] = {}

        def unsafe(rung: str, point: Tensor, nodes: int = 0) -> Verdict:
            margins = self.margins(point, label)
            return Verdict("unsafe", rung, None, nodes, point, margins, seconds)

        with timed(seconds, "clean"):
            if not self._right(x, label):
                return Verdict("misclassified", "clean", seconds=seconds)
        if attacked is not None:
            return unsafe("attack", attacked)
        enough = self.enough(x)
        targets = torch.arange(self.network.classes, device=x.device)
        targets = targets[targets != label]
        with timed(seconds, "crown"), torch.no_grad():
            box = Box.around(x, self.ball.eps, self.ball.low, self.ball.high)
            bounds = crown_bounds(self.network, box)
            rows = margin_rows(self.network, label, targets)
            values = lower_bound(self.network, rows, [lines(*b) for b in bounds], box).values[0]
        proved = values > enough
        if proved.all():
            return Verdict("safe", "crown", float(values.min()), seconds=seconds)
        problem = Problem(self.network, box, label, tuple(bounds))
        with timed(seconds, "alpha"):
            nodes = roots(problem, targets[~proved])
            nodes = improved(problem, nodes, self.settings.alpha_steps, enough)
        done = nodes.value > enough
        kept = [*values[proved].tolist(), *nodes.value[done].tolist()]
        if done.all():
            return Verdict("safe", "alpha", min(kept), seconds=seconds)
        if self.network.classes >= CLASSES_FOR_TARGETED:
            with timed(seconds, "second attack"):
                y = torch.tensor([label], device=x.device)
                (point,) = self.attacked(self.settings.second_attack, x, y)
            if point is not None:
                return unsafe("second attack", point)
        nodes = nodes.take(~done)
        with timed(seconds, "sharpen"):
            problem = sharpened(problem, self.settings.alpha_steps // 2)
            again = improved(
                problem, roots(problem, nodes.target), self.settings.alpha_steps, enough
            )
            # what was proved before stays proved
            nodes = replace(again, value=torch.maximum(again.value, nodes.value))
        done = nodes.value > enough
        kept += nodes.value[done].tolist()
        if done.all():
            return Verdict("safe", "sharpen", min(kept), seconds=seconds)
        search = Search(
            enough,
            self.settings.alpha_steps,
            self.settings.time_limit,
            self.solvers,
            lambda point: self.confirm(x, label, point),
        )
        rung, found = search.run(problem, nodes.take(~done), seconds)
        if found.point is not None:
            return unsafe(rung, found.point, found.nodes)
        least = min([found.value, *kept])
        return Verdict(
            "safe" if found.outcome == "proved" else "undecided",
            rung,
            least if isfinite(least) else None,
            found.nodes,
            seconds=seconds,
        )

    def _right(self, x: Tensor, label: int) -> bool:
        y = torch.tensor([label], device=x.device)
        with as_evaluated(self.model), as_evaluated(self.double), torch.no_grad():
            precise = self.double(x.double())
            right = self.task.correct(self.model(x), y) & self.task.correct(precise, y)
        ours = self.network.logits(x)
        if not torch.allclose(ours, precise, rtol=1e-9, atol=1e-9, equal_nan=True):
            raise RuntimeError(
                "the network as bounded and the network as evaluated disagree by "
                f"{float((ours - precise).abs().max()):.3g} on an image: nothing is proved "
                "(a layer with hooks or parametrizations?)"
            )
        return bool(right)
