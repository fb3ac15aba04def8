"""What an evaluation of a run is to answer."""

from dataclasses import dataclass
from typing import Any, Literal

from gratis.balls import Ball
from gratis.evaluate.detection import judge
from gratis.fits import fitting
from gratis.recipe import Recipe
from gratis.run import Run


@dataclass(frozen=True)
class Question:
    """What to evaluate: attacks under each ball, on the first `limit` test images.

    alone: each attack on every image that is right when clean; otherwise each on what the ones
    before have left, for their union alone.  checks: which masking checks are made; "full" is
    implied by autoattack, unless it is "none".  surrogate: a run whose network lends its
    adversarial points to them.  keep_points: every adversarial point is kept.
    detects: the run finds boxes, which are not attacked: mean average precision is asked for.
    """

    attacks: tuple[str, ...]
    balls: tuple[Ball, ...]
    limit: int | None
    checkpoint: str
    alone: bool = True
    checks: Literal["none", "quick", "full"] = "quick"
    surrogate: Run | None = None
    keep_points: bool = False
    detects: bool = False

    def answered_by(self, results: dict[str, Any] | None, update: int | None = None) -> bool:
        """Whether every attack under every ball, or the precision, stands in results.json, for as
        many images as are asked for.  update: see `fitting`.
        """
        if results is None:
            return False
        kind = "detection" if self.detects else "evaluations"
        entries = fitting(
            results, kind, checkpoint=self.checkpoint, limit=self.limit, update=update
        )
        if self.detects:
            return bool(entries)
        given = {
            (entry["attack"], entry["threat"]["norm"], entry["threat"]["eps"]) for entry in entries
        }
        return all(
            (attack, ball.norm, ball.eps) in given for attack in self.attacks for ball in self.balls
        )


def question(recipe: Recipe) -> Question:
    """The evaluation that the recipe asks for."""
    wanted = recipe.evaluation
    if recipe.detects:
        judge()  # what lacks is said now rather than after hours of training
    attacks = () if recipe.detects else wanted.attacks
    balls = () if recipe.detects else tuple(recipe.evaluation_balls())
    return Question(attacks, balls, wanted.limit, wanted.checkpoint, detects=recipe.detects)
