"""Exchanges between processes that gradients pass through."""

from typing import Any, Protocol

import torch
from torch import Tensor


class Group(Protocol):
    """Processes that do the same together: gratis.distributed.Processes."""

    rank: int

    def gather(self, part: Tensor) -> Tensor: ...
    def total(self, values: Tensor) -> Tensor: ...


class Everyones(torch.autograd.Function):
    """Gathering, whose backward adds up what all processes' losses make of each one's part."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, processes: Group) -> Tensor:
        ctx.processes = processes
        return processes.gather(ours[None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return Total.apply(gradient, ctx.processes)[ctx.processes.rank], None


class Total(torch.autograd.Function):
    """The sum over all processes; its own derivative too, for losses of gradients (GradAlign)."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, processes: Group) -> Tensor:
        ctx.processes = processes
        return processes.total(ours)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return Total.apply(gradient, ctx.processes), None
