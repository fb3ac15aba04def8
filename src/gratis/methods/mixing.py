"""MixUp and CutMix: pairs of images blended, and their labels in the same shares."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gratis.losses import cross_entropy
from gratis.passes import Batch, Objective

Mix = Literal["none", "mixup", "cutmix"]


def mixed(batch: Batch, x: Tensor, y: Tensor, kind: Mix, alpha: float) -> tuple[Tensor, Objective]:
    """x [n, C, H, W] blended with its own images in another order, and the loss to learn it by.

    One share a batch, from Beta(alpha, alpha): "mixup" adds the images in that share (Zhang 2018,
    section 2); "cutmix" pastes a rectangle of the other image (Yun 2019, equation 2), the share
    being what is left of the first by area.
    """
    seed = int(
        batch.alike(lambda: torch.randint(2**62, (), generator=batch.generator, device=x.device))
    )
    random = np.random.default_rng(seed)
    share = float(random.beta(alpha, alpha))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    other, labels = x[order], y[order]
    if kind == "mixup":
        blended = share * x + (1 - share) * other
    else:
        height, width = x.shape[2:]
        rows = _span(height, random.uniform(0, height), height * (1 - share) ** 0.5)
        columns = _span(width, random.uniform(0, width), width * (1 - share) ** 0.5)
        blended = x.clone()
        blended[:, :, rows, columns] = other[:, :, rows, columns]
        pasted = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - pasted / (height * width)

    def loss(model: nn.Module, point: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(point)
        own, others = cross_entropy(logits, y).mean(), cross_entropy(logits, labels).mean()
        return share * own + (1 - share) * others, logits

    return blended, loss


def _span(size: int, centre: float, length: float) -> slice:
    return slice(max(0, round(centre - length / 2)), min(size, round(centre + length / 2)))
