"""How gradients travel between processes: whole, rounded, or as a few bits a number.

An `Exchange` is what DistributedDataParallel runs, bucket by bucket, in place of its all-reduce.
Whatever it does, all processes end with bitwise the same average.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket  # where its type is stated
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from gratis.quantiser import message_bytes, pack, put_average, steps_of


class Exchange:
    """Gradients as they are, averaged by DDP's own all-reduce: 2 (K - 1) / K of their bytes.

    update: the number of the update that is being computed, which `Learner` sets.
    """

    update: int = 0

    def attach(self, parallel: DistributedDataParallel) -> None:
        """Have `parallel` average its gradients so."""

    def state(self) -> dict[str, Tensor]:
        """What this process keeps from update to update, tensors of one dimension or more."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned, or as if nothing had gone before, given {}."""


class Cast(Exchange):
    """Gradients cast to bf16 or fp16 and averaged in it, by PyTorch's own hooks: half the bytes.

    fp16 turns what is beyond 65,504 into Inf, and loses what is below 6e-8.
    """

    def __init__(self, hook: Callable[[Any, GradBucket], Future[Tensor]]) -> None:
        self.hook = hook

    def attach(self, parallel: DistributedDataParallel) -> None:
        def cast(state: None, bucket: GradBucket) -> Future[Tensor]:
            # under its own name DDP refuses bf16 to every build without CUDA, where gloo has it
            return self.hook(state, bucket)

        parallel.register_comm_hook(None, cast)


class PowerSGD(Exchange):
    """Weights' gradients as products of two thin matrices, by PyTorch's own hook.

    rank: columns of each.  plain: updates at the beginning that travel whole, at least 2.
    What an update loses is kept, and added to the next update's gradient: each process's own,
    as large as the gradient, so that checkpoints hold one for every process. The backward waits
    for the exchange. Source: Vogels 2019; rank 2 is what it trains ResNet-18 on CIFAR-10 with.
    """

    def __init__(self, rank: int = 2, plain: int = 10) -> None:
        self.kept = PowerSGDState(
            None,
            matrix_approximation_rank=rank,
            start_powerSGD_iter=plain,
            orthogonalization_epsilon=1e-8,  # a layer that was not used has a gradient of zeros
        )

    def attach(self, parallel: DistributedDataParallel) -> None:
        def power(kept: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
            found = powerSGD_hook(kept, bucket)
            # it goes on to exchange from other threads, in an order that processes need not share
            found.wait()
            return found

        parallel.register_comm_hook(self.kept, power)

    def state(self) -> dict[str, Tensor]:
        kept = {"updates": torch.tensor([self.kept.iter])}
        for name, tensors in self._tensors().items():
            kept |= {f"{name}.{bucket}": tensor for bucket, tensor in tensors.items()}
        return kept

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.kept.iter = int(state["updates"]) if state else 0
        for name, tensors in self._tensors().items():
            tensors.clear()
            for key, tensor in state.items():
                part, _, bucket = key.partition(".")
                if part == name:
                    tensors[int(bucket)] = tensor.clone()

    def _tensors(self) -> dict[str, dict[int, Tensor]]:
        kept = self.kept
        return {"error": kept.error_dict, "left": kept.p_memory_dict, "right": kept.q_memory_dict}


class Quantised(Exchange):
    """Gradients as 8 or 4 bits a number and one norm a tensor (DAT's one-sided compression).

    Each process quantises the gradient of its own part of the batch and sends it to all others,
    who average. Of n numbers each process sends (K - 1) n bits / 8 bytes, where fp32 sends
    2 (K - 1) / K * 4 n: with 8 bits less up to 7 processes, with 4 up to 15; beyond, see
    TwoSided. What is drawn is a function of (seed, update, bucket, rank).
    Source: Zhang 2022 (DAT, step "send" of its algorithm).
    """

    def __init__(self, bits: int, seed: int) -> None:
        steps_of(bits)
        self.bits, self.seed = bits, seed

    def attach(self, parallel: DistributedDataParallel) -> None:
        def to_all(exchange: Quantised, bucket: GradBucket) -> Future[Tensor]:
            return exchange.run(bucket)

        parallel.register_comm_hook(self, to_all)

    def run(self, bucket: GradBucket) -> Future[Tensor]:
        """Average the bucket over processes, in place; the future of its buffer."""
        whole, bits = bucket.buffer(), self.bits
        counts = [gradient.numel() for gradient in bucket.gradients()]
        tensors = torch.split_with_sizes(whole, counts)
        ours = _message(message_bytes(counts, bits), whole)
        pack(tensors, bits, self.generator(bucket), ours)
        work, every = _told_to_all(ours)

        def average(arrived: Future[list[Tensor]]) -> Tensor:
            arrived.value()  # raises what went wrong
            put_average(every, tensors, bits)
            return whole

        return work.get_future().then(average)

    def generator(self, bucket: GradBucket) -> torch.Generator:
        """A stream of this process's own for this bucket of this update."""
        place = (bucket.index(), dist.get_rank())
        # a spawn key, since numbers in the row would give bucket 0 of process 0 the very stream
        # that the update's batch is perturbed from
        mixed = np.random.SeedSequence((self.seed, self.update), spawn_key=place)
        drawn = int(mixed.generate_state(1, np.uint64)[0])
        return torch.Generator(bucket.buffer().device).manual_seed(drawn)


class TwoSided(Quantised):
    """The average is quantised too: 2 (K - 1) / K of n bits / 8 bytes, for any number of processes.

    Each process is the server of one K-th of every bucket: it receives that part's codes from
    all, averages, quantises the average, and sends these codes to all, itself included. A tensor
    that a part's border cuts has a norm on either side of it, which makes its error smaller.
    Differs from DAT: one server there, and one worker that draws the second time's random
    numbers for all; here each part's server draws, so that they need not be shared.
    """

    def __init__(self, bits: int, seed: int) -> None:
        super().__init__(bits, seed)
        self.waiting: list[_Sent] = []

    def run(self, bucket: GradBucket) -> Future[Tensor]:
        """Send out the parts; with the last bucket, average and collect those of all buckets."""
        if bucket.index() == 0:
            self.waiting.clear()  # what an update that failed has left
        whole, bits, world = bucket.buffer(), self.bits, dist.get_world_size()
        parts = in_parts(whole, [gradient.numel() for gradient in bucket.gradients()], world)
        longest = max(message_bytes([piece.numel() for piece in part], bits) for part in parts)
        messages = _message((world, longest), whole)
        generator = self.generator(bucket)
        for part, message in zip(parts, messages, strict=True):
            pack(part, bits, generator, message)
        received = torch.empty_like(messages)
        work = dist.all_to_all_single(received, messages, async_op=True)
        assert work is not None
        done: Future[Tensor] = Future(devices=[whole.device] if whole.is_cuda else None)
        self.waiting.append(_Sent(whole, parts, messages, received, work, generator, done))
        if bucket.is_last():
            # only here, where all processes are sure to ask in the same order: while the
            # backward runs, some bucket's parts may have reached one process and not another
            answers = [sent.answer(bits) for sent in self.waiting]
            for sent, (work, every) in zip(self.waiting, answers, strict=True):
                sent.collect(work, every, bits)
            self.waiting.clear()
        return done


@dataclass
class _Sent:
    """A bucket whose parts are on their way to their servers."""

    whole: Tensor
    parts: list[list[Tensor]]
    messages: Tensor
    received: Tensor
    work: dist.Work
    generator: torch.Generator
    done: Future[Tensor]

    def answer(self, bits: int) -> tuple[dist.Work, Tensor]:
        """As the server of our part: average what has come, quantise it and send it to all."""
        self.work.wait()
        part = self.parts[dist.get_rank()]
        put_average(self.received, part, bits)
        ours = torch.zeros_like(self.messages[0])
        pack(part, bits, self.generator, ours)
        return _told_to_all(ours)

    def collect(self, work: dist.Work, every: Tensor, bits: int) -> None:
        """Put every part's average, as its server sent it, in its place."""
        work.wait()
        for part, message in zip(self.parts, every, strict=True):
            put_average(message[None], part, bits)
        self.done.set_result(self.whole)


def in_parts(whole: Tensor, counts: Sequence[int], world: int) -> list[list[Tensor]]:
    """`whole` [n] in `world` parts, equal to one number, each in pieces that end where tensors do.

    counts: the numbers in each tensor that `whole` is made of. The pieces are views of it.
    """
    borders = [len(whole) * rank // world for rank in range(world + 1)]
    ends = list(accumulate(counts))
    parts = []
    for start, end in pairwise(borders):
        cuts = [start, *(cut for cut in ends if start < cut < end), end]
        parts.append([whole[a:b] for a, b in pairwise(cuts) if b > a])
    return parts


def _told_to_all(ours: Tensor) -> tuple[dist.Work, Tensor]:
    """(work, every): once the work is done, `every` [world, bytes] holds each process's message."""
    every = ours.new_empty(dist.get_world_size() * len(ours))
    work = dist.all_gather_into_tensor(every, ours, async_op=True)
    assert work is not None
    return work, every.view(-1, len(ours))


def _message(shape: int | tuple[int, int], like: Tensor) -> Tensor:
    # zeros, since what pads a shorter message travels too and shall be the same each time
    return torch.zeros(shape, dtype=torch.uint8, device=like.device)


EXCHANGES: dict[str, Callable[[int], Exchange]] = {
    "fp32": lambda seed: Exchange(),
    "bf16": lambda seed: Cast(bf16_compress_hook),
    "fp16": lambda seed: Cast(fp16_compress_hook),
    "powersgd": lambda seed: PowerSGD(),
    "q8": lambda seed: Quantised(8, seed),
    "q4": lambda seed: Quantised(4, seed),
    "q8-two-sided": lambda seed: TwoSided(8, seed),
    "q4-two-sided": lambda seed: TwoSided(4, seed),
}
"""How gradients travel, by the name a recipe gives it; made from the run's seed."""


def exchange_named(name: str, seed: int, precision: str = "fp32") -> Exchange:
    """The exchange that `engine.gradients` names; ValueError for an unknown name, or one that does
    not go with the precision that is learned in.
    """
    if name not in EXCHANGES:
        raise ValueError(f"gradients={name!r} is none of {', '.join(EXCHANGES)}")
    if (name, precision) == ("powersgd", "fp16"):
        raise ValueError(
            "gradients='powersgd' keeps what it rounds off for the next update, and fp16's loss "
            "scale moves and overflows between them; use precision bf16 or fp32, or gradients q8"
        )
    return EXCHANGES[name](seed)
