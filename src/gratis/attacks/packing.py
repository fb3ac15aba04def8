"""A pool of images: who of them still stands, and batches of few sizes to ask the model about."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gratis.attacks.search import Attack, Attacked, Part, Search, Tell, shaped


def packed(rows: Tensor, size: int | None) -> Iterator[Tensor]:
    """`rows` [n] in batches of `size`, then of a half and of a quarter of it as they fit.

    What is left is fewer than a quarter of `size`: one batch more. None: all at once.
    Few shapes are what compiled code, CUDA graphs and oneDNN's cache of primitives live on;
    sizes below a quarter would make batches too small to be fast.
    """
    for full in () if size is None else (size, size // 2, size // 4):
        while full and len(rows) >= full:
            yield rows[:full]
            rows = rows[full:]
    if len(rows):
        yield rows


def in_batches(attack: Attack, attacked: Attacked) -> tuple[Tensor, Tensor]:
    """What `attack` returns, `attacked.size` images at a time; see Attack.

    For attacks that take what they are given as one batch. Those that pack by themselves are
    given everything: they take what has survived together again as they go.
    """
    if getattr(attack, "packs", False):
        return attack(attacked)
    adversarial, broken = attacked.unbroken()
    parts: dict[str, Part] = {}
    count, done = len(broken), 0
    for rows in packed(torch.arange(count), attacked.size):
        tell = portion(attacked.tell, done / count, len(rows) / count)
        given = replace(attacked.of(rows), parts=[], tell=tell)
        adversarial[rows], broken[rows] = attack(given)
        tell(1)
        done += len(rows)
        for part in given.parts:
            whole = part.among(rows, count)
            known = parts.get(part.attack)
            parts[part.attack] = known.beside(whole) if known else whole
    attacked.parts.extend(parts.values())
    return adversarial, broken


def portion(tell: Tell, first: float, share: float) -> Tell:
    """What to tell of a piece of the work: it begins at `first` and is a `share` of the whole."""
    return lambda done: tell(first + share * done)


class Standing:
    """Which images of a pool are broken so far, bool [N], and a `point` [N, C, H, W] of each:
    misclassified where it is broken, else the last one tried.
    """

    def __init__(self, attacked: Attacked) -> None:
        self.point, self.broken = attacked.unbroken()

    def record(self, rows: Tensor, point: Tensor, fooled: Tensor) -> None:
        """What came of the images at `rows` [n]: points [n, C, H, W], bool [n]."""
        # a point that fools the model is not given up for one that does not
        kept = shaped(fooled | ~self.broken[rows], point)
        self.point[rows] = torch.where(kept, point, self.point[rows])
        self.broken[rows] = self.broken[rows] | fooled

    def among(self, rows: Tensor, *, broken: bool) -> Tensor:
        """Those of `rows` [n] (on the CPU) that are broken, or are not: waits for the device."""
        return rows[self.broken[rows].cpu() == broken]


def ask(attacked: Attacked, standing: Standing, rows: Tensor, points: Tensor) -> None:
    """Record what the model says of the images at `rows` [n], at their `points` [N, C, H, W]."""
    for some in packed(rows, attacked.size):
        search = Search(attacked.of(some))
        search.look(points[some])
        standing.record(some, points[some], search.fooled)
