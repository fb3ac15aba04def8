"""What the checks of graphs learn: every method, a small network on the card, and batches."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gratis import (
    AdvProp,
    FastAdvProp,
    Free,
    GradAlign,
    Learner,
    Linf,
    Natural,
    PGDTraining,
    Trades,
    Yopo,
    add_aux,
    fgsm,
    fgsm_rs,
    n_fgsm,
)
from gratis.graphs import Graphs
from gratis.methods.in_parts import InParts
from gratis.optim import build_optimizer
from gratis.passes import Batch, Method

BALL = Linf(8 / 255)
METHODS: dict[str, Callable[[], Method]] = {
    "natural": Natural,
    "replayed": partial(Natural, replays=3),
    "fgsm-rs": partial(fgsm_rs, BALL),
    "fgsm-previous": partial(fgsm, BALL, start="previous"),
    "n-fgsm": partial(n_fgsm, BALL),
    "pgd-3": partial(PGDTraining, BALL, steps=3),
    "free-3": partial(Free, BALL, replays=3),
    "free-2 in parts": lambda: InParts(lambda: Free(BALL, replays=2), 2),
    "advprop-2": partial(AdvProp, BALL, 2),
    "fast-advprop": partial(FastAdvProp, BALL),
    "fast-advprop, mixup": partial(FastAdvProp, BALL, mix="mixup"),
    "natural, cutmix": partial(Natural, mix="cutmix"),
    "trades-2": partial(Trades, BALL, steps=2),
    "yopo-2-2": partial(Yopo, BALL, 2, 2),
    "gradalign": partial(GradAlign, BALL),
}
muon = partial(build_optimizer, name="muon", learning_rate=0.02, nesterov=True, weight_decay=0.1)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
SIZES = (16, 16, 16, 16, 12, 16)
"""The second batch is recorded and replayed, and all of that size after it."""

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def network(auxiliary: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3)]
    layers += [nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(54, 10)]
    model = nn.Sequential(*layers)
    return (add_aux(model) if auxiliary else model).cuda()


def rate(update: int, begun: int) -> dict[str, float]:
    return {"lr": 0.1 * (1 + update % 3)}


def learner(method: Method, optimizer: Callable[..., Any] = SGD, **options: Any) -> Learner:
    model = network(method.auxiliary)
    groups = model if optimizer is muon else model.parameters()
    options = {"schedule": rate, "channels_last": True, "seed": 3, **options}
    made = Learner(model, optimizer(groups), **options)
    Graphs(made).prepare()  # fused steps round otherwise than others
    return made


def batches(sizes: tuple[int, ...] = SIZES) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        x = torch.rand(size, 3, 12, 12, generator=generator)
        yield Batch(x.cuda(), torch.randint(10, (size,), generator=generator).cuda())


def learned(learner: Learner, method: Method, some: Iterator[Batch]) -> list[float]:
    """Learns; loss and right answers of each update."""
    torch.manual_seed(5)  # dropout draws from PyTorch's own generator
    found: list[Tensor] = []
    for batch in some:
        metrics = learner.fit(method, batch)
        found += [*metrics.losses, *metrics.correct, *metrics.labelled]
    return [float(value) for value in found]


def standing(learner: Learner) -> list[Tensor]:
    """Weights, statistics, averages and moments."""
    state = learner.state()
    kept = [*state["model"].values(), *(state["averaged"] or {}).values()]
    for moments in state["optimizer"]["state"].values():
        kept += [value for value in moments.values() if isinstance(value, Tensor)]
    return [value.clone() for value in kept]
