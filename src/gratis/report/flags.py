"""What a reader must know before any figure: signs of gradient masking, and what went wrong."""

from collections.abc import Sequence

from gratis.report.runs import RunView
from gratis.run import Record

TONES = {"no sign": "good", "signs": "doubtful", "nothing to attack": "doubtful"}
"""How a verdict on masking begins, and how it is shown; anything else is bad."""


def flags(views: Sequence[RunView]) -> list[Record]:
    """For each run: {view, checks, command, others}; command: what would check an unchecked run."""
    return [
        {
            "view": view,
            "checks": [{**check, "tone": _tone(check["verdict"])} for check in view.checks],
            "command": view.checks_command() if view.evaluations and not view.checks else None,
            "others": _others(view),
        }
        for view in views
    ]


def _tone(verdict: str) -> str:
    return next((tone for start, tone in TONES.items() if verdict.startswith(start)), "bad")


def _others(view: RunView) -> list[str]:
    said = []
    if guards := view.guards:
        times = "once" if len(guards) == 1 else f"{len(guards)} times"
        said.append(f"catastrophic overfitting was caught {times} during training")
    if view.recipe_changed:
        said.append("recipe.yaml is not the recipe that was trained")
    return said + view.warnings
