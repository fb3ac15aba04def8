"""Learning from a batch, recorded once as a CUDA graph and replayed for the batches after it.

A card often takes longer to be told of a small network's kernels, one by one, than to compute
them. A graph is told at once: probes, passes, the optimizer's step and averaged weights.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gratis.learner import Learner
from gratis.metrics import Metrics
from gratis.optim.groups import Settings, place_counts
from gratis.passes import Batch, Method

TOLD = torch.__version__ < "2.14"
"""Whether PyTorch must be told which generators a graph draws from, and leaves the device's own
where it was when a recording failed, so that nothing could be drawn any more."""


class Graphs:
    """Lets `learner` replay a recording for batches of the shape that came twice in a row:

        learner.learn = Graphs(learner).learn

    Others are learned from kernel by kernel, and so is the first batch after weights or moments
    were loaded: it makes what the recording then finds. Where an optimizer cannot take its rate
    from the card (LARS, LAMB), or a schedule moves more than the rate, the recording holds probes
    and passes alone, and only where a batch makes one update. The recording keeps memory of its
    own on the card, about as much as learning from a batch takes.

    What a method draws must come from `Batch.generator` or PyTorch's own, and what it keeps must
    be in `Method.state`; anything else that changes from batch to batch would stay as recorded.
    Raises ValueError where graphs cannot be used whatever the method (see `refusal`).
    """

    def __init__(self, learner: Learner) -> None:
        reason = refusal(learner)
        if reason is not None:
            raise ValueError(f"updates cannot be replayed as graphs: {reason}")
        self.learner = learner
        self.recording: Recording | None = None
        self._last: object = None
        self._loads = -1
        self._failed = False
        self.whole = _takes_tensors(learner)

    def learn(self, method: Method, batch: Batch, at_most: int | None = None) -> Metrics:
        """As Learner.learn_now."""
        learner = self.learner
        if self._loads != learner.loads:
            self.recording, self._last, self._loads = None, None, learner.loads
            self.prepare()
        updates = len(method.update_thirds(len(batch.x)))
        if at_most is not None and at_most < updates:
            return learner.learn_now(method, batch, at_most)
        if self.whole and not _sets_rates_alone(learner, updates):
            self.whole, self.recording = False, None
        asked = _asked(learner, method, batch, self.whole)
        again, self._last = asked == self._last, asked
        if self.recording is not None and self.recording.fits(asked, method):
            return self.recording.replay(batch)
        if again and not self._failed:
            self.recording = None  # its memory is free for the next
            self.recording = self._record_or_warn(method, batch)
            if self.recording is not None:
                return self.recording.replay(batch)
        return learner.learn_now(method, batch, at_most)

    def _record_or_warn(self, method: Method, batch: Batch) -> "Recording | None":
        try:
            return self.record(method, batch)
        except RuntimeError as error:  # the card has no memory left, say
            self._failed = True
            warnings.warn(
                f"learning goes on kernel by kernel, for it could not be recorded: {error}",
                stacklevel=2,
            )
            return None

    def record(self, method: Method, batch: Batch) -> "Recording | None":
        """Learning from such batches, None where it cannot be recorded; nothing is learned yet."""
        updates = len(method.update_thirds(len(batch.x)))
        if not (self.whole or updates == 1):
            return None
        return Recording(self.learner, method, batch, updates if self.whole else None)

    def prepare(self) -> None:
        """Let the optimizer step as a recording needs it, in one kernel where it can."""
        if not self.whole:
            return
        for group in self.learner.optimizer.param_groups:
            rate = torch.as_tensor(float(group["lr"]), device=self.learner.device)
            ways = {"fused": True, "foreach": False, "capturable": True}
            group.update({k: v for k, v in ways.items() if k in group}, lr=rate)
        place_counts(self.learner.optimizer)


def refusal(learner: Learner) -> str | None:
    """Why graphs cannot be used whatever the method, if they cannot."""
    if learner.device.type != "cuda":
        return f"graphs are CUDA's, and the network is on the {learner.device.type}"
    if learner.processes.world > 1:
        return "several processes exchange gradients in each update, which is not recorded"
    if learner.scaler.is_enabled():
        return "with fp16 the host asks after each update whether it overflowed"
    return None


def _takes_tensors(learner: Learner) -> bool:
    """Whether the step takes its rate from the card, so that one recording serves every rate."""
    able = type(learner.optimizer) is torch.optim.SGD or "capturable" in learner.optimizer.defaults
    return able and _sets_rates_alone(learner, 1)


def _sets_rates_alone(learner: Learner, updates: int) -> bool:
    """Whether the schedule sets nothing but the rate in so many updates from now on."""
    if learner.schedule is None:
        return True
    coming = range(learner.updates, learner.updates + updates)
    return all(set(learner.schedule(update, learner.begun)) == {"lr"} for update in coming)


def _record_nothing(device: torch.device) -> None:
    """A recording that ends, and with it what one that failed has left of itself."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(device), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        torch.zeros(1, device=device)


def _asked(learner: Learner, method: Method, batch: Batch, whole: bool) -> tuple[object, ...]:
    """What decides what learning from a batch computes, but for numbers on the card and what the
    method keeps, which the first batch begins.
    """
    return (
        (id(method), _hyperparameters(method)),
        (batch.x.shape, batch.y.shape, batch.y.dtype, batch.generator is None),
        (learner.dtype, [p.requires_grad for p in learner.model.parameters()]),
        [module.training for module in learner.model.modules()],
        _settings(learner.optimizer) if whole else None,
    )


def _hyperparameters(method: Method) -> dict[str, object]:
    """What was said of a method when it was made, and may have been changed since."""
    if not is_dataclass(method):
        return {}
    said = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
    return {name: id(v) if isinstance(v, Tensor) else v for name, v in said.items()}


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the optimizer's groups say; of tensors, whose values may change, which they are."""
    return [
        {k: id(v) if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
        for group in optimizer.param_groups
    ]


class Recording:
    """One batch's learning by `method`, as a graph.

    asked: what it is a recording of.
    updates: how many optimizer steps it holds; None for none, the one that follows being taken
    as ever.  x, y, generator, kept: what a replay reads, in places that stay: images, labels,
    the source of draws, and the method's state.
    """

    def __init__(self, learner: Learner, method: Method, batch: Batch, updates: int | None) -> None:
        self.learner, self.method, self.updates = learner, method, updates
        self.x, self.y = batch.x.clone(), batch.y.clone()
        self.generator = None if batch.generator is None else torch.Generator(learner.device)
        self.rates = torch.zeros(updates or 0, device=learner.device)
        self.asked = _asked(learner, method, batch, updates is not None)
        before = method.state()
        self.kept = {name: value.clone() for name, value in before.items()}
        method.load_state(self.kept)
        mine = replace(batch, x=self.x, y=self.y, generator=self.generator)
        spent, stream = vars(learner.spent).copy(), torch.cuda.current_stream(learner.device)
        self.graph = torch.cuda.CUDAGraph()
        if self.generator is not None and TOLD:
            self.graph.register_generator_state(self.generator)
        try:
            with counts_kept(learner), self._recorded_rates():
                # what other threads do meanwhile, such as pin memory for a loader, is no part of it
                with (
                    torch.cuda.device(learner.device),
                    torch.cuda.graph(
                        self.graph,
                        # a card's own: PyTorch keeps one stream for all, of the card that was first
                        stream=torch.cuda.Stream(learner.device),  # type: ignore[no-untyped-call]
                        capture_error_mode="thread_local",
                    ),
                ):
                    self.metrics = learner.learn_now(method, mine, update=self._update)
                    for name, value in method.state().items():
                        self.kept[name].copy_(value)
                self.weights = learner.weighed.copy()
                self.spent = {name: now - spent[name] for name, now in vars(learner.spent).items()}
        except Exception:
            torch.cuda.set_stream(stream)  # where recording cannot be ended, PyTorch does not
            method.load_state(before)
            if TOLD:
                _record_nothing(learner.device)
            raise
        finally:
            trained = list(learner.model.parameters())
            self.gradients = [(p, p.grad) for p in trained if p.grad is not None]
            learner.optimizer.zero_grad(set_to_none=True)
        method.load_state(self.kept)

    def fits(self, asked: tuple[object, ...], method: Method) -> bool:
        """Whether it is a recording of learning from such batches."""
        state = {name: value.shape for name, value in method.state().items()}
        kept = {name: value.shape for name, value in self.kept.items()}
        return (asked, state) == (self.asked, kept)

    def replay(self, batch: Batch) -> Metrics:
        """Learn from a batch that fits."""
        learner = self.learner
        self.x.copy_(batch.x)
        self.y.copy_(batch.y)
        state = self.method.state()
        for name, value in self.kept.items():
            value.copy_(state[name])
        self.method.load_state(self.kept)
        # without a schedule the step reads the rate itself, which to ask for is to wait
        for place in range(0 if learner.schedule is None else self.updates or 0):
            self.rates[place].fill_(learner.rate(learner.updates + place))
        if self.generator is not None and batch.generator is not None:
            self.generator.set_state(batch.generator.get_state())
        self.graph.replay()
        if self.generator is not None and batch.generator is not None:
            batch.generator.set_state(self.generator.get_state())
        for name, count in self.spent.items():
            setattr(learner.spent, name, getattr(learner.spent, name) + count)
        self._step()
        found = self.metrics
        return Metrics(
            losses=[value.clone() for value in found.losses],
            correct=[value.clone() for value in found.correct],
            images=found.images.copy(),
            labelled=[value.clone() for value in found.labelled],
        )

    def _step(self) -> None:
        """Count the steps of the replay, or take the one that it leaves to be taken."""
        learner = self.learner
        if self.updates is not None:
            learner.updates += self.updates
            if learner.averaged is not None:
                learner.averaged.n_averaged += self.updates
            return
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        learner.weighed = self.weights.copy()
        learner.update(equal_speed=self.method.equal_speed)

    def _update(self, *, equal_speed: bool) -> None:
        if self.updates is not None:
            self.learner.update(equal_speed=equal_speed)

    @contextmanager
    def _recorded_rates(self) -> Iterator[None]:
        """Within it the schedule's rates are read from `rates`, where each replay puts its own."""
        learner, first = self.learner, self.learner.updates
        asked = learner.schedule

        def rates(update: int, begun: int) -> Settings:
            return {"lr": self.rates[update - first]}

        learner.schedule = rates if asked is not None and self.updates is not None else asked
        try:
            yield
        finally:
            learner.schedule = asked


@contextmanager
def counts_kept(learner: Learner) -> Iterator[None]:
    """What is counted on the host while a graph is recorded did not happen."""
    updates, spent = learner.updates, vars(learner.spent).copy()
    averaged = learner.averaged
    taken = None if averaged is None else int(averaged.n_averaged)  # on the host
    weights, parts = learner.weighed.copy(), learner.parts
    try:
        yield
    finally:
        learner.updates, learner.weighed, learner.parts = updates, weights, parts
        vars(learner.spent).update(spent)
        if averaged is not None and taken is not None:
            averaged.n_averaged.fill_(taken)
