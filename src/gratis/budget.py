"""What training costs, counted rather than timed.

One *pass* is the forward, the input gradient and the weight gradient of one image, a third
each. A *probe* (input gradient alone) costs two thirds. Everything is kept as an integer
number of thirds of an image, so that prediction and meter can agree exactly. The papers'
convention, printed beside ours, counts a probe as a whole pass.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

import numpy as np

PASS = 3
PROBE = 2
FORWARD = 1


@dataclass
class Meter:
    """Images that went through a learned pass, a probe, and a forward alone.

    extra: thirds of an image's pass that were none of these whole: a backward through a
    backward, a first layer alone.
    """

    passes: int = 0
    probes: int = 0
    forwards: int = 0
    extra: int = 0

    def add(self, other: "Meter") -> None:
        """Count what `other` counted too."""
        self.passes += other.passes
        self.probes += other.probes
        self.forwards += other.forwards
        self.extra += other.extra

    @property
    def thirds(self) -> int:
        return PASS * self.passes + PROBE * self.probes + FORWARD * self.forwards + self.extra

    @property
    def papers(self) -> float:
        """Image passes as the papers count them: a probe is a pass, a bare forward is free."""
        return self.passes + self.probes + self.extra / PASS


@dataclass(frozen=True)
class Plan:
    """How far a budget reaches: `updates` whole updates, costing `thirds` in all.

    ends: the epochs, updates and data passes done at the end of each phase, if there are several.
    """

    updates: int
    thirds: int
    ends: tuple[tuple[int, int, float], ...] = ()

    def phase(self, epoch: int) -> int:
        """The number of the phase that an epoch belongs to."""
        return min(bisect_right([end[0] for end in self.ends], epoch), max(len(self.ends) - 1, 0))

    def place(self, update: int) -> float:
        """How far in the run an update begins, in updates: by data passes where there are phases,
        whose updates see different numbers of images.
        """
        if not self.ends:
            return update
        _, updates, passes = zip((0, 0, 0.0), *self.ends, strict=True)
        return float(self.updates * np.interp(update, updates, passes) / passes[-1])


def passes_of(thirds: int, images: int) -> float:
    """Thirds of an image's pass as passes for each of `images` training images."""
    return thirds / (3 * images)


def thirds_of(passes: float, images: int) -> int:
    """A budget of `passes` for each of `images` training images, in whole thirds of an image."""
    # limit_denominator: 5/3 typed as a float means five thirds, not the float just below
    return int(Fraction(passes).limit_denominator(10**6) * 3 * images)


def plan(
    batch_sizes: Sequence[int],
    update_thirds: Callable[[int], Sequence[int]],
    *,
    budget_thirds: int | None = None,
    data_passes: float | None = None,
) -> Plan:
    """The updates that a budget, or a number of data passes, pays for.

    batch_sizes: images in each batch of one data pass.
    update_thirds: a batch's images -> the cost of each update that the method makes of it.
    The run ends with the last whole update that fits, in mid-epoch and mid-replay if need be.
    """
    epoch = [cost for size in batch_sizes for cost in update_thirds(size)]
    if data_passes is not None:
        whole, part = divmod(Fraction(data_passes).limit_denominator(10**6), 1)
        batches = int(part * len(batch_sizes))
        rest = [cost for size in batch_sizes[:batches] for cost in update_thirds(size)]
        return Plan(int(whole) * len(epoch) + len(rest), int(whole) * sum(epoch) + sum(rest))
    assert budget_thirds is not None
    whole_epochs, left = divmod(budget_thirds, sum(epoch))
    updates, thirds = whole_epochs * len(epoch), whole_epochs * sum(epoch)
    for cost in epoch:
        if cost > left:
            break
        updates, thirds, left = updates + 1, thirds + cost, left - cost
    return Plan(updates, thirds)


def phase_ends(shares: Sequence[float], data_passes: float) -> list[int]:
    """How many whole data passes are done when each phase ends; the last may be cut short."""
    epochs = -int(-Fraction(data_passes).limit_denominator(10**6) // 1)
    return [round(epochs * done / sum(shares)) for done in accumulate(shares)]


def plan_phases(
    batch_sizes: Sequence[Sequence[int]],
    shares: Sequence[float],
    update_thirds: Callable[[int], Sequence[int]],
    *,
    budget_thirds: int | None = None,
    data_passes: float | None = None,
) -> Plan:
    """As `plan`, for phases whose batches differ.

    batch_sizes: of one data pass in each phase.  shares: of the run's data passes; phases end with
    whole ones, the nearest, and one that is left with none is left out.
    """
    if data_passes is None:
        assert budget_thirds is not None
        epoch = sum(cost for size in batch_sizes[0] for cost in update_thirds(size))
        data_passes = budget_thirds / epoch
    until = phase_ends(shares, data_passes)
    updates, thirds, ends, done = 0, 0, [], 0.0
    for number, (end, sizes) in enumerate(zip(until, batch_sizes, strict=True)):
        begin = until[number - 1] if number else 0
        # a last phase that is left with none begins where the run would have ended if it was whole
        wanted = max(0.0, min(end, data_passes) - begin)
        part = plan(
            sizes,
            update_thirds,
            budget_thirds=None if budget_thirds is None else max(0, budget_thirds - thirds),
            data_passes=None if budget_thirds is not None else wanted,
        )
        if budget_thirds is not None:
            allowed = plan(sizes, update_thirds, data_passes=end - begin)
            part = min(part, allowed, key=lambda found: found.updates)
        updates, thirds = updates + part.updates, thirds + part.thirds
        of_epoch = sum(len(update_thirds(size)) for size in sizes)
        done += part.updates / of_epoch
        ends.append((end, updates, done))
    return Plan(updates, thirds, tuple(ends))
