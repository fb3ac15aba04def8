"""Each method as the flattest loop that a student would write, to judge the engine by.

Every loop takes a model, an optimizer and a list of batches, and trains in place. They use
autograd the plain way (`.backward()`, weight gradients included) and share nothing with gratis.
"""

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def natural(model, optimizer, batches, replays=1):
    for x, y in batches:
        for _ in range(replays):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def clip_linf(x, delta, eps):
    delta = delta.clamp(-eps, eps)
    return (x + delta).clamp(0, 1) - x


def pgd_training(model, optimizer, batches, eps, step, steps, start="random", only_correct=False):
    previous = None
    for x, y in batches:
        if start == "random":
            delta = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1) - x
        elif start == "zero" or previous is None:
            delta = torch.zeros_like(x)
        else:
            delta = clip_linf(x, previous[: len(x)], eps)
        for _ in range(steps):
            gradient = input_gradient(model, x + delta, y, only_correct)
            delta = clip_linf(x, delta + step * gradient.sign(), eps)
        if previous is None or len(previous) <= len(delta):
            previous = delta
        else:
            previous = torch.cat([delta, previous[len(delta) :]])
        optimizer.zero_grad()
        F.cross_entropy(model((x + delta).clamp(0, 1)), y).backward()
        optimizer.step()


def input_gradient(model, point, y, only_correct=False):
    """By a whole backward, weight gradients thrown away, batch-norm buffers put back by hand."""
    buffers = {
        id(m): {k: v.clone() for k, v in m.named_buffers()}
        for m in model.modules()
        if isinstance(m, _BatchNorm)
    }
    point = point.clamp(0, 1).detach().requires_grad_()
    logits = model(point)
    losses = F.cross_entropy(logits, y, reduction="none")
    if only_correct:
        losses = losses[logits.argmax(1) == y]
    losses.sum().backward()
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            for name, value in m.named_buffers():
                value.copy_(buffers[id(m)][name])
    return point.grad


def free(model, optimizer, batches, eps, replays):
    kept = None
    for x, y in batches:
        if kept is None:
            kept = torch.zeros_like(x)
        delta = clip_linf(x, kept[: len(x)], eps)
        for _ in range(replays):
            point = (x + delta).clamp(0, 1).detach().requires_grad_()
            optimizer.zero_grad()
            F.cross_entropy(model(point), y).backward()
            optimizer.step()
            delta = clip_linf(x, delta + eps * point.grad.sign(), eps)
            kept = torch.cat([delta, kept[len(x) :]])
