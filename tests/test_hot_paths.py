"""What an update asks of the machine, counted: seconds cannot be tested where cores are shared.

Kernels of convolutions, weight gradients among them, reads by the host, and bytes copied, for
one batch of each method on a network of three convolutions.
"""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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
    fgsm_rs,
)
from gratis.data import Images, Loader
from gratis.passes import Batch, Method

CONVOLUTIONS = 3
IMAGES = 10
BALL = Linf(8 / 255)
HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
COPIES = ("aten::_to_copy", "aten::copy_", "aten::clone")


class Counted(TorchDispatchMode):
    """Counts the operations run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.weight_gradients = self.input_gradients = self.bytes_copied = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().split(".")[0]
        self.calls[name] += 1
        if name == "aten::convolution_backward":
            to_input, to_weight, _ = args[-1]
            self.input_gradients += to_input
            self.weight_gradients += to_weight
        out = func(*args, **(kwargs or {}))
        if name in COPIES:
            self.bytes_copied += out.numel() * out.element_size()
        return out

    @property
    def host_reads(self) -> int:
        return sum(self.calls[name] for name in HOST_READS)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def counted(method: Method, precision: str = "fp32") -> Counted:
    """What the second batch asks; the first one makes the optimizer's state."""
    model = add_aux(network()) if method.auxiliary else network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    learner = Learner(model, optimizer, precision=precision, channels_last=True, seed=0)
    batch = Batch(torch.rand(IMAGES, 3, 8, 8), torch.randint(0, 10, (IMAGES,)))
    learner.fit(method, batch)
    with Counted() as counts:
        learner.fit(method, batch)
    return counts


METHODS: dict[str, tuple[Callable[[], Method], int, int]] = {
    # method, passes and probes of a batch
    "natural": (Natural, 1, 0),
    "fgsm-rs": (lambda: fgsm_rs(BALL), 1, 1),
    "pgd-7": (lambda: PGDTraining(BALL, steps=7), 1, 7),
    "free-8": (lambda: Free(BALL, replays=8), 8, 0),
    "fast-advprop": (lambda: FastAdvProp(Linf(1 / 255)), 3, 0),
}

each_method = pytest.mark.parametrize("name", METHODS)


@each_method
def test_an_update_runs_each_convolution_once_a_pass_and_once_a_probe(name: str) -> None:
    method, passes, probes = METHODS[name]
    counts = counted(method())
    assert counts.calls["aten::convolution"] == CONVOLUTIONS * (passes + probes)
    assert counts.calls["aten::convolution_backward"] == CONVOLUTIONS * (passes + probes)


@pytest.mark.parametrize(
    ("method", "unasked"),
    [
        (Natural(), 1),
        (fgsm_rs(BALL), 1),
        (PGDTraining(BALL, steps=7), 1),
        (Free(BALL, replays=8), 0),
        (Trades(BALL, steps=2), 2),
        (GradAlign(BALL), 1),
    ],
    ids=["natural", "fgsm-rs", "pgd-7", "free-8", "trades-2", "gradalign"],
)
def test_the_kernels_that_run_are_those_that_the_cost_counts(method: Method, unasked: int) -> None:
    """A third of a pass is one kernel for each convolution; `unasked`: gradients of images that a
    pass counts but nobody wants.
    """
    counts = counted(method)
    kernels = counts.calls["aten::convolution"] + counts.input_gradients + counts.weight_gradients
    thirds = sum(method.update_thirds(IMAGES)) // IMAGES
    assert kernels == CONVOLUTIONS * thirds - unasked


def test_yopo_runs_the_first_layer_alone_between_its_passes() -> None:
    counts = counted(Yopo(BALL, rounds=2, steps=2))
    # each round: all layers, then two steps and a weight gradient through the first
    assert counts.calls["aten::convolution"] == 2 * (CONVOLUTIONS + 3)
    assert counts.calls["aten::convolution_backward"] == 2 * (CONVOLUTIONS + 3)


@each_method
def test_only_passes_have_weight_gradients(name: str) -> None:
    method, passes, _ = METHODS[name]
    assert counted(method()).weight_gradients == CONVOLUTIONS * passes


def test_no_input_gradient_is_computed_where_nobody_asks() -> None:
    natural, free = counted(Natural()), counted(Free(BALL, replays=8))
    assert natural.input_gradients == CONVOLUTIONS - 1
    assert free.input_gradients == 8 * CONVOLUTIONS
    # the probe's, and the pass's own but for the first layer
    assert counted(fgsm_rs(BALL)).input_gradients == 2 * CONVOLUTIONS - 1


@each_method
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_host_reads_nothing_while_it_learns(name: str, precision: str) -> None:
    assert counted(METHODS[name][0](), precision).host_reads == 0


@pytest.mark.parametrize(
    "method",
    [GradAlign(BALL), Natural(mix="cutmix"), FastAdvProp(BALL, mix="mixup")],
    ids=["gradalign", "cutmix", "mixup"],
)
def test_nor_does_it_for_a_loss_that_a_method_brings(method: Method) -> None:
    assert counted(method).host_reads == 0


@each_method
def test_few_bytes_are_copied(name: str) -> None:
    method, passes, probes = METHODS[name]
    images = IMAGES * 3 * 8 * 8 * 4
    # the batch once into the network's memory format, then at most one such copy a pass or probe;
    # none that grows with the network
    assert counted(method()).bytes_copied <= images * (2 + passes + probes)


@each_method
def test_bf16_casts_each_weight_once_an_update(name: str) -> None:
    method, passes, probes = METHODS[name]
    updates = 8 if name == "free-8" else 1
    weights = sum(p.numel() for p in network().parameters() if p.ndim > 1)
    added = counted(method(), "bf16").bytes_copied - counted(method()).bytes_copied
    images = IMAGES * 3 * 8 * 8
    # weights go to bf16 (2 bytes) once an update; their gradients come back (4 bytes) once a
    # pass; images go in and their gradients come back once a pass and probe, features likewise
    others = (2 + 4) * (passes + probes) * (images + 2 * IMAGES * 8) + 4 * passes * 2 * IMAGES * 10
    assert 0 < added <= updates * 2 * weights + 4 * passes * weights + others


@pytest.mark.parametrize(
    "method",
    [
        Natural(),
        fgsm_rs(BALL),
        PGDTraining(BALL, steps=2),
        Free(BALL, replays=3),
        Trades(BALL, steps=2),
        Yopo(BALL, rounds=2, steps=2),
        AdvProp(BALL, steps=1),
        FastAdvProp(BALL),
    ],
    ids=lambda method: type(method).__name__,
)
def test_keeping_casts_changes_nothing(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    def learned() -> dict[str, Tensor]:
        model = add_aux(network()) if method.auxiliary else network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        learner = Learner(model, optimizer, precision="bf16", seed=0)
        torch.manual_seed(1)
        for _ in range(3):
            batch = Batch(torch.rand(IMAGES, 3, 8, 8), torch.randint(0, 10, (IMAGES,)))
            learner.fit(copy.deepcopy(method), batch)
        return model.state_dict()

    kept = learned()
    monkeypatch.setattr("gratis.learner.casts_kept", nullcontext)
    for name, value in learned().items():
        assert torch.equal(value, kept[name]), name


def test_a_batch_is_made_without_reading_from_the_device() -> None:
    x = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    images = Images(x, torch.arange(64) % 10, tuple("0123456789"), "made up", "train")
    batches = Loader(images, 16, seed=0, augment=["crop-4", "flip"]).epoch(0)
    next(batches)  # draws the epoch's order, crops and flips
    with Counted() as counts:
        made: tuple[Tensor, Tensor] = next(batches)
    assert len(made[0]) == 16
    assert counts.host_reads == 0
    assert counts.bytes_copied <= 2 * made[0].numel() * 4
