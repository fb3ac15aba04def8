"""The passes that a method yields on grey images, where every gradient points up."""

import dataclasses

import torch

from gratis import Linf
from gratis.passes import Batch

EPS = 0.1
BALL = Linf(EPS)
GREY = torch.full((10, 1, 4, 4), 0.5)
LABELS = torch.arange(10) % 3


class UphillProbe:
    """A probe whose every gradient is +1, and which remembers where it was asked."""

    def __init__(self):
        self.points, self.norms, self.labels, self.asked_logits = [], [], [], 0

    def __call__(self, x, y, loss=None, norm="main"):
        self.points.append(x.clone())
        self.norms.append(norm)
        self.labels.append(y)
        return torch.ones_like(x)

    def logits(self, x):
        self.asked_logits += 1
        return torch.zeros(len(x), 3)


def passes_of(method, x=GREY, y=LABELS, slope=1.0, seed=0):
    """The passes that a method yields, where every backward leaves `slope` at x."""
    probe = UphillProbe()
    found = []
    for p in method.passes(Batch(x, y, torch.Generator().manual_seed(seed)), probe):
        found.append(dataclasses.replace(p))
        if p.x.requires_grad:
            p.x.grad = torch.full_like(p.x, slope)
    return found, probe


def shape(passes):
    return [(len(p.x), round(p.weight, 6), p.norm, p.update) for p in passes]


def shift(p):
    """How far a pass's images lie from grey: the same everywhere."""
    moved = p.x.detach() - 0.5
    assert moved.max() - moved.min() < 1e-6
    return moved.mean().item()
