"""One way of computing tried against another, once in a run's life: what such decisions share."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

ROUNDS = 5
GAIN = 1.03
"""The other way is used where it is faster by this factor at least: less is within the noise."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """used: whether the other way is.  reason: in words.  eager: median milliseconds of a batch in
    the usual way.  seconds: what finding out cost.
    """

    used: bool
    reason: str
    eager: float | None = None
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """For the log."""
        return asdict(self)


def in_turns(eager: Callable[[], float], other: Callable[[], float]) -> tuple[float, float, bool]:
    """The medians of what both return, called in turns, and whether the other's pays."""
    times = [(eager(), other()) for _ in range(ROUNDS)]
    usual, fast = (statistics.median(column) for column in zip(*times, strict=True))
    return usual, fast, usual > GAIN * fast


def complaint(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"
