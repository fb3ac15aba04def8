"""Small problems for exact verification, and the plainest way to their answers."""

import importlib.util
import itertools
import json
import time

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from gratis import train
from gratis.balls import Linf
from gratis.nn import Normalize
from gratis.verify import Settings, Verifier, lowered
from gratis.verify.bounds import Box, crown_bounds
from gratis.verify.nodes import Problem
from gratis.verify.solver import INTEGER, LINEAR
from tests.recipes import tiny


def tiny_net(seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.ReLU(),
        nn.Linear(4, 3),
        nn.ReLU(),
        nn.Linear(3, classes),
    )


def conv_net(seed=0, classes=4, scale=2.0):
    """Normalize, convolutions, batch norm, pooling: every kind of layer, on 1x6x5 images."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        Normalize([0.4], [0.3]),
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 6, (2, 3), padding=(0, 1), bias=False), nn.ReLU()),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(12, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, classes),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    with torch.no_grad():
        net[-1].weight.mul_(scale)
    return net.eval()


IMAGE = (1, 6, 5)


def verifier(net, eps, shape=(1, 2, 2), **settings):
    return Verifier(net, shape, Linf(eps), Settings(attack="cw-2", time_limit=20, **settings))


def problem_of(net, x, label, eps):
    network = lowered(net, tuple(x.shape[1:]))
    box = Box.around(x, eps)
    with torch.no_grad():
        return Problem(network, box, label, tuple(crown_bounds(network, box)))


def exact_minimum(net, x, label, eps):
    """The least margin over the ball: a linear program for each pattern of the seven ReLUs."""
    stages = [(m.weight.double().detach().numpy(), m.bias.double().detach().numpy())
              for m in net if isinstance(m, nn.Linear)]  # fmt: skip
    x = x.double().flatten().numpy()
    bounds = np.stack([np.maximum(x - eps, 0), np.minimum(x + eps, 1)], 1)
    sizes = [len(b) for _, b in stages[:-1]]
    least = np.inf
    weight, bias = stages[0]
    centre, radius = weight @ bounds.mean(1) + bias, abs(weight) @ (bounds[:, 1] - bounds[:, 0]) / 2
    first = [  # most of the first layer's signs are settled by the ball
        [sign for sign in (0.0, 1.0) if (c + r >= 0 if sign else c - r <= 0)]
        for c, r in zip(centre, radius, strict=True)
    ]
    rest = [(0.0, 1.0)] * (sum(sizes) - sizes[0])
    for pattern in itertools.product(*first, *rest):
        w, b = np.eye(len(x)), np.zeros(len(x))
        g, h, left = [], [], np.array(pattern)
        for (weight, bias), size in zip(stages, [*sizes, 0], strict=True):
            w, b = weight @ w, weight @ b + bias
            if size:
                on, left = left[:size], left[size:]
                g.append((1 - 2 * on)[:, None] * w)  # on: w x + b >= 0
                h.append((2 * on - 1) * b)
                w, b = on[:, None] * w, on * b
        for target in {*range(len(b))} - {label}:
            found = linprog(
                w[label] - w[target], np.concatenate(g), np.concatenate(h), bounds=bounds
            )
            if found.status == 0:
                least = min(least, found.fun + b[label] - b[target])
    return least


def samples(box, count=3000):
    inside = torch.rand(count, *box.low.shape[1:], dtype=torch.double)
    corners = inside.round()
    return torch.cat([box.low + part * (box.high - box.low) for part in (inside, corners)])


def conv_problem(seed, eps=0.1):
    net = conv_net(seed)
    network, x = lowered(net, IMAGE), torch.rand(1, *IMAGE)
    box = Box.around(x, eps)
    return Problem(network, box, 0, tuple(crown_bounds(network, box)))


# --- a trained network's run and its records

BALL, SETTINGS = Linf(0.05), Settings(attack="cw-10", time_limit=5)


def trained_run(folder, passes):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return train.run(tiny("fgsm-rs", "method.ball.eps=0.1", passes=passes), folder / "run")


def lines_of(run, name="linf-0.05.jsonl"):
    return [json.loads(line) for line in (run.path / "verify" / name).read_text().splitlines()]


# --- solvers that may not be there


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (gratis[verify])")


linear, integers = needs(LINEAR), needs(INTEGER)


def seeds(count, fast):
    """`count` seeds, of which those not in `fast` are for `pytest -m slow`."""
    return [
        seed if seed in fast else pytest.param(seed, marks=pytest.mark.slow)
        for seed in range(count)
    ]


def soon(seconds=30.0):
    return time.perf_counter() + seconds
