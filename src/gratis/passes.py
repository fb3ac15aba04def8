"""The vocabulary of training: a *pass* is learned from, a *probe* is only looked at.

A method yields the passes it wants learned from and finds the input gradient in `p.x.grad`
when it resumes. It owns no model, optimizer, precision or device, so the same lines serve
the trainer here and a loop of the user's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gratis.balls import Ball
from gratis.losses import Loss
from gratis.nn.auxbn import Branch
from gratis.prober import Prober


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


Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(model, x, y) -> (mean loss, logits [B, K] for the accuracy of what was learned from, if any)."""


@dataclass(slots=True)
class Pass:
    """A request to learn from (x, y): one forward and backward whose weight gradient is kept.

    weight: what the pass's loss counts in the update's.  norm: the norms it goes through.
    update: whether an optimizer step follows; without, the gradients add up to the next pass's.
    loss: in place of the task's; it may run the model on more than x, and then states in `extra`
    the thirds of a pass that this costs beyond one pass of each image in x.
    part, parts: the pass is number `part` of `parts` like it, on equal parts of one batch: what
    they leave in gradients and running statistics is averaged.
    """

    x: Tensor
    y: Tensor
    weight: float = 1.0
    norm: Branch = "main"
    update: bool = True
    loss: Objective | None = None
    extra: int = 0
    part: int = 0
    parts: int = 1

    def input_grad(self) -> Tensor:
        """The gradient that the backward pass left at x, [B, C, H, W]; RuntimeError if none."""
        if self.x.grad is None:
            raise RuntimeError(
                "x.grad is still empty: this method reuses the backward pass of the step it "
                "handed out, so each batch needs loss = criterion(model(x), y) on this very x "
                "and loss.backward() before the next one; a skipped backward, torch.no_grad(), "
                "x.detach() or a fresh copy of x lose it"
            )
        return self.x.grad


class Probe(Protocol):
    """(x, y) -> the loss's gradient at x, [B, C, H, W].

    Parameters and their .grad stay untouched, and so do running statistics unless a recipe
    asks for the reference's behaviour. `loss` [B] replaces the task's; `norm` is the branch of
    norms to go through.
    """

    def __call__(
        self, x: Tensor, y: Tensor, loss: Loss | None = None, norm: Branch = "main"
    ) -> Tensor: ...

    def logits(self, x: Tensor) -> Tensor:
        """The model's answers [B, K] in fp32, without gradient: a third of a pass."""
        ...


class Method(ABC):
    """A training method: a dataclass whose fields are hyperparameters; state is kept apart."""

    ball: Ball | None  # what the method defends against; None for natural training
    _handed_out = 0  # updates that `batches` has given, in all its calls

    @property
    def own_loop(self) -> bool:
        """Whether each pass is an ordinary step of its own, which a user's loop can take."""
        return True

    @property
    def auxiliary(self) -> bool:
        """Whether the network needs auxiliary norms (gratis.add_aux)."""
        return False

    @property
    def equal_speed(self) -> bool:
        """Whether norms shall learn as fast as the parameters that every pass goes through."""
        return False

    @property
    def loss_scaling(self) -> bool:
        """Whether the method stands gradients that a loss scaler (fp16) has multiplied."""
        return True

    @property
    def unlabelled(self) -> bool:
        """Whether images without labels (tasks.NO_LABEL) may be among a batch's."""
        return False

    def bind(self, model: nn.Module, x: Tensor) -> None:  # noqa: B027
        """Look at the network once, before the first batch and before costs are asked for.

        x: an image or more of the size to come, [B, C, H, W].
        """

    def parts(self, images: int) -> tuple[int, ...]:
        """How many of a batch's images each part holds that `passes` cuts it into, in order."""
        return (images,)

    @abstractmethod
    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        """Yield each pass to learn from; an optimizer step follows those with `update`."""

    @abstractmethod
    def update_thirds(self, images: int) -> tuple[int, ...]:
        """What each update made of a batch of `images` costs, in thirds of an image's pass."""

    @property
    def cost(self) -> float:
        """Passes per image and data pass."""
        return sum(self.update_thirds(1)) / 3

    def state(self) -> dict[str, Tensor]:
        """What must be saved for the next batch to go on as if nothing had happened.

        One entry for each place in the batch: a checkpoint joins those of several processes.
        """
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {list(state)}")

    def gentler(self) -> "tuple[Method, str] | None":
        """A variant less prone to catastrophic overfitting at the same cost, and what changed.

        None where nothing is known to help.
        """
        return None

    def batches(
        self,
        loader: Iterable[Any],
        model: nn.Module | None = None,
        *,
        seed: int | None = None,
        updates: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) to train on, in place of the loader's, for a loop of one's own.

            for x, y in method.batches(loader, model):      # was: for x, y in loader
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad(); loss.backward(); optimizer.step()

        loader: any iterable of (x, y), x [B, C, H, W] pixels inside the ball's range.
        model: needed by methods that probe; where given, batches come on its device.
        seed: makes random starts a function of (seed, update), as in the trainer here; None takes
            torch's global generator.
        updates: how many came before. None: those that this method has given, so that epochs go
            on from each other; say it for another model (0), or a loop that is taken up.
        Raises ValueError for x out of range, or a method whose updates are not ordinary steps;
        RuntimeError for a backward that never came.
        """
        if not self.own_loop:
            raise ValueError(
                f"{type(self).__name__} joins several passes or a loss of its own into each "
                "update, which a loop over (x, y) cannot do; use gratis.Learner(model, "
                "optimizer).fit(method, Batch(x, y)) for each batch, Batch from gratis.passes"
            )
        probe: Probe = _NoProbe() if model is None else Prober(model)
        device = next(model.parameters()).device if model is not None else None
        update = self._handed_out if updates is None else updates
        for item in loader:
            x, y = item[0].to(device), item[1].to(device)
            if self.ball is not None:
                self.ball.check(x)
            generator = None if seed is None else seeded(seed, update, x.device)
            for p in self.passes(Batch(x, y, generator), probe):
                update += 1
                self._handed_out = update
                yield p.x, p.y


def seeded(seed: int, update: int, device: torch.device) -> torch.Generator:
    """A generator that is a function of both, unlike neighbours' for neighbouring numbers."""
    mixed = np.random.SeedSequence((seed, update)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0]))


class _NoProbe:
    """What a method is given that was lent no model."""

    def __call__(
        self, x: Tensor, y: Tensor, loss: Loss | None = None, norm: Branch = "main"
    ) -> Tensor:
        raise ValueError(
            "this method looks at input gradients before each step; "
            "give it the model: method.batches(loader, model)"
        )

    def logits(self, x: Tensor) -> Tensor:
        return self(x, x)
