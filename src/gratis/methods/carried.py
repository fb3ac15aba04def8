"""A perturbation that outlives its minibatch: Free's, and FGSM's "previous" start."""

import torch
from torch import Tensor

from gratis.balls import Ball


class Carried:
    """One perturbation per place in the batch, zero at first, kept for the whole run."""

    def __init__(self) -> None:
        self.delta: Tensor | None = None

    def onto(self, x: Tensor, ball: Ball) -> Tensor:
        """The kept perturbation cut to the batch x [B, C, H, W] and projected for its images.

        A short batch takes the first B places. Differs from the papers' code: the carried
        delta is projected onto the new images' pixel box before it is used.
        """
        kept = self.delta
        if kept is None or kept.shape[1:] != x.shape[1:]:
            kept = torch.zeros_like(x)
        elif len(kept) < len(x):
            kept = torch.cat([kept, kept.new_zeros(len(x) - len(kept), *kept.shape[1:])])
        self.delta = kept.to(x.device)
        return ball.project(x, self.delta[: len(x)])

    def keep(self, delta: Tensor) -> None:
        """Remember delta [B, C, H, W] in the first B places; later places stay as they were."""
        assert self.delta is not None
        beyond = self.delta[len(delta) :]
        self.delta = torch.cat([delta, beyond]) if len(beyond) else delta

    def state(self) -> dict[str, Tensor]:
        return {} if self.delta is None else {"delta": self.delta}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.delta = state.get("delta")
