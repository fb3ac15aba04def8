"""What one pool of images answered to every attack, as it is kept when an evaluation stops."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from gratis.attacks.search import Part
from gratis.budget import Meter


@dataclass(frozen=True, eq=False)
class Answered:
    """Of a pool of n images under A attacks, all on the CPU.

    correct: bool [n, 1 + A].  seconds, meters: one for each column.  parts: for each attack, how
    its parts fared, where it has any.
    adversarial: [A, k, C, H, W], the points of the first k images.
    rejected: for each attack, how many of its successes did not hold when they were looked at.
    """

    correct: Tensor
    seconds: list[float]
    meters: list[Meter]
    parts: list[list[Part]]
    adversarial: Tensor
    rejected: list[int]

    def plain(self) -> dict[str, Any]:
        """Types that a checkpoint may hold."""
        return {
            "correct": self.correct,
            "seconds": self.seconds,
            "meters": [list(astuple(meter)) for meter in self.meters],
            "parts": [[_plain(part) for part in parts] for parts in self.parts],
            "adversarial": self.adversarial,
            "rejected": self.rejected,
        }

    @classmethod
    def of_plain(cls, kept: dict[str, Any]) -> Self:
        return cls(
            correct=kept["correct"],
            seconds=kept["seconds"],
            meters=[Meter(*meter) for meter in kept["meters"]],
            parts=[[_part(part) for part in parts] for parts in kept["parts"]],
            adversarial=kept["adversarial"],
            rejected=kept.get("rejected", [0] * (kept["correct"].shape[1] - 1)),
        )


class Outcomes(Protocol):
    """Where an evaluation keeps what it has, so that an interrupted one goes on."""

    def get(self, place: int) -> Answered | None:
        """What pool number `place` answered, None where it has not yet."""
        ...

    def put(self, place: int, answered: Answered) -> None: ...


def deciding(correct: Tensor, adversarial: Tensor) -> Tensor:
    """Of attacks in turn the point [n, C, H, W] of the one that broke an image, else of the last.

    correct: bool [N, 1 + A].  adversarial: [A, n, C, H, W], of the first n images.
    """
    attacks, images = adversarial.shape[:2]
    fell = ~correct[:images, 1:]
    by = torch.where(fell.any(1), fell.int().argmax(1), attacks - 1)
    return adversarial[by, torch.arange(images)]


def joined(answers: Sequence[Answered], attack: int) -> tuple[Part, ...]:
    """The parts of attack number `attack` over all pools, in the order of first appearance.

    A pool that a part never saw, since nothing was left standing, counts as not given to it.
    """
    pools = [{part.attack: part for part in a.parts[attack]} for a in answers]
    sizes = [len(a.correct) for a in answers]
    return tuple(
        _over_pools(name, [pool.get(name) for pool in pools], sizes)
        for name in dict.fromkeys(name for pool in pools for name in pool)
    )


def _over_pools(name: str, found: Sequence[Part | None], sizes: Sequence[int]) -> Part:
    meter = Meter()
    given, broken, seconds = [], [], 0.0
    for part, size in zip(found, sizes, strict=True):
        given.append(part.given if part else torch.zeros(size, dtype=torch.bool))
        broken.append(part.broken if part else torch.zeros(size, dtype=torch.bool))
        if part:
            meter.add(part.meter)
            seconds += part.seconds
    return Part(name, torch.cat(given), torch.cat(broken), seconds, meter)


def _plain(part: Part) -> dict[str, Any]:
    return {
        "attack": part.attack,
        "given": part.given,
        "broken": part.broken,
        "seconds": part.seconds,
        "meter": list(astuple(part.meter)),
    }


def _part(kept: dict[str, Any]) -> Part:
    meter = Meter(*kept["meter"])
    return Part(kept["attack"], kept["given"], kept["broken"], kept["seconds"], meter)
