"""Whether compiling a network's forward and backward pays here: measured once, then kept."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gratis import clock, trials
from gratis.learner import Learner
from gratis.prober import Prober
from gratis.run import settled


@dataclass(frozen=True, kw_only=True)
class Decision(trials.Decision):
    """compiled: median milliseconds of a pass and a probe of one batch, as `eager` is."""

    compiled: float | None = None


def choose(
    mode: str,
    learner: Learner,
    *,
    batch: Callable[[], tuple[Tensor, Tensor]],
    records: Iterable[Mapping[str, Any]],
    record: Callable[..., None],
) -> None:
    """Let `learner` run compiled code where the mode says "on", or "auto" and it pays here.

    batch: a first batch to try it on.  records: the run's log, where an earlier decision stands.
    record: writes an event into it. The leading process decides, once in a run's life; the others
    do as it found, and so does a run that is taken up again.
    """
    if mode == "off":
        return

    def pays() -> bool:
        earlier = settled(records, "compile")
        if earlier is not None:
            return bool(earlier)
        decision = decide(learner, *batch())
        record("compile", update=0, **decision.plain())
        return decision.used

    if mode == "on" or learner.processes.led(pays):
        learner.compile()


def decide(learner: Learner, x: Tensor, y: Tensor) -> Decision:
    """Time a pass and a probe of the batch (x [B, C, H, W], y [B]) as they are and compiled.

    A copy of the network is run, in turns; the network itself, its gradients and running
    statistics are left alone. Where the compiler fails (there is none, or it does not know an
    operation) the decision is against it, and `reason` says why.
    """
    began = time.perf_counter()
    step = _Step(learner, x, y)
    compiled = torch.compile(step.model, dynamic=False)
    try:
        for forward in (step.model, compiled):
            step(forward)
            step(forward)
    except Exception as error:
        # the compiler's errors have no common class, and none of them may end a training run
        reason = f"the compiler failed: {trials.complaint(error)}"
        return Decision(used=False, reason=reason, seconds=time.perf_counter() - began)
    eager, fast, used = trials.in_turns(
        lambda: step.milliseconds(step.model), lambda: step.milliseconds(compiled)
    )
    reason = f"compiled code takes {fast / eager:.2f} of the time"
    return Decision(
        used=used,
        reason=reason,
        eager=eager,
        compiled=fast,
        seconds=time.perf_counter() - began,
    )


class _Step:
    """What nearly all of an update's time is spent on: a learned pass and a probe."""

    def __init__(self, learner: Learner, x: Tensor, y: Tensor) -> None:
        self.model = copy.deepcopy(learner.model).train()
        # an image without a label (tasks.NO_LABEL) is timed as any other
        self.x, self.y = x.contiguous(memory_format=learner.memory_format), y
        if y.ndim == 1:  # not boxes, of which some are padding
            self.y = y.clamp(min=0)
        self.dtype, self.task = learner.dtype, learner.task
        probe = learner.probe
        self.prober = Prober(self.model, probe.loss, norm=probe.norm, precision=self.dtype)

    def __call__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self.prober.forward = forward
        self.prober(self.x, self.y)
        device = self.x.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype is not None):
            loss = self.task.loss(forward(self.x), self.y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad(set_to_none=True)

    def milliseconds(self, forward: Callable[[Tensor], Tensor]) -> float:
        began = clock.seconds(self.x.device)
        self(forward)
        return 1000 * (clock.seconds(self.x.device) - began)
