"""Weights averaged over updates, which are checked and kept in place of the last ones."""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Averaged(AveragedModel):
    """A copy of `model` whose weights and buffers take a share of 1 - `decay` of each update's.

    What PyTorch's own makes with get_ema_multi_avg_fn and use_buffers, bitwise; but that one
    sends its count of updates to the device in each of them: the host waits, and no graph can be
    recorded. Here the count stays on the host.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"the averages' decay is {decay}; give a number from 0 to 1")
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in what `model` holds after an update; of the first one, all of it."""
        averages, latest = _held(self.module), _held(model)
        if self.n_averaged == 0:
            torch._foreach_copy_(averages, latest)
        else:
            pairs = list(zip(averages, latest, strict=True))
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            torch._foreach_lerp_(
                [average for average, _ in floats], [new for _, new in floats], 1 - self.decay
            )
            for average, new in pairs:
                if not average.is_floating_point():  # a norm's count of batches
                    average.copy_(average * self.decay + new * (1 - self.decay))
        self.n_averaged += 1


def _held(model: nn.Module) -> list[Tensor]:
    return [held.detach() for held in chain(model.parameters(), model.buffers())]
