"""What tests of two processes share: the recipe, whole batches, learners, what is exchanged."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gratis import Learner, Linf
from gratis.distributed import Processes
from gratis.methods import METHODS
from gratis.nn import add_aux, group_norms
from tests.recipes import tiny
from tests.small_net import small_net

WORLD, LOCAL, BATCHES, SEED = 2, 10, 3, 7
CPU = torch.device("cpu")
SETTINGS = ("data.limit=464", "data.batch_size=20", "engine.ema=0.9", "engine.device=cpu")
"""400 images in whole batches: a short one would reach other places of a kept perturbation."""

needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch was built without gloo",
)


class Collectives(TorchDispatchMode):
    """Notes what is exchanged between processes: (operation, numbers, type)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            first = args[0]
            while isinstance(first, list | tuple):
                first = first[0]
            name = func.name().removeprefix("c10d::")
            self.seen.append((name, first.numel(), str(first.dtype).removeprefix("torch.")))
        return func(*args, **(kwargs or {}))


def seen_by(call, log):
    """`call`, noting in `log` what each call exchanges."""

    def watched(*args, **kwargs):
        with Collectives() as collectives:
            found = call(*args, **kwargs)
        log.append(collectives.seen)
        return found

    return watched


def build(name):
    numbers = {"pgd": {"steps": 4}}.get(name, {})
    return METHODS[name](**({} if name == "natural" else {"ball": Linf(0.1)}), **numbers)


def learner_for(method, groups):
    model = small_net().double()
    if method.auxiliary:
        add_aux(model)
    group_norms(model, groups)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    return Learner(model, optimizer, seed=SEED)


def whole_batches():
    generator = torch.Generator().manual_seed(3)
    for _ in range(BATCHES):
        x = torch.rand(WORLD * LOCAL, 1, 6, 5, generator=generator, dtype=torch.float64)
        yield x, torch.randint(0, 4, (WORLD * LOCAL,), generator=generator)


def become(rank, port):
    """Make this a process that torchrun might have started, number `rank` of WORLD."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def whole_recipe(*settings):
    return tiny("free-3", *SETTINGS, *settings, passes=4.2)


def of(rank, world):
    """As process number `rank` of `world` sees itself, without any other."""
    processes = Processes(CPU)
    processes.rank, processes.world = rank, world
    return processes
