"""How well each pass of a method is answered in train mode: where statistics leak, it shows."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gratis.batch import Batch, seeded
from gratis.nn.auxbn import through
from gratis.nn.batchnorm import untracked_statistics
from gratis.passes import Method
from gratis.prober import Prober
from gratis.tasks import Classification


def pass_accuracies(
    model: nn.Module, method: Method, batches: Iterable[tuple[Tensor, Tensor]], *, seed: int = 0
) -> tuple[float, ...]:
    """The share of inputs answered as labelled in each pass that `method` makes of a batch.

    batches: (x [B, C, H, W], y [B]), at least one. The network is in train mode, so its norms
    use batch statistics, in groups where it has groups; nothing is learned and no running
    statistic moves. Every batch must be cut into the same number of passes.
    """
    task = Classification()
    probe = Prober(model)
    right: list[int] = []
    seen: list[int] = []
    training = model.training
    model.train()
    try:
        with untracked_statistics(model):
            for number, (x, y) in enumerate(batches):
                batch = Batch(x, y, seeded(seed, number, x.device))
                for place, p in enumerate(method.passes(batch, probe)):
                    with through(model, p.norm):
                        logits = model(p.x)
                    if p.x.requires_grad:
                        (p.x.grad,) = torch.autograd.grad(task.loss(logits, p.y), p.x)
                    if place == len(right):
                        right.append(0)
                        seen.append(0)
                    right[place] += int(task.correct(logits.detach(), p.y).sum())
                    seen[place] += len(p.x)
    finally:
        model.train(training)
    return tuple(r / s for r, s in zip(right, seen, strict=True))
