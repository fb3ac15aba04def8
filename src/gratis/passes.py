"""The vocabulary of training: a *pass* is learned from, a *probe* is only looked at.

A method yields the passes it wants learned from and finds the input gradient in `p.x.grad`
when it resumes. It owns no model, optimizer, precision or device, so the same lines serve
the trainer here and a loop of the user's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from gratis.balls import Ball
from gratis.batch import Batch, seeded
from gratis.losses import Loss, cross_entropy
from gratis.nn.auxbn import Branch
from gratis.prober import Prober, precision_named

__all__ = ["Batch", "Method", "Objective", "Pass", "Probe"]

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
        loss: Loss = cross_entropy,
        precision: str = "fp32",
        rank: int = 0,
        world: int = 1,
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
        loss: what probes climb, (the model's answers, y) -> [B]; say it where yours is not the
            cross entropy of logits [B, K]. Losses of a method's own (`targeted`, `only_correct`)
            are climbed in its place.
        precision: of probes, "fp32", "bf16" or "fp16" (autocast): that of your own forward.
        rank, world: the loader gives part `rank` of `world` equal parts of each global batch, as
            in a process group of yours; with a seed each part draws what is its own.
        Raises ValueError for x out of range, for a method whose updates are not ordinary steps,
        and for answers that are not [B, K], K > 1, where no loss was given; RuntimeError for a
        backward that never came.
        """
        if not self.own_loop:
            raise ValueError(
                f"{type(self).__name__} joins several passes or a loss of its own into each "
                "update, which a loop over (x, y) cannot do; use gratis.Learner(model, "
                "optimizer).fit(method, Batch(x, y)) for each batch, Batch from gratis.passes"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} is none of 0 to {world - 1}, as world={world} has them")
        dtype = precision_named(precision)
        probe: Probe = _NoProbe() if model is None else Prober(model, loss, precision=dtype)
        device = next(model.parameters()).device if model is not None else None
        update = self._handed_out if updates is None else updates
        for item in loader:
            x, y = item[0].to(device), item[1].to(device)
            if self.ball is not None:
                self.ball.check(x)
            generator = None if seed is None else seeded(seed, update, x.device)
            for p in self.passes(Batch(x, y, generator, rank, world), probe):
                update += 1
                self._handed_out = update
                yield p.x, p.y


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
