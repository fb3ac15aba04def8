"""A small network, batches for it, and its weights."""

import torch
from torch import nn

EPS = 0.1


def small_net(channels=1, classes=4):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, classes),
    )


def conv_and_linear() -> nn.Sequential:
    """For 8x8 images of 3 channels: what optimizers tell apart, a convolution among it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


def some_batches(sizes=(8, 8, 5), channels=1):
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.rand(n, channels, 6, 5, generator=generator),
            torch.randint(0, 4, (n,), generator=generator),
        )
        for n in sizes
    ]


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[k], other[k]) for k in one)
