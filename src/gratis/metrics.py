"""What learning from a batch tells of itself, update by update."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Metrics:
    """One entry an update: loss (the passes' weighed mean), inputs answered as labelled, inputs,
    and how many of them have a label.
    """

    losses: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    labelled: list[Tensor] = field(default_factory=list)


class Tally:
    """Adds up the passes of each update into an entry of `metrics`."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self._begin()

    def _begin(self) -> None:
        self._losses: list[Tensor] = []
        self._right: list[Tensor] = []
        self._labelled: list[Tensor] = []
        self._weights, self._images = 0.0, 0

    def add(
        self, loss: Tensor, weight: float, right: Tensor, labelled: Tensor, images: int
    ) -> None:
        """A pass: its mean loss, what it weighs, and of its `images` those right and labelled."""
        self._losses.append(weight * loss)
        self._right.append(right)
        self._labelled.append(labelled)
        self._weights += weight
        self._images += images

    def end_update(self) -> None:
        """The passes since the last update make one entry."""
        self.metrics.losses.append(torch.stack(self._losses).sum() / self._weights)
        self.metrics.correct.append(torch.stack(self._right).sum())
        self.metrics.labelled.append(torch.stack(self._labelled).sum())
        self.metrics.images.append(self._images)
        self._begin()
