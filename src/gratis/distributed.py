"""Several processes that train one network: PyTorch's DistributedDataParallel, started by torchrun.

Every process holds the network and takes its equal part of each global batch. Gradients are
averaged once an update; nothing else waits for the others, probes least of all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it gives up with an error."""

Compute = Callable[[nn.Module], Any]


class _Computed(nn.Module):
    """What DDP wraps: a forward that may be any loss on the network, not its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Compute) -> Any:
        return compute(self.model)


class Replica:
    """One process's copy of `model` among `world` equal ones, or the only one.

    With a process group, gradients are averaged in the backward of every pass run as
    `synced(True)`, together with what passes run as `synced(False)` have left before it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world = dist.get_world_size() if together else 1
        self._parallel = (
            DistributedDataParallel(
                _Computed(model),
                # a pass through one branch of norms, or the first layer alone, leaves others out
                find_unused_parameters=True,
                # statistics are each process's own; `average_statistics` joins them where they
                # are looked at
                broadcast_buffers=False,
            )
            if self.world > 1
            else None
        )

    def run(self, compute: Compute) -> Any:
        """compute(model), in a way that lets the backward of its result be synchronised."""
        return compute(self.model) if self._parallel is None else self._parallel(compute)

    @contextmanager
    def synced(self, now: bool) -> Iterator[None]:
        """Around the forward and backward of a pass; `now` where an update follows it."""
        waiting = self._parallel is not None and not now
        with self._parallel.no_sync() if waiting else nullcontext():  # type: ignore[union-attr]
            yield

    def gather(self, part: Tensor) -> Tensor:
        """Every process's part [n, ...] as one tensor [world n, ...], in order of rank."""
        if self.world == 1:
            return part
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.world)]
        dist.all_gather(parts, part)
        return torch.cat(parts)
