"""PyTorch's own code for a card, its kernels left out.

What may be recorded, and how often the host waits, is decided by that code alone. Nothing is
computed, so that nothing here looks at values.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gratis import Natural, add_aux
from gratis.balls import Ball
from gratis.graphs import Graphs
from gratis.passes import Batch, Method
from tests.stand_in_gpu import learning
from tests.stand_in_gpu.check_capturing import Read
from tests.stand_in_gpu.learning import METHODS, SGD

ADAM = partial(torch.optim.AdamW, lr=1e-3)
RECORDED = {name: made for name, made in METHODS.items() if name != "gradalign"}
"""GradAlign's second derivative multiplies matrices, for which the driver would be asked."""


class Logits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :50].unflatten(1, (10, 5)).mean(2)


def network(auxiliary: bool = False) -> nn.Module:
    """Without matrix products, for which the driver would be asked: each channel by itself."""
    layers = [nn.Conv2d(3, 6, 3, stride=2, groups=3), nn.BatchNorm2d(6), nn.SiLU()]
    layers += [nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Dropout(0.2), Logits()]
    model = nn.Sequential(*layers)
    return (add_aux(model) if auxiliary else model).cuda()


@pytest.fixture(autouse=True)
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    monkeypatch.setattr(Ball, "check", lambda ball, x: None)  # a first batch's pixels are no values
    monkeypatch.setattr(learning, "network", network)


@pytest.fixture
def waits() -> Callable[[], int]:
    """How often the host has waited so far."""
    counted = ctypes.CDLL(os.environ["LD_PRELOAD"]).stand_in_waits
    counted.restype = ctypes.c_ulonglong
    return counted


def batches(*sizes: int) -> Iterator[Batch]:
    for size in sizes:
        y = torch.zeros(size, dtype=torch.long, device="cuda")
        yield Batch(torch.zeros(size, 3, 12, 12, device="cuda"), y)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", RECORDED.values(), ids=RECORDED)
def test_updates_may_be_recorded_and_wait_for_nothing(
    method: Callable[[], Method], precision: str, optimizer: partial[torch.optim.Optimizer],
    waits: Callable[[], int],
) -> None:  # fmt: skip
    made = method()
    ours = learning.learner(made, optimizer, ema=0.9, precision=precision)
    graphs = Graphs(ours)
    ours.learn = graphs.learn
    some = list(batches(16, 16, 16, 16, 12))
    for batch in some[:2]:
        ours.fit(made, batch)
    assert graphs.recording is not None
    before = waits()
    for batch in some[2:]:
        ours.fit(made, batch)
    assert waits() == before


def averages(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


@pytest.mark.parametrize("what", ["a method that reads", "averages that send"])
def test_what_waits_is_found_out(what: str, waits: Callable[[], int]) -> None:
    method = Read() if what == "a method that reads" else Natural()
    ours = learning.learner(method, ema=0.9)
    if what == "averages that send":
        ours.averaged = averages(ours.model)  # type: ignore[assignment]
    first, second = batches(16, 16)
    before = waits()
    ours.fit(method, first)
    ours.fit(method, second)
    assert waits() > before
    ours.learn = Graphs(ours).learn
    ours.fit(method, first)
    with pytest.warns(UserWarning, match="could not be recorded"):
        ours.fit(method, second)
