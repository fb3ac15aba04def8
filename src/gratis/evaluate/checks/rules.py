"""The masking checks in one table: what is measured, what passes, what fails, and who says so."""

from dataclasses import dataclass
from math import exp, lgamma, log, log1p
from typing import Literal

Verdict = Literal["pass", "warn", "fail", "report", "not run"]

BY_CHANCE = 0.05
FEWEST = 2


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    unit: what the statistic counts; images are all that were evaluated, the misclassified ones
        among them.  passes, fails: limits in that unit, None where there is none.
    small: whether small statistics are the good ones.
    origin: S from a source, O ours.  means, advice: for a reader who sees it fail.
    """

    id: str
    name: str
    unit: str
    passes: float | None
    fails: float | None
    origin: str
    means: str
    advice: str
    small: bool = True

    @property
    def pass_at(self) -> str:
        if self.passes is None:
            return "report only"
        return f"{'<=' if self.small else '>'} {self._with_unit(self.passes)}"

    @property
    def fail_at(self) -> str:
        if self.fails is None:
            return "never"
        return f"{'>' if self.small else '<'} {self._with_unit(self.fails)}"

    def _with_unit(self, value: float) -> str:
        return f"{value:g} {self.unit}".strip()


_MORE = "Attack harder: more queries, steps or restarts, another loss (autoattack)."

_TABLE = (
    Rule("M1", "FGSM beats PGD-50", "% of images", 0.5, 1.0, "O (signs of Athalye 2018)",
         "One step breaks images that fifty do not.",
         "Climb another loss (cw, apgd-t) from more restarts; look at M9 and M14."),
    Rule("M2", "catastrophic overfitting", "points", 15.0, 25.0, "O (Wong 2020)",
         "The model withstands one step, but not ten.",
         "Quote PGD or autoattack, never FGSM; train with a random start, a shorter step or the "
         "guard."),
    Rule("M3", "Square beats the gradients", "points", 0.2, 1.0, "S (Croce & Hein 2020), O",
         "An attack that never sees a gradient breaks images that white-box attacks do not.",
         "Quote autoattack; give Square more queries; look for what spoils the gradient."),
    Rule("M4", "whole box", "% of the images tried", 0.0, 0.5, "S (Carlini 2019, Athalye 2018)",
         "With every image allowed, some attack must succeed; this one does not.",
         "The attack does not work on this model: climb an adaptive loss, BPDA or EoT."),
    Rule("M5", "robust accuracy rises with eps", "points", 1.0, 2.0, "O (Carlini 2019)",
         "A larger ball holds the smaller one, and yet the attack finds less in it.", _MORE),
    Rule("M6", "random points beat PGD-10", "% of images", 0.5, 1.0, "S (Athalye 2018), O",
         "Noise finds what gradients do not.",
         "Do not trust the gradient: Square, BPDA or EoT; look at M9 and M14."),
    Rule("M7", "attack not converged", "points", 1.0, 5.0, "O (Carlini 2019)",
         "More steps or restarts go on lowering the accuracy.",
         "Raise the budget: more steps and restarts, or autoattack."),
    Rule("M8", "step size", "points", 1.0, 3.0, "O",
         "Ten steps of eps/4 break more than fifty of the step given, or than the evaluation.",
         "Choose a step of eps/4, or apgd-ce, which chooses for itself; add pgd-50-10 to what the "
         "evaluation tries."),
    Rule("M9", "gradients zero or not finite", "% of images", 0.0, 1.0,
         "S (Croce & Hein 2020, ART)",
         "The gradient of the loss says nothing, so that attacks stand still.",
         "Climb a loss that no scale of the logits flattens (cw, apgd-t); BPDA where a step has "
         "no slope; Square."),
    Rule("M10", "transfer beats white-box", "% of images", 0.5, 1.0, "S (Carlini 2019), O",
         "Points made on another model break images that attacks on this one do not.",
         "Start attacks from the transferred points; climb an adaptive loss, BPDA or EoT."),
    Rule("M11", "gradients of neighbours agree", "cosine", 0.3, 0.1,
         "S (Andriushchenko 2020), O",
         "Gradients at an image and next to it point elsewhere: the loss surface is rough.",
         "Take more and smaller steps from more restarts, EoT over noise, and Square.",
         small=False),
    Rule("M12", "first-order stationarity", "(FOSC)", 0.3, None, "S (Wang 2019), O",
         "Where PGD ended the loss could still be climbed.", _MORE),
    Rule("M13", "first-order prediction error", "", None, None, "O",
         "How far the loss is from linear along FGSM's step.", _MORE),
    Rule("M14", "gradient is the slope", "% of comparisons", 95.0, 95.0, "S (Athalye 2018), O",
         "The gradient is not the slope of the logits: the model has a non-differentiable step.",
         "Attack with BPDA: give that step an identity backward; or Square.", small=False),
    Rule("M15", "same answers every time", "% of images", 0.0, 0.0,
         "S (Croce & Hein 2020)",
         "The model is randomised, and one look at an image says little.",
         "Attack the mean of 20 gradients (EoT), or fix the random numbers in evaluation."),
    Rule("M16", "outputs are logits", "% of images", 99.0, 99.0, "S (Croce & Hein 2020)",
         "The outputs are probabilities; losses take the softmax of them again and go flat.",
         "Give the logits: leave out the last softmax."),
    Rule("M17", "static model", "signs of a dynamic defence", 0.0, 0.0,
         "S (Croce & Hein 2020)",
         "The model optimises or changes while it is asked, and attacks see only a part of it.",
         "Use an adaptive attack through the inner optimisation (BPDA, EoT), transfer from the "
         "static model, and restore weights and buffers between questions."),
    Rule("M18", "gap to AutoAttack", "points", 5.0, 8.0, "S (RobustBench)",
         "PGD's figure is far above what AutoAttack leaves.",
         "Quote autoattack."),
    Rule("M19", "success survives 8 bits", "% of broken images", None, None, "O",
         "What is left of the successes in an ordinary image file.",
         "Attack in 8 bits where the threat is a file."),
    Rule("M20", "audit of the evaluation", "violations", 0.0, 0.0, "O",
         "A point lies outside the threat model, or the model was asked in another way.",
         "Repair the set-up (eval mode, the same images, logits for every class) and evaluate "
         "anew."),
)  # fmt: skip

RULES = {rule.id: rule for rule in _TABLE}

COUNTS = ("M1", "M2", "M3", "M4", "M5", "M6", "M7", "M8", "M9", "M10", "M18")
"""Statistics that are 100 x a number of images / images looked at."""

UNRELIABLE = ("M15", "M16", "M17", "M20")
"""Failing one of these says that the evaluation's number means nothing, not that it is high."""


def judged(rule: Rule, statistic: float, images: int) -> Verdict:
    """The verdict on a statistic measured on so many images.

    A count of few images may be chance. It warns above the pass limit from 2 images on; it
    fails above the fail limit if, besides, so many images or more would come up with less than
    5 % chance were the true share at the pass limit. At 500 images the limits are the table's
    own: a fail limit of 1 % with a pass limit of 0.5 % takes 6 images; at 100 it takes 3.
    """
    if rule.passes is None:
        return "report"
    good = statistic <= rule.passes if rule.small else statistic > rule.passes
    if good:
        return "pass" if rule.fails is not None else "report"
    if rule.id in COUNTS:
        count = round(statistic * images / 100)
        if count < FEWEST:
            return "pass"
        if _at_least(count, images, rule.passes / 100) >= BY_CHANCE:
            return "warn"
    if rule.fails is None:
        return "warn"
    fine = statistic <= rule.fails if rule.small else statistic >= rule.fails
    return "warn" if fine else "fail"


def _at_least(count: int, images: int, share: float) -> float:
    """The chance of `count` or more of `images` where each has chance `share`."""
    if share == 0.0 or count > images:
        return 0.0
    below = sum(
        exp(
            lgamma(images + 1) - lgamma(k + 1) - lgamma(images - k + 1)
            + k * log(share) + (images - k) * log1p(-share)
        )
        for k in range(count)
    )  # fmt: skip
    return 1.0 - below
