"""A pool of images: who of them still stands, and in what batches the model is asked about it."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gratis.attacks.search import Attack, Attacked, Part, Search, Tell, shaped

NUMBERS_IN_CACHE = 2**17
"""In a batch of images, for each thread of a CPU. Measured on the papers' small net and a residual
one: in batches of 512 an image takes a tenth to a fifth longer."""
FEWEST = 16
"""Images in a batch: with fewer, calling takes longer than computing."""


def packed(rows: Tensor, attacked: Attacked) -> Sequence[Tensor]:
    """`rows` [n] in as few batches as `attacked.size` allows, as large as each other, or one less.

    A full batch and a small one for the rest would take longer, for an image costs more in a small
    batch. On a CPU no batch is much larger than the caches, as long as none becomes a small one.
    """
    if not len(rows):
        return ()
    batches = 1 if attacked.size is None else math.ceil(len(rows) / attacked.size)
    if attacked.x.device.type == "cpu":
        numbers = len(rows) * attacked.x[0].numel() / torch.get_num_threads()
        batches = max(batches, min(round(numbers / NUMBERS_IN_CACHE), len(rows) // FEWEST))
    return rows.tensor_split(batches)


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
    for rows in packed(torch.arange(count), attacked):
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
    for some in packed(rows, attacked):
        search = Search(attacked.of(some))
        search.look(points[some])
        standing.record(some, points[some], search.fooled)
