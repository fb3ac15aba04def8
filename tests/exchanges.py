"""Two processes that exchange gradients in every way, for the tests to look at."""

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from gratis import Learner, train
from gratis.comm_hooks import EXCHANGES, PowerSGD
from gratis.distributed import joined
from gratis.journal import DivergedError
from gratis.methods import METHODS
from gratis.nn import add_aux
from gratis.passes import Batch, Pass
from gratis.quantiser import dequantise, quantise
from tests.recipes import tiny
from tests.small_net import small_net
from tests.two_processes import Collectives, become, build

WORLD, SEED, UPDATES = 2, 7, 4
CPU = torch.device("cpu")
QUANTISED = {"q8": 8, "q4": 4, "q8-two-sided": 8, "q4-two-sided": 4}
STEPS = {8: 127, 4: 7}
# PyTorch's hook for PowerSGD waits for the gradient's own card, where there is any card
NAMES = [name for name in EXCHANGES if name != "powersgd" or not torch.cuda.is_available()]


def stream(number=0):
    return torch.Generator().manual_seed(number)


def there_and_back(tensor, bits, generator):
    return dequantise(*quantise(tensor, bits, generator), bits, tensor.numel())


def wide_net():
    """So wide that its gradients travel in two buckets."""
    torch.manual_seed(1)
    wide, last = (
        (nn.Linear(16, 600), nn.Tanh(), nn.Linear(600, 500)),
        (nn.Tanh(), nn.Linear(500, 4)),
    )
    return nn.Sequential(nn.Flatten(), *wide, *last)


class Spare(nn.Module):
    """With a layer that nothing uses."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = wide_net(), nn.Linear(5, 3)

    def forward(self, x):
        return self.used(x)


def learner(name):
    model = Spare()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return Learner(model, optimizer, seed=SEED, gradients=name)


def batch(update, rank):
    generator = stream(100 * update + rank)
    x = torch.rand(6, 1, 4, 4, generator=generator)
    return Batch(x, torch.randint(0, 4, (6,), generator=generator))


def local_gradients(learner, update, rank):
    """The gradients of a process's own part, in plain PyTorch; zeros where there are none."""
    loss = nn.functional.cross_entropy(learner.model(batch(update, rank).x), batch(update, rank).y)
    parameters = list(learner.model.parameters())
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)


def gradients(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def exchanged(name, rank):
    """Some updates with an exchange, beside what each process had and what was seen to travel."""
    ours = learner(name)
    record = {"local": [], "averaged": [], "seen": []}
    for update in range(UPDATES):
        record["local"].append([list(local_gradients(ours, update, r)) for r in range(WORLD)])
        parts = batch(update, rank)
        with Collectives() as collectives:
            ours.backward(Pass(parts.x, parts.y))
        record["seen"].append(collectives.seen)
        record["averaged"].append(gradients(ours.model))
        ours.update()
    return record | {"weights": ours.model.state_dict(), "state": ours.state()}


def resumed(name, rank, path):
    """The same updates, with a new learner for the second half."""
    for half in ((0, 1), (2, 3)):
        ours = learner(name)
        if half[0]:
            ours.load_state(torch.load(path, weights_only=True))
        for update in half:
            ours.fit(build("natural"), batch(update, rank))
        torch.save(ours.state(), path)
    return ours.state()


def spoiled(name, rank, value):
    """Gradients where one process has `value` somewhere in one tensor."""
    ours = learner(name)
    for update in range(3):  # PowerSGD does not compress the first two
        parts = batch(update, rank)
        if update == 2 and rank == 1:
            ours.model.used[3].weight.register_hook(lambda g: torch.where(g == g[2, 3], value, g))
        ours.backward(Pass(parts.x, parts.y))
        found = gradients(ours.model)
        ours.update()
    return found


def by_pytorch(name, rank):
    """Averages as PyTorch's own hook makes them, on the weights that `exchanged` went through."""
    state, hook = {
        "bf16": (None, default_hooks.bf16_compress_hook),
        "fp16": (None, default_hooks.fp16_compress_hook),
        "fp32": (None, default_hooks.allreduce_hook),
    }[name]
    ours = learner("fp32")
    parallel = DistributedDataParallel(ours.model, find_unused_parameters=True)
    parallel.register_comm_hook(state, hook)
    parts = batch(0, rank)
    nn.functional.cross_entropy(parallel(parts.x), parts.y).backward()
    return gradients(ours.model)


class Given(nn.Module):
    """Its weights' gradients are what it is given."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.zeros(n) for n in (3, 4, 1)])

    def forward(self, x):
        return sum((w * part).sum() for w, part in zip(self.weights, given(int(x)), strict=True))


def given(rank):
    """One number in each tensor, which is a level of every code, and so is the processes' mean."""
    parts = [torch.zeros(3), torch.zeros(4), torch.zeros(1)]
    parts[0][1], parts[1][2], parts[2][0] = ((1024, -1 / 32, 8), (3072, -3 / 32, -8))[rank]
    return parts


def exact(name, rank):
    model = Given()
    ours = Learner(model, torch.optim.SGD(model.parameters(), 0.1), seed=SEED, gradients=name)
    ours.backward(Pass(torch.tensor([rank]), torch.zeros(1), loss=lambda m, x, y: (m(x), None)))
    return gradients(model)


def every_method():
    found = {}
    for name in METHODS:
        method = build(name)
        model = small_net().double()
        if method.auxiliary:
            add_aux(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        ours = Learner(model, optimizer, seed=SEED, gradients="q8")
        for update in range(2):
            x = torch.rand(10, 1, 6, 5, generator=stream(update), dtype=torch.float64)
            ours.fit(method, Batch(x, torch.arange(10) % 4))
        found[name] = [p.detach().clone() for p in ours.model.parameters()]
    return found


def together(rank, port, folder):
    """One of the two processes."""
    become(rank, port)
    EXCHANGES["powersgd"] = lambda seed: PowerSGD(plain=2)
    found = {}
    with joined(CPU):
        found["exchanged"] = {name: exchanged(name, rank) for name in NAMES}
        found["resumed"] = {n: resumed(n, rank, folder / f"{n}-{rank}.pt") for n in NAMES}
        found["nan"] = {name: spoiled(name, rank, torch.nan) for name in NAMES}
        found["inf"] = {name: spoiled(name, rank, torch.inf) for name in QUANTISED}
        found["pytorch"] = {name: by_pytorch(name, rank) for name in ("fp32", "bf16", "fp16")}
        found["exact"] = {name: exact(name, rank) for name in ("fp32", *QUANTISED)}
        found["methods"] = every_method()
    diverging = ("optimizer.learning_rate=1e20", "schedule.shape=constant", "engine.device=cpu")
    try:
        train.run(tiny("natural", *diverging, "engine.gradients=q8"), folder / "diverged")
    except DivergedError as error:
        found["diverged"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
