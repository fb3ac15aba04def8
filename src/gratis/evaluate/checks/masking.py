"""Which checks run, in which order, and what they say together."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from gratis.attacks import build_attack
from gratis.balls import Ball
from gratis.budget import passes_of
from gratis.evaluate.checks import differences, outputs, points, slopes
from gratis.evaluate.checks.outcome import Check, Outcome
from gratis.evaluate.checks.paired import PAIRED
from gratis.evaluate.checks.rules import RULES, UNRELIABLE, Verdict, judged
from gratis.evaluate.checks.subject import Batches, Subject, thirds
from gratis.evaluate.robustness import Robustness
from gratis.tasks import Classification

SHARE = 0.2
"""Of what the evaluation costs at most: what quick checks may cost together."""
LEAST = 5.0
"""Passes per image that they may cost in any case: beside ten steps a fifth pays for next to none,
and a reader would take what was not looked for as not found."""

FIRST = ("M15", "M16", "M17")
"""Asked before all others, whatever they cost (5/3 of a pass): they decide what a number means."""

Progress = Callable[[int, int, str], None]
"""(checks done, checks in all, id of the next)."""


@dataclass(frozen=True)
class Finding:
    """What one check found. statistic is in the unit of pass_at; None where it did not run."""

    id: str
    name: str
    verdict: Verdict
    statistic: float | None
    shown: str
    pass_at: str
    fail_at: str
    origin: str
    about: str


@dataclass(frozen=True)
class Checks:
    """All twenty findings in their order, and what they cost.

    right: how many images were right when clean, which are those that attacks are given.
    level: "quick" or "full".  passes: for each evaluated image; seconds: wall clock.
    """

    findings: tuple[Finding, ...]
    right: int
    level: Literal["quick", "full"]
    passes: float
    forwards: int
    backwards: int
    seconds: float

    @property
    def verdict(self) -> str:
        """ "evaluation unreliable", "signs: M3, M7", "no sign of masking found", or that there
        was nothing to find any on.
        """
        failed = self._ids("fail")
        if set(failed) & set(UNRELIABLE):
            return "evaluation unreliable"
        if failed:
            return f"signs: {', '.join(failed)}"
        if not self.right:
            return "nothing to attack: no image is right when clean"
        return "no sign of masking found"

    @property
    def warnings(self) -> str:
        """ "warnings: M2, M7", or nothing."""
        warned = self._ids("warn")
        return f"warnings: {', '.join(warned)}" if warned else ""

    def _ids(self, verdict: Verdict) -> list[str]:
        return [finding.id for finding in self.findings if finding.verdict == verdict]

    def plain(self) -> dict[str, Any]:
        """Types that JSON knows."""
        return {
            "verdict": self.verdict,
            "level": self.level,
            "passes": self.passes,
            "forwards": self.forwards,
            "backwards": self.backwards,
            "seconds": self.seconds,
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_masking(
    model: nn.Module,
    batches: Batches,
    found: Robustness,
    *,
    ball: Ball,
    task: Classification | None = None,
    seed: int = 0,
    full: bool = False,
    alone: bool = True,
    history: Sequence[float] | None = None,
    surrogate: nn.Module | None = None,
    progress: Progress | None = None,
) -> Checks:
    """Look for signs of gradient masking behind an evaluation of `model` ([B, C, H, W] -> logits).

    batches: gives the images that `found` was measured on, in the same order, anew at each call.
    found: of robust_accuracy with the same ball, task and seed; its columns are used, not
    measured again. alone: as it was measured.
    full: every check; otherwise, cheapest first, those that a fifth of what the evaluation's
    attacks cost at most pays for, so that a network that falls at once is checked as well; but
    those that LEAST pays for in any case.
    history: robust accuracies of the checks of a training run, in [0, 1], for M2.
    surrogate: another model for the same images, for M10.
    The model is left as it was. ValueError where the images are not those of `found`.
    """
    clock = time.perf_counter()
    subject = Subject(
        model,
        batches,
        found,
        ball,
        task or Classification(),
        seed,
        alone,
        surrogate,
        None if history is None else tuple(history),
    )
    run = _Run(subject, full, progress)
    run.go()
    meter = subject.meter
    return Checks(
        tuple(run.findings[id] for id in RULES),
        int(subject.right.sum()),
        "full" if full else "quick",
        passes_of(meter.thirds, subject.images),
        meter.forwards + meter.probes,
        meter.probes,
        time.perf_counter() - clock,
    )


class _Run:
    """The checks of one subject, each with its price before it runs."""

    def __init__(self, subject: Subject, full: bool, progress: Progress | None) -> None:
        self.subject, self.full, self.progress = subject, full, progress
        self.findings: dict[str, Finding] = {}
        self.slopes: slopes.Slopes | None = None
        self.points: points.Points | None = None

    def go(self) -> None:
        subject = self.subject
        self._next("M16")
        answers = outputs.asked(subject)
        self._judge("M16", outputs.probabilities(subject, answers))
        self._judge("M15", outputs.randomised(subject, answers))
        self._judge("M17", outputs.dynamic(answers))
        if self.findings["M16"].verdict == "fail":
            waiting = "not applicable: the outputs are probabilities, see M16"
            for id in RULES.keys() - self.findings.keys():
                self._leave(id, waiting)
            return
        self._rest()
        self._next("M20")
        self._judge("M20", points.audit(subject, answers, self.points))

    def _rest(self) -> None:
        """The checks that cost something, cheapest first, as far as the allowance reaches."""
        before = passes_of(self.subject.meter.thirds, self.subject.images)
        allowance = max(SHARE * _cost(self.subject), LEAST)
        left = {check.id: check for check in self._priced()}
        while left:
            prices: dict[str, float] = {}
            for id, check in list(left.items()):
                price = self._price(check)
                if isinstance(price, str):
                    self._leave(id, f"not applicable: {price}")
                    del left[id]
                else:
                    prices[id] = price
            if not left:
                break
            id = min(prices, key=lambda id: (prices[id], list(RULES).index(id)))
            spent = passes_of(self.subject.meter.thirds, self.subject.images) - before
            if not self.full and spent + prices[id] > allowance:
                for id in left:
                    passes = f"{prices[id]:,.0f}" if prices[id] >= 10 else f"{prices[id]:.2g}"
                    self._leave(id, f"costs about {passes} passes per image; --checks full")
                break
            self._next(id)
            self._judge(id, left.pop(id).run(self.subject))

    def _price(self, check: Check) -> float | str:
        if not self.subject.differentiable and check.id not in ("M9", "M10"):
            return "the output carries no gradient back to the input, see M9"
        if not bool(self.subject.right.any()):
            return "no image is right when clean"
        return check.price(self.subject)

    def _priced(self) -> tuple[Check, ...]:
        return (
            *PAIRED,
            Check("M9", self._slopes_price, lambda s: slopes.useless(s, self._slopes())),
            Check("M11", self._slopes_price, lambda s: slopes.agreement(self._slopes())),
            Check("M13", self._slopes_price, lambda s: slopes.first_order(self._slopes())),
            Check("M12", self._vertex_price, lambda s: points.stationarity(s, self._points())),
            Check("M19", self._points_price, lambda s: points.rounded(s, self._points())),
            Check("M14", differences.price, differences.measured),
        )

    def _slopes_price(self, subject: Subject) -> float:
        known = self.slopes is not None or not subject.differentiable
        return 0.0 if known else slopes.price(subject)

    def _slopes(self) -> slopes.Slopes:
        if self.slopes is None:
            self.slopes = slopes.measured(self.subject)
        return self.slopes

    def _points_price(self, subject: Subject) -> float:
        known = self.points is not None
        return points.asking(subject) + (0.0 if known else points.price(subject))

    def _vertex_price(self, subject: Subject) -> float | str:
        if subject.ball.norm != "linf":
            return f"its best vertex is that of a linf ball, this one is {subject.ball.norm}"
        return self._points_price(subject)

    def _points(self) -> points.Points:
        if self.points is None:
            self.points = points.attacked(self.subject)
        return self.points

    def _next(self, id: str) -> None:
        if self.progress:
            self.progress(len(self.findings), len(RULES), id)

    def _judge(self, id: str, outcome: Outcome) -> None:
        rule = RULES[id]
        if outcome.statistic is None:
            self._leave(id, outcome.shown)
            return
        images = self.subject.images if outcome.images is None else outcome.images
        verdict = "fail" if outcome.certain else judged(rule, outcome.statistic, images)
        said = verdict in ("fail", "warn")
        about = f"{rule.means} {rule.advice}" if said else f"A fail would say: {rule.means}"
        self._say(id, verdict, outcome.statistic, outcome.shown, about)

    def _leave(self, id: str, why: str) -> None:
        self._say(id, "not run", None, why, f"A fail would say: {RULES[id].means}")

    def _say(
        self, id: str, verdict: Verdict, statistic: float | None, shown: str, about: str
    ) -> None:
        rule = RULES[id]
        self.findings[id] = Finding(
            id,
            rule.name,
            verdict,
            statistic,
            shown,
            rule.pass_at,
            rule.fail_at,
            rule.origin,
            about,
        )


def _cost(subject: Subject) -> float:
    """What the evaluation costs at most, in passes per image."""
    attacks = [build_attack(name) for name in subject.found.attacks]
    return (1 + sum(thirds(attack, subject.ball, subject.classes) for attack in attacks)) / 3
