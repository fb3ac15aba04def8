"""What a check is, and what comes out of it before it is judged."""

from collections.abc import Callable
from dataclasses import dataclass

from gratis.evaluate.checks.subject import Subject


@dataclass(frozen=True)
class Outcome:
    """What a check measured: its statistic, a sentence, and how many images it looked at.

    images: None for all that were evaluated.  certain: fails whatever the statistic.
    """

    statistic: float | None
    shown: str
    images: int | None = None
    certain: bool = False


@dataclass(frozen=True)
class Check:
    """price: the most it costs in passes per evaluated image, or why it does not apply."""

    id: str
    price: Callable[[Subject], float | str]
    run: Callable[[Subject], Outcome]
