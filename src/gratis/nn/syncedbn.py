"""Batch norms that see what all processes hold of a batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gratis.nn.auxbn import branched

Everyones = Callable[[Tensor], Tensor]
"""[n] of this process -> [processes, n] of all, differentiable."""


@contextmanager
def synced(model: nn.Module, everyones: Everyones | None) -> Iterator[None]:
    """Within it, norms in train mode normalise by the statistics of all processes' images.

    everyones: how these are had; None leaves the norms as they are. Around forward and backward
    of what all processes run at the same time: each norm exchanges its means and variances in
    both. Attacks run outside of it, by what their own process holds.
    """
    norms = [norm for norm in branched(model) if norm.synced] if everyones is not None else []
    for norm in norms:
        norm.normalise = lambda one, x: _normalised(one, x, everyones)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for norm in norms:
            norm.normalise = None


def sync_norms(model: nn.Module) -> nn.Module:
    """Mark every norm that `add_aux` or `group_norms` made as one to be synced; in place."""
    for norm in branched(model):
        norm.synced = True
    return model


def _normalised(norm: _BatchNorm, x: Tensor, everyones: Everyones) -> Tensor:
    """x [B, C, ...] normalised as one batch of all processes, whose parts are equally large.

    Chan 1979: the variance of the whole is the mean of the parts' variances, and the variance of
    their means besides.
    """
    dims = [0, *range(2, x.dim())]
    values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    variance, mean = torch.var_mean(values, dims, correction=0)
    means, variances = everyones(torch.cat([mean, variance])).chunk(2, 1)
    mean = means.mean(0)
    variance = (variances + (means - mean).square()).mean(0)
    if norm.track_running_stats and norm.running_mean is not None:
        _remember(norm, mean.detach(), variance.detach(), len(means) * x.numel() // x.shape[1])
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale if not norm.affine else norm.bias - mean * scale
    return (values * scale.view(shape) + shift.view(shape)).to(x.dtype)


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics; count: values of each channel in all."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), share)
    norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var), share)
