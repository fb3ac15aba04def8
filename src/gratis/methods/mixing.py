"""MixUp and CutMix: pairs of images blended, and their labels in the same shares."""

from typing import Literal

import torch
from torch import Tensor, nn

from gratis.losses import cross_entropy
from gratis.passes import Batch, Objective

Mix = Literal["none", "mixup", "cutmix"]


def mixed(batch: Batch, x: Tensor, y: Tensor, kind: Mix, alpha: float) -> tuple[Tensor, Objective]:
    """x [n, C, H, W] blended with its own images in another order, and the loss to learn it by.

    One share a batch, from Beta(alpha, alpha): "mixup" adds the images in that share (Zhang 2018,
    section 2); "cutmix" pastes a rectangle of the other image (Yun 2019, equation 2), the share
    being what is left of the first by area. All is drawn where the images are: nothing is read
    from a device.
    """
    share, centre, order = batch.alike(lambda: _drawn(batch.generator, x, alpha))
    other, labels = x[order], y[order]
    if kind == "mixup":
        blended = share * x + (1 - share) * other
    else:
        length = (1 - share).sqrt()
        rows, columns = (
            _span(size, middle, length) for size, middle in zip(x.shape[2:], centre, strict=True)
        )
        pasted = rows[:, None] & columns
        blended = torch.where(pasted, other, x)
        share = 1 - pasted.to(x.dtype).mean()

    def loss(model: nn.Module, point: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(point)
        own, others = cross_entropy(logits, y).mean(), cross_entropy(logits, labels).mean()
        return share * own + (1 - share) * others, logits

    return blended, loss


def _drawn(
    generator: torch.Generator | None, x: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A share [] from Beta(alpha, alpha), a place [2] in 0 to 1, an order of `x` [n]."""
    both = torch.full((2,), alpha, dtype=x.dtype, device=x.device)
    # the public distribution takes no generator
    share = torch._sample_dirichlet(both, generator=generator)[0]
    centre = torch.rand(2, generator=generator, dtype=x.dtype, device=x.device)
    order = torch.randperm(len(x), generator=generator, device=x.device)
    return share, centre, order


def _span(size: int, middle: Tensor, length: Tensor) -> Tensor:
    """Which of `size` places lie around `middle`: bool [size]; both in shares of the size."""
    low, high = (middle - length / 2) * size, (middle + length / 2) * size
    places = torch.arange(size, device=middle.device)
    return (places >= low.round()) & (places < high.round())
