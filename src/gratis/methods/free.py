"""Free adversarial training: one backward pass serves the weights and the perturbation."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from gratis.balls import Ball
from gratis.budget import PASS
from gratis.methods.carried import Carried
from gratis.passes import Batch, Method, Pass, Probe


@dataclass
class Free(Method):
    """Each minibatch is replayed m times; every replay updates weights and perturbation at once.

    ball: the threat model.  replays: m.
    step_size: the perturbation's step; None takes eps, a full step (a shorter one is a common
        error of re-implementations, though the guard may choose it).
    Costs m passes per data pass and no probe: at 1/m of the data passes, the price of natural
    training. The perturbation is kept from minibatch to minibatch and across epochs.
    Source: Shafahi 2019, algorithm 1; Wong 2020, algorithm 2.
    Differs from the paper: the kept perturbation is projected onto each new minibatch's pixel box.
    """

    ball: Ball
    replays: int = 8
    step_size: float | None = None
    _carried: Carried = field(default_factory=Carried, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.replays < 1:
            raise ValueError(f"replays={self.replays} must be at least 1")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")

    @property
    def resolved_step_size(self) -> float:
        return self.ball.eps if self.step_size is None else self.step_size

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        x, y = batch.x, batch.y
        delta = self._carried.onto(x, self.ball)
        for _ in range(self.replays):
            p = Pass(self.ball.place(x, delta).requires_grad_(), y)
            yield p
            delta = self.ball.ascend(x, delta, p.input_grad(), self.resolved_step_size)
            # kept before the next yield: a user's loop may break there
            self._carried.keep(delta)

    def update_thirds(self, images: int) -> tuple[int, ...]:
        return (PASS * images,) * self.replays

    def state(self) -> dict[str, Tensor]:
        return self._carried.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._carried.load_state(state)

    def gentler(self) -> tuple[Method, str] | None:
        """A shorter step on the perturbation, three quarters of the one before."""
        step = self.resolved_step_size
        gentler = replace(self, step_size=0.75 * step)
        gentler.load_state(self.state())
        return gentler, f"step_size {step:.4g} -> {0.75 * step:.4g}"
