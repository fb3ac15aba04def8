"""Learning rates as a function of the update, over exactly the updates of a run."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import cos, pi

import numpy as np

Schedule = Callable[[float, float], float]
"""(update counted from 0, updates of the run) -> share of the highest rate, in [0, 1].

Neither need be a whole number: where batches are of several sizes, they say how far the
data has been gone through.
"""


def cyclic(peak: float = 0.4) -> Schedule:
    """0 up to 1 at share `peak` of the run and down towards 0, linear (Wong 2020, section 4.2).

    The first update's rate is 0, as in the released code.
    """

    def share(update: float, updates: float) -> float:
        top = peak * updates
        return update / top if update < top else (updates - update) / (updates - top)

    return share


def piecewise(drops: Sequence[float], factor: float) -> Schedule:
    """1, multiplied by `factor` from each share of the run in `drops` on."""

    def share(update: float, updates: float) -> float:
        return float(factor ** bisect_right(sorted(drops), update / updates))

    return share


def cosine() -> Schedule:
    """Half a cosine from 1 down to 0."""
    return lambda update, updates: (1 + cos(pi * update / updates)) / 2


def constant() -> Schedule:
    return lambda update, updates: 1.0


def knotted(knots: Sequence[Sequence[float]]) -> Schedule:
    """Linear between (share of the run, share of the rate), each update's where it ends: the
    released ImageNet code of Wong 2020 takes the rate at epoch + (batch + 1) / batches.
    """
    places, rates = zip(*knots, strict=True)
    return lambda update, updates: float(np.interp((update + 1) / updates, places, rates))


def warmed(shape: Schedule, warmup: float) -> Schedule:
    """A climb over share `warmup` of the run to where `shape` begins, then `shape` over the rest.

    The climb is linear and lasts n updates, n the nearest whole number, but leaves `shape` one
    update at least; its rates are 1/n, 2/n, ... 1 times the first of `shape` (Goyal 2017,
    section 2.2; by update as in the code of Zhang 2022). Shares of the run that `shape` knows of,
    such as drops, are shares of what is left after the climb.
    """

    def share(update: float, updates: float) -> float:
        climb = min(round(warmup * updates), updates - 1)
        rest = updates - climb
        if update < climb:
            return (update + 1) / climb * shape(0, rest)
        return shape(update - climb, rest)

    return share


def cycled_momentum(share: float, low: float = 0.8, high: float = 0.9) -> float:
    """Momentum that falls as the rate rises: PyTorch's CyclicLR default, and so the Fast code's."""
    return high - (high - low) * share
