"""Training on the images as they are."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

from gratis.budget import PASS
from gratis.methods.mixing import Mix, mixed
from gratis.passes import Batch, Method, Pass, Probe


@dataclass
class Natural(Method):
    """Ordinary training; with replays m each minibatch is learned from m times in a row.

    Replay without perturbation isolates what Free's replay alone costs in accuracy
    (Shafahi 2019, the natural-training sweep over m).
    mix, mix_alpha: MixUp or CutMix of each minibatch, once for all its replays.
    """

    replays: int = 1
    mix: Mix = "none"
    mix_alpha: float = 1.0
    ball: None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.replays < 1:
            raise ValueError(f"replays={self.replays} must be at least 1")
        if self.mix not in get_args(Mix):
            raise ValueError(f"mix={self.mix!r} is none of {', '.join(get_args(Mix))}")
        if not self.mix_alpha > 0:
            raise ValueError(f"mix_alpha={self.mix_alpha} must be positive")

    @property
    def own_loop(self) -> bool:
        return self.mix == "none"

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        x, loss = batch.x, None
        if self.mix != "none":
            x, loss = mixed(batch, x, batch.y, self.mix, self.mix_alpha)
        for _ in range(self.replays):
            yield Pass(x, batch.y, loss=loss)

    def update_thirds(self, images: int) -> tuple[int, ...]:
        return (PASS * images,) * self.replays
