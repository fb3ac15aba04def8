"""What the library asks of BatchNorm layers and of the parameters that weight decay spares."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def untracked_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, BatchNorm layers leave running mean, variance and batch count as they are.

    Layers in train mode still normalise by the statistics of the batch, layers in eval mode by
    the running ones: no output changes. Each layer's own setting comes back on leaving, also
    after an exception.
    """
    tracking = [m for m in _batchnorms(model) if m.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


class PartsStatistics:
    """Running statistics while equal parts of one batch go through a network one by one.

    Together the parts move them as one batch does whose parts are normalised each by itself: to
    the mean of what the parts, each from where the statistics stood, would have made of them.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] = []
        self._sums: list[Tensor] = []

    @contextmanager
    def of(self, model: nn.Module, part: int, parts: int) -> Iterator[None]:
        """Around forward and backward of part number `part` of `parts`."""
        if parts == 1:
            yield
            return
        norms = (m for m in _batchnorms(model) if m.track_running_stats)
        statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        if part == 0:
            self._before = [buffer.clone() for buffer in statistics]
            # in double precision, where the mean of equal numbers is that very number
            self._sums = [torch.zeros_like(buffer, dtype=torch.float64) for buffer in statistics]
        yield
        for buffer, before, total in zip(statistics, self._before, self._sums, strict=True):
            total += buffer
            buffer.copy_(total / parts if part == parts - 1 else before)


def set_momentum(model: nn.Module, momentum: float) -> None:
    """Give every BatchNorm layer this `momentum`: the weight of the newest batch, 0 to 1."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"BatchNorm momentum is {momentum}; it must lie between 0 and 1")
    for module in _batchnorms(model):
        module.momentum = momentum


def parameters_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(decayed, exempt): the weights of layers, and all that has at most one dimension.

    The exempt are biases and the scales and shifts of normalisation layers. Together they are
    the parameters of `model`, each once.
    """
    parameters = list(model.parameters())
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


def _batchnorms(model: nn.Module) -> Iterator[_BatchNorm]:
    return (m for m in model.modules() if isinstance(m, _BatchNorm))
