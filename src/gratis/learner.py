"""The engine: a model and its optimizer; every backward pass and update happens here."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gratis.batch import Batch, seeded
from gratis.budget import Meter
from gratis.casts import casts_kept
from gratis.comm_hooks import exchange_named
from gratis.distributed import Processes, Replica
from gratis.metrics import Metrics, Tally
from gratis.nn.auxbn import check_stepped, equalise_speed, through
from gratis.nn.batchnorm import PartsStatistics
from gratis.nn.layout import layout
from gratis.nn.syncedbn import synced
from gratis.nn.wrapped import check_bare
from gratis.optim import groups
from gratis.optim.averaged import Averaged
from gratis.passes import Method, Pass
from gratis.prober import Prober, precision_named
from gratis.tasks import Classification, Task

VARIANTS = 64
"""Of a network, compiled in one process at most."""


class Learner:
    """Model + optimizer: `fit` feeds a method's passes through them, and counts the cost.

    schedule: (update counted from 0, update at which the schedule began) -> {"lr": rate} for an
    update, and other settings if any; every group of the optimizer gets them.
    precision: fp32, bf16, or fp16 with loss scaling (CUDA); inputs and their gradients are
    always fp32.  probe_norm: see Prober.  ema: decay of averaged weights, None for none.
    gradients: how they travel between processes, a name in gratis.comm_hooks.EXCHANGES.
    Raises ValueError for a model that DistributedDataParallel wraps, since that is done here, and
    for a schedule over groups of different rates.

    learn: how `fit` learns from a batch that is placed; `learn_now`, or `gratis.graphs.Graphs`'.
    weighed, parts: what the passes of the update in the making weigh, by branch of norms, and how
    many parts its batch is learned in.  loads: how often weights and moments were replaced.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Task | None = None,
        *,
        schedule: groups.Schedule | None = None,
        precision: str = "fp32",
        probe_norm: str = "batch",
        channels_last: bool = False,
        ema: float | None = None,
        seed: int | None = None,
        gradients: str = "fp32",
    ) -> None:
        check_bare(model)
        if schedule is not None:
            groups.check_alike(optimizer)
        self.task: Task = task or Classification()
        self.device = next(model.parameters()).device
        self.memory_format = layout(model, channels_last)
        self.model = model.to(memory_format=self.memory_format)
        self.optimizer, self.schedule = optimizer, schedule
        self.spent = Meter()
        self.probe = Prober(model, self.task.losses, norm=probe_norm, meter=self.spent)
        self.set_precision(precision)
        self.forward: Callable[[Tensor], Tensor] = self.model
        self.learn: Callable[[Method, Batch, int | None], Metrics] = self.learn_now
        self.loads = 0
        self.processes = Processes(self.device)
        self.replica = Replica(
            self.model, self.processes, exchange_named(gradients, seed or 0, precision)
        )
        self.seed = seed
        self.averaged = None if ema is None else Averaged(model, ema)
        self.updates = 0
        self.begun = 0
        self.weighed = {"main": 0.0, "aux": 0.0}
        self.parts = 1
        self._statistics = PartsStatistics()
        self._everyones = self.processes.everyones if self.processes.world > 1 else None
        self._method: Method | None = None  # whose first batch has been looked at

    def set_precision(self, precision: str) -> None:
        """From now on multiply by weights in "fp32", "bf16" or "fp16", which needs CUDA."""
        dtype = precision_named(precision)
        if precision == "fp16" and self.device.type != "cuda":
            raise ValueError(
                f"precision fp16 needs a CUDA device, but the model is on {self.device}; use bf16"
            )
        self.dtype = self.probe.precision = dtype
        self.scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")

    @property
    def evaluated(self) -> nn.Module:
        """The weights to check and to keep: averaged ones where there are any."""
        return self.model if self.averaged is None else self.averaged.module

    def backward(self, p: Pass) -> tuple[Tensor, Tensor | None]:
        """Forward and backward of pass p into the parameters' gradients, and p.x's if wanted.

        The gradients add up over the passes of an update, each times its weight. Returns the
        mean loss and how many images were answered as labelled (None for a pass that has no
        answers), both detached.
        """
        self.spent.passes += len(p.x)
        self.spent.extra += p.extra
        if not any(self.weighed.values()):
            self.optimizer.zero_grad(set_to_none=True)
        self.weighed[p.norm] += p.weight
        self.parts = p.parts
        self.replica.hook.update = self.updates
        with (
            self.replica.synced(p.update),
            through(self.model, p.norm),
            self._statistics.of(self.model, p.part, p.parts),
            synced(self.model, self._everyones),
        ):
            with self._autocast():
                loss, logits = self.replica.run(lambda model: self._objective(model, p))
            weighed = loss if p.weight == 1.0 else p.weight * loss
            self.scaler.scale(weighed).backward()
        right = None if logits is None else self.task.correct(logits, p.y).sum()
        return loss.detach(), right

    def _objective(self, model: nn.Module, p: Pass) -> tuple[Tensor, Tensor | None]:
        if p.loss is not None:
            return p.loss(model, p.x, p.y)
        logits = self.forward(p.x)
        return self.task.loss(logits, p.y), logits

    def compile(self) -> None:
        """From now on run compiled code for passes of the task's own loss, and for probes.

        Shapes are fixed: each size of batch is compiled when it first comes, which takes a while.
        Losses that methods bring along (TRADES, GradAlign) run the network as it is.
        """
        from torch._dynamo import config  # slow to import

        # one for each size of batch, pass and probe, branch of the norms: three phases alone make
        # twelve. Beyond PyTorch's limit of eight the rest would run as they are, with a warning
        config.recompile_limit = max(config.recompile_limit, VARIANTS)
        self.forward = self.probe.forward = torch.compile(self.model, dynamic=False)

    def rate(self, update: int) -> float:
        """The learning rate of an update counted from 0."""
        if self.schedule is not None:
            return float(groups.asked(self.schedule, update, self.begun)["lr"])
        return float(self.optimizer.param_groups[0]["lr"])

    def update(self, *, equal_speed: bool = False) -> None:
        """One optimizer step at the schedule's rate for this update.

        equal_speed: norms that saw a share of the update's loss learn as fast as shared layers.
        """
        if equal_speed:
            total = sum(self.weighed.values())
            equalise_speed(self.model, *(weight / total for weight in self.weighed.values()))
        self.weighed = {"main": 0.0, "aux": 0.0}
        if self.parts > 1:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_div_(gradients, self.parts)
        if self.schedule is not None:
            settings = groups.asked(self.schedule, self.updates, self.begun)
            for group in self.optimizer.param_groups:
                groups.put(group, settings)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.updates += 1
        torch.clear_autocast_cache()  # the weights that it holds casts of have moved

    def fit(self, method: Method, batch: Batch, *, at_most: int | None = None) -> Metrics:
        """Learn from one batch as `method` asks, in at most `at_most` updates.

        batch: x [B, C, H, W] pixels in the range of the method's ball, y [B], on any device; in a
        process group this process's part.
        The model is put into train mode where as a whole it is not; in one that is, layers that
        were put into eval mode, frozen batch norms say, stay so.
        Raises ValueError at a method's first batch for pixels out of range, and for auxiliary
        norms that the optimizer does not know of; later batches are not looked at.
        """
        if self.scaler.is_enabled() and not method.loss_scaling:
            raise ValueError(
                f"{type(method).__name__} uses gradients as they are, which fp16's loss scaling "
                "would multiply; use precision bf16 or fp32"
            )
        batch = self.placed(batch)
        if method is not self._method:
            self._look(method, batch.x)
        if not self.model.training:
            self.model.train()
        method.bind(self.model, batch.x)
        return self.learn(method, batch, at_most)

    def _look(self, method: Method, x: Tensor) -> None:
        """Once a method, since to look at pixels is to wait for the device."""
        if method.auxiliary:
            check_stepped(self.model, self.optimizer)
        if method.ball is not None:
            method.ball.check(x)
        self._method = method

    def learn_now(
        self,
        method: Method,
        batch: Batch,
        at_most: int | None = None,
        update: Callable[..., None] | None = None,
    ) -> Metrics:
        """What `fit` does with a placed batch, kernel by kernel; `update`: in place of our own."""
        update = update or self.update
        self.weighed = {"main": 0.0, "aux": 0.0}  # whatever a batch left that was broken off
        tally = Tally()
        with casts_kept():
            for p in method.passes(batch, self.probe):
                loss, correct = self.backward(p)
                if correct is not None:  # else no answers were given: not the task's kind of loss
                    tally.add(loss, p.weight, correct, self.task.labelled(p.y), len(p.x))
                if not p.update:
                    continue
                update(equal_speed=method.equal_speed)
                tally.end_update()
                if len(tally.metrics.losses) == at_most:
                    break
        return tally.metrics

    def placed(self, batch: Batch) -> Batch:
        """The batch as the network likes it, with its place among the processes' parts."""
        generator = batch.generator
        if generator is None and self.seed is not None:
            generator = seeded(self.seed, self.updates, self.device)
        if generator is None and self.processes.world > 1:
            raise ValueError(
                "several processes draw the whole batch's random numbers alike, each for itself; "
                "give Learner the same seed in all of them"
            )
        return Batch(
            batch.x.to(self.device).contiguous(memory_format=self.memory_format),
            batch.y.to(self.device),
            generator,
            rank=self.processes.rank,
            world=self.processes.world,
            gather=self.processes.gather,
            peer=self.processes.rank,
            peers=self.processes.world,
        )

    def settle(self) -> None:
        """Let all processes hold the same network: running statistics become their mean.

        Weights are the same anyway. Before anything looks at the network; alone it does nothing.
        """
        averaged = [] if self.averaged is None else self.averaged.buffers()
        self.processes.average([*self.model.buffers(), *averaged])

    def state(self) -> dict[str, Any]:
        """Everything that `load_state` needs to go on bitwise (tensors and plain values)."""
        return {
            "model": self.model.state_dict(),
            "optimizer": groups.saved(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "updates": self.updates,
            "begun": self.begun,
            "spent": vars(self.spent).copy(),
            "gradients": {
                key: self.processes.gather(value.to(self.device)[None])
                for key, value in self.replica.hook.state().items()
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.load_weights(state)
        self.scaler.load_state_dict(state["scaler"])
        self.updates, self.begun = state["updates"], state["begun"]
        vars(self.spent).update(state["spent"])  # the probe counts into this very object
        # what other numbers of processes kept, each for itself, is no use to these
        rank, world = self.processes.rank, self.processes.world
        kept = {k: v for k, v in state.get("gradients", {}).items() if len(v) == world}
        self.replica.hook.load_state({k: v[rank].to(self.device) for k, v in kept.items()})

    def load_weights(self, state: dict[str, Any]) -> None:
        """Weights, running statistics, averages and optimizer moments; not the position."""
        self.model.load_state_dict(state["model"])
        groups.load(self.optimizer, state["optimizer"])
        self.loads += 1
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)
