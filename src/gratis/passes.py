"""The vocabulary of training: a *pass* is learned from, a *probe* is only looked at.

A method yields the passes it wants learned from and finds the input gradient in `p.x.grad`
when it resumes. It owns no model, optimizer, precision or device, so the same lines serve
the trainer here and a loop of the user's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gratis.balls import Ball
from gratis.losses import Loss, cross_entropy
from gratis.nn.batchnorm import untracked_statistics


@dataclass(slots=True)
class Batch:
    """x: images [B, C, H, W] in the ball's pixel range; y: class indices [B] or [B, K]."""

    x: Tensor
    y: Tensor


@dataclass(slots=True)
class Pass:
    """A request to learn from (x, y): one forward and backward whose weight gradient is kept."""

    x: Tensor
    y: Tensor

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
    asks for the reference's behaviour. `loss` [B] replaces the task's.
    """

    def __call__(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> Tensor: ...


class Method(ABC):
    """A training method: a dataclass whose fields are hyperparameters; state is kept apart."""

    ball: Ball | None  # what the method defends against; None for natural training

    @abstractmethod
    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        """Yield each pass to learn from; an optimizer step follows every one."""

    @abstractmethod
    def update_thirds(self, images: int) -> tuple[int, ...]:
        """What each update made of a batch of `images` costs, in thirds of an image's pass."""

    @property
    def cost(self) -> float:
        """Passes per image and data pass."""
        return sum(self.update_thirds(1)) / 3

    def state(self) -> dict[str, Tensor]:
        """What must be saved for the next batch to go on as if nothing had happened."""
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
        self, loader: Iterable[Any], model: nn.Module | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) to train on, in place of the loader's, for a loop of one's own.

            for x, y in method.batches(loader, model):      # was: for x, y in loader
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad(); loss.backward(); optimizer.step()

        loader: any iterable of (x, y), x [B, C, H, W] pixels inside the ball's range.
        model: needed by methods that probe; where given, batches come on its device.
        Raises ValueError for x out of range, RuntimeError for a backward that never came.
        """
        probe = Prober(model) if model is not None else _no_model
        device = next(model.parameters()).device if model is not None else None
        for item in loader:
            x, y = item[0].to(device), item[1].to(device)
            if self.ball is not None:
                self.ball.check(x)
            for p in self.passes(Batch(x, y), probe):
                yield p.x, p.y


def _no_model(x: Tensor, y: Tensor, loss: Loss | None = None) -> Tensor:
    raise ValueError(
        "this method looks at input gradients before each step; "
        "give it the model: method.batches(loader, model)"
    )


PROBE_NORMS = ("batch", "tracked", "eval")


class Prober:
    """Input gradients of `model`, two thirds of a pass: no weight gradient is computed.

    norm: how batch-norm layers act in the attack's forward. "batch" uses the batch's own
    statistics and remembers nothing (the default here); "tracked" also moves the running
    statistics (Wong 2020's and Shafahi 2019's code); "eval" uses the running statistics
    (the code of YOPO, DAT, TRADES).
    precision: dtype for autocast, None for fp32; the input and its gradient stay fp32.
    scale: a factor on the loss that keeps small fp16 gradients from vanishing.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss = cross_entropy,
        *,
        norm: str = "batch",
        precision: torch.dtype | None = None,
    ) -> None:
        if norm not in PROBE_NORMS:
            raise ValueError(f"norm={norm!r} is none of {', '.join(PROBE_NORMS)}")
        self.model, self.loss, self.norm, self.precision = model, loss, norm, precision

    def __call__(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> Tensor:
        x = x.detach().requires_grad_()
        with self.as_probed(), torch.enable_grad():
            with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
                logits = self.model(x)
            # a mean would shrink each image's gradient with the batch; a sum is per image
            total = (loss or self.loss)(logits, y).sum()
            # fp16 flushes gradients below 6e-8 to zero; only their direction is used
            scale = 1024.0 if self.precision == torch.float16 else 1.0
            (grad,) = torch.autograd.grad(total * scale, x)
        return grad

    def as_probed(self) -> AbstractContextManager[None]:
        """The model's batch-norm layers as `norm` says, put back on leaving."""
        return _norm_mode(self.model, self.norm)


@contextmanager
def _norm_mode(model: nn.Module, norm: str) -> Iterator[None]:
    """The model's batch-norm behaviour while it is probed, put back on leaving."""
    if norm == "batch":
        with untracked_statistics(model):
            yield
    elif norm == "eval":
        # mode by mode: a layer that the user froze in eval mode stays frozen afterwards
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
    else:
        yield
