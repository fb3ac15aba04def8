"""The engine: a model and its optimizer; every backward pass and update happens here."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gratis.budget import Meter
from gratis.losses import Loss
from gratis.passes import Batch, Method, Pass, Prober
from gratis.tasks import Classification

PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass
class Metrics:
    """One entry an update: mean loss, images answered as labelled, images."""

    losses: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    images: list[int] = field(default_factory=list)


class Learner:
    """Model + optimizer: `fit` feeds a method's passes through them, and counts the cost.

    schedule: (update counted from 0, update at which the schedule began) -> settings for the
    optimizer's groups ({"lr": ...}).
    precision: fp32, bf16, or fp16 with loss scaling (CUDA); inputs and their gradients are
    always fp32.  probe_norm: see Prober.  ema: decay of averaged weights, None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Classification | None = None,
        *,
        schedule: Callable[[int, int], dict[str, float]] | None = None,
        precision: str = "fp32",
        probe_norm: str = "batch",
        channels_last: bool = False,
        ema: float | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is none of {', '.join(PRECISIONS)}")
        self.task = task or Classification()
        self.device = next(model.parameters()).device
        if precision == "fp16" and self.device.type != "cuda":
            raise ValueError(
                f"precision fp16 needs a CUDA device, but the model is on {self.device}; use bf16"
            )
        self.dtype = PRECISIONS[precision]
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.memory_format)
        self.optimizer, self.schedule = optimizer, schedule
        self.scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
        self.prober = Prober(model, self.task.losses, norm=probe_norm, precision=self.dtype)
        self.averaged = (
            AveragedModel(
                model,
                multi_avg_fn=get_ema_multi_avg_fn(ema),  # type: ignore[no-untyped-call]
                use_buffers=True,
            )
            if ema is not None
            else None
        )
        self.spent = Meter()
        self.updates = 0
        self.begun = 0

    @property
    def evaluated(self) -> nn.Module:
        """The weights to check and to keep: averaged ones where there are any."""
        return self.model if self.averaged is None else self.averaged.module

    def probe(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> Tensor:
        """The gradient of the loss at x [B, C, H, W]; costs two thirds of a pass an image."""
        self.spent.probes += len(x)
        return self.prober(x, y, loss)

    def backward(self, p: Pass) -> tuple[Tensor, Tensor]:
        """Forward and backward of pass p into the parameters' gradients, and p.x's if wanted.

        Returns the mean loss and how many images were answered as labelled, both detached.
        """
        self.spent.passes += len(p.x)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self.model(p.x)
        loss = self.task.loss(logits, p.y)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), self.task.correct(logits.detach(), p.y).sum()

    def rate(self, update: int) -> float:
        """The learning rate of an update counted from 0."""
        if self.schedule is not None:
            return self.schedule(update, self.begun)["lr"]
        return float(self.optimizer.param_groups[0]["lr"])

    def update(self) -> None:
        """One optimizer step at the schedule's rate for this update."""
        if self.schedule is not None:
            for group in self.optimizer.param_groups:
                group.update(self.schedule(self.updates, self.begun))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.updates += 1

    def fit(self, method: Method, batch: Batch, *, at_most: int | None = None) -> Metrics:
        """Learn from one batch as `method` asks, in at most `at_most` updates.

        batch: x [B, C, H, W] pixels, y [B].
        """
        metrics = Metrics()
        batch = Batch(batch.x.contiguous(memory_format=self.memory_format), batch.y)
        self.model.train()
        for p in method.passes(batch, self.probe):
            loss, correct = self.backward(p)
            self.update()
            metrics.losses.append(loss)
            metrics.correct.append(correct)
            metrics.images.append(len(p.x))
            if len(metrics.losses) == at_most:
                break
        return metrics

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on bitwise (tensors and plain values)."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "updates": self.updates,
            "begun": self.begun,
            "spent": vars(self.spent).copy(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.load_weights(state)
        self.scaler.load_state_dict(state["scaler"])
        self.updates, self.begun = state["updates"], state["begun"]
        self.spent = Meter(**state["spent"])

    def load_weights(self, state: dict[str, Any]) -> None:
        """Weights, running statistics, averages and optimizer moments; not the position."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)
