"""Several processes that train one network: PyTorch's DistributedDataParallel, started by torchrun.

Every process holds the network and takes its equal part of each global batch. Gradients are
averaged once an update; nothing else waits for the others, probes least of all.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from gratis.comm_hooks import Exchange
from gratis.gathered import Everyones
from gratis.launched import launched_together, meet, rank_and_world

PATIENCE_SECONDS = 600.0
"""How long processes wait for each other unless a recipe says otherwise."""

BETWEEN_RUNS = timedelta(days=1)

Compute = Callable[[nn.Module], Any]


class Processes:
    """This process among those that train together; alone where there is no process group.

    rank, world: it is number `rank` of `world`.  device: where it trains, and where the numbers
    lie that it exchanges with the others. Whatever is exchanged here must be asked for by all.
    """

    def __init__(self, device: torch.device) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world = dist.get_world_size() if together else 1
        self.device = device

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes, shows and judges."""
        return self.rank == 0

    # --- who takes what

    def rows(self, parts: Sequence[int], shares: int = 1) -> Tensor:
        """Our rows of a global batch that holds all processes' first parts, then all second, ...

        parts: how many images each part of one process holds, in order.
        shares: each process takes so many processes' rows, one's after the other's.
        """
        chosen = []
        for rank in range(self.rank * shares, (self.rank + 1) * shares):
            before = 0
            for size in parts:
                first = before + rank * size
                chosen.append(torch.arange(first, first + size))
                before += self.world * shares * size
        return torch.cat(chosen)

    def part(self, whole: Tensor) -> Tensor:
        """Ours of [world n, ...], all processes' parts in order of rank: `gather` undone."""
        size = len(whole) // self.world
        return whole[self.rank * size : (self.rank + 1) * size]

    # --- what is exchanged

    def gather(self, part: Tensor) -> Tensor:
        """Every process's part [n, ...] as one tensor [world n, ...], in order of rank."""
        if self.world == 1:
            return part
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.world)]
        dist.all_gather(parts, part)
        return torch.cat(parts)

    def everyones(self, ours: Tensor) -> Tensor:
        """Every process's tensor [n] as rows of [world, n], in order of rank; differentiable."""
        return ours[None] if self.world == 1 else Everyones.apply(ours, self)

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' `values`, bitwise the same at each."""
        if self.world == 1:
            return values
        values = values.to(self.device, copy=True)
        dist.all_reduce(values)
        return values

    def told(self, *values: float) -> tuple[float, ...]:
        """What the leading process gives here, whatever the others give."""
        if self.world == 1:
            return values
        said = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(said, src=0)
        return tuple(said.tolist())

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over processes into each floating-point tensor, with one exchange."""
        if self.world == 1:
            return
        # in double precision, where the mean of equal numbers is that very number
        floats = [tensor for tensor in tensors if tensor.is_floating_point()]
        if not floats:
            return
        flat = torch.cat([tensor.detach().double().flatten() for tensor in floats])
        mean = self.total(flat) / self.world
        means = torch.split_with_sizes(mean, [tensor.numel() for tensor in floats])
        for tensor, mean in zip(floats, means, strict=True):
            tensor.detach().copy_(mean.view_as(tensor))

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Within it the leading process comes before the others, as for files that it downloads."""
        if not self.leads:
            self.told(0)
        try:
            yield
        finally:  # what fails for it shall fail, with the same words, for the others
            if self.leads:
                self.told(0)

    def led(self, ask: Callable[[], Any]) -> Any:
        """What `ask` returns at the leading process, for all; a ValueError of its is everyone's."""
        if self.world == 1:
            return ask()
        said: list[Any] = [None, None]
        if self.leads:
            try:
                said = [ask(), None]
            except ValueError as error:
                said = [None, str(error)]
        dist.broadcast_object_list(said, src=0, device=self.device)
        found, complaint = said
        if complaint is not None:
            raise ValueError(complaint)
        return found

    def agree(self, **named: str) -> None:
        """ValueError, at every process, that names what is not the same in all of them."""
        if self.world == 1:
            return
        all_named: list[dict[str, str]] = [{} for _ in range(self.world)]
        dist.all_gather_object(all_named, named)
        for name, ours in all_named[0].items():
            for rank, theirs in enumerate(all_named):
                if theirs[name] != ours:
                    raise ValueError(
                        f"the processes do not agree on {name.replace('_', ' ')}: process 0 has "
                        f"{ours}, process {rank} has {theirs[name]}; start all of them with the "
                        "same command, recipe, data and installation"
                    )


@contextmanager
def joined(device: torch.device, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[Processes]:
    """Join the processes that torchrun started, each on a card of its own if `device` is CUDA.

    patience_seconds: how long a process waits for the others, at the start and in every exchange,
    before it gives up with an error.
    The group ends with the context, also by an error, which the others then meet as a lost
    connection. A group that stands already is used as it is and left standing.
    Raises ValueError where the processes cannot each have a card, or were told of different
    numbers of processes.
    """
    if not launched_together() or dist.is_initialized():
        yield Processes(device)
        return
    device = _own(device)
    patience = timedelta(seconds=patience_seconds)
    rank, world = rank_and_world()
    start = next(_starts)
    # before a second run the first process may still evaluate the one before; what dies meanwhile
    # is torchrun's to notice
    longest = patience if start == 0 else BETWEEN_RUNS
    # a second run in the same processes, or restarted ones, must not meet the first's addresses
    store = _store(patience)
    word = meet(_within(f"gratis-{start}", store), rank, world, longest)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_within(f"gratis-{word}", store),
        rank=rank,
        world_size=world,
        timeout=patience,
    )
    try:
        yield Processes(device)
    finally:
        dist.destroy_process_group()


_starts = count()


_stores: list[Any] = []


def _store(patience: timedelta) -> Any:
    """Where the processes find each other; once a process, since its port can be had but once."""
    if not _stores:
        _stores.append(next(iter(rendezvous("env://", timeout=patience)))[0])
    return _stores[0]


def _within(prefix: str, store: Any) -> Any:
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _own(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise ValueError(
            f"engine.device: {device} is one card, and each of several processes needs its own; "
            "say cuda, and choose cards with CUDA_VISIBLE_DEVICES"
        )
    local, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= cards:
        raise ValueError(
            f"process {local} of this machine finds only {cards} CUDA devices; start as many "
            "processes as there are cards, or say engine.device=cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


class _Computed(nn.Module):
    """What DDP wraps: a forward that may be any loss on the network, not its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # with find_unused_parameters DDP warns, on every process, where there is none
        self.unused = nn.Parameter(torch.zeros_like(next(model.parameters()).flatten()[:1]))

    def forward(self, compute: Compute) -> Any:
        return compute(self.model)


class Replica:
    """One process's copy of `model` among `processes.world` equal ones, or the only one.

    With a process group, gradients are averaged in the backward of every pass run as
    `synced(True)`, together with what passes run as `synced(False)` have left before it, in the
    way of `hook` (see gratis.comm_hooks). All start with the leading process's weights and
    statistics.
    """

    def __init__(
        self, model: nn.Module, processes: Processes, hook: Exchange | None = None
    ) -> None:
        self.model = model
        self.hook = hook or Exchange()
        self._parallel: DistributedDataParallel | None = None
        if processes.world == 1:
            return
        self._parallel = DistributedDataParallel(
            _Computed(model),
            # a pass through one branch of norms, or the first layer alone, leaves others out. DDP
            # marks those ready at once with the gradient that earlier passes left in them, so the
            # one reduction is of the whole update; beside it goes a bit for each parameter:
            # whether any process used it
            find_unused_parameters=True,
        )
        # statistics are each process's own; Learner.settle joins them where they are looked at.
        # Set afterwards since the argument also leaves them unequal at the start
        self._parallel.broadcast_buffers = False
        self.hook.attach(self._parallel)

    def run(self, compute: Compute) -> Any:
        """compute(model), in a way that lets the backward of its result be synchronised."""
        return compute(self.model) if self._parallel is None else self._parallel(compute)

    @contextmanager
    def synced(self, now: bool) -> Iterator[None]:
        """Around the forward and backward of a pass; `now` where an update follows it."""
        waiting = self._parallel is not None and not now
        with self._parallel.no_sync() if waiting else nullcontext():  # type: ignore[union-attr]
            yield
