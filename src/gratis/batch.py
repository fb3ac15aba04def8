"""A batch as methods see it, and where what they draw for it comes from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _own(x: Tensor) -> Tensor:
    return x


@dataclass(slots=True)
class Batch:
    """x: images [B, C, H, W] in the ball's pixel range; y: class indices [B] or [B, K].

    generator: where randomness comes from; None for torch's global one. With a generator seeded
    by (seed, update) every draw is a function of seed, update and place in the global batch.
    rank, world: these images are part `rank` of `world` equal parts of a global batch.
    gather: a tensor [B, ...] -> [peers B, ...], those of all processes that learn a part at the
    same time, in order of rank; only called where peers > 1.  peer: our place among them.
    """

    x: Tensor
    y: Tensor
    generator: torch.Generator | None = None
    rank: int = 0
    world: int = 1
    gather: Callable[[Tensor], Tensor] = _own
    peer: int = 0
    peers: int = 1
    _wholes: "list[Any] | None" = None
    _taken: int = 0

    def draw(self, like: Tensor, sample: Callable[[Tensor, torch.Generator | None], Tensor]) -> Any:
        """What `sample` draws for `like` [n, ...], our part of the [world n, ...] drawn in all."""
        if self.world == 1:
            return sample(like, self.generator)
        layout = torch.channels_last if _is_channels_last(like) else torch.contiguous_format

        def whole() -> Tensor:
            shape = (len(like) * self.world, *like.shape[1:])
            empty = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
            return sample(empty, self.generator)

        return _part(self.alike(whole), self.rank, len(like))

    def shuffled(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The tensors [n, ...], permuted alike over all peers' [peers n, ...]; ours of each."""
        count = len(parts[0])

        def permutation() -> Tensor:
            return torch.randperm(
                count * self.peers, generator=self.generator, device=parts[0].device
            )

        mine = _part(self.alike(permutation), self.peer, count)
        return tuple((self.gather(part) if self.peers > 1 else part)[mine] for part in parts)

    def alike(self, draw: Callable[[], Any]) -> Any:
        """What `draw` draws from the generator, once for all the parts that `split` made."""
        if self._wholes is None:
            return draw()
        if self._taken == len(self._wholes):
            self._wholes.append(draw())
        self._taken += 1
        return self._wholes[self._taken - 1]

    def split(self, count: int) -> "list[Batch]":
        """`count` equal consecutive parts, each a part of the global batch in its own right.

        They must draw the same things in the same order; what one draws the others take theirs of.
        """
        wholes: list[Any] = []
        return [
            replace(
                self,
                x=x,
                y=y,
                rank=self.rank * count + place,
                world=self.world * count,
                _wholes=wholes,
            )
            for place, (x, y) in enumerate(
                zip(self.x.tensor_split(count), self.y.tensor_split(count), strict=True)
            )
        ]


def _part(whole: Tensor, rank: int, count: int) -> Tensor:
    return whole[rank * count : (rank + 1) * count]


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def seeded(seed: int, update: int, device: torch.device) -> torch.Generator:
    """A generator that is a function of both, unlike neighbours' for neighbouring numbers."""
    mixed = np.random.SeedSequence((seed, update)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0]))
