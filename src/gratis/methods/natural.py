"""Training on the images as they are."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from gratis.budget import PASS
from gratis.passes import Batch, Method, Pass, Probe


@dataclass
class Natural(Method):
    """Ordinary training; with replays m each minibatch is learned from m times in a row.

    Replay without perturbation isolates what Free's replay alone costs in accuracy
    (Shafahi 2019, the natural-training sweep over m).
    """

    replays: int = 1
    ball: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.replays < 1:
            raise ValueError(f"replays={self.replays} must be at least 1")

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        for _ in range(self.replays):
            yield Pass(batch.x, batch.y)

    def update_thirds(self, images: int) -> tuple[int, ...]:
        return (PASS * images,) * self.replays
