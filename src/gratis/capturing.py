"""Whether a run replays CUDA graphs: tried once, compared and measured, then kept."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gratis import clock, trials
from gratis.graphs import Graphs, Recording, counts_kept, refusal
from gratis.learner import Learner
from gratis.passes import Batch, Method
from gratis.run import settled

NEAR = 0.1
"""How far from where the kernels lead a replay may end, as a share of the way there. Sums that a
card adds up in another order each time change the signs of gradients near 0; what is drawn or
set anew for each batch, but was recorded as a constant, changes far more."""


@dataclass(frozen=True, kw_only=True)
class Decision(trials.Decision):
    """replayed: median milliseconds of learning from one batch, as `eager` is.
    apart: by how much the weights that either reached differ, as a share of the way to them.
    """

    replayed: float | None = None
    apart: float | None = None


def choose(
    mode: str,
    learner: Learner,
    method: Method,
    *,
    batch: Callable[[], tuple[Tensor, Tensor]],
    records: Iterable[Mapping[str, Any]],
    record: Callable[..., None],
) -> None:
    """Let `learner` replay graphs where the mode says "on", or "auto" and it pays here.

    batch: a first batch to try it on.  records: the run's log, where an earlier decision stands.
    record: writes an event into it. Either mode compares a replay with the kernels themselves
    first, once in a run's life; where they disagree, or nothing can be recorded, both leave
    everything as it was. A run that is taken up again does as it did.
    """
    if mode == "off" or (mode == "auto" and learner.device.type != "cuda"):
        return
    earlier = settled(records, "graph")
    if earlier is not None:
        used = bool(earlier) and refusal(learner) is None
    else:
        decision = decide(learner, method, Batch(*batch()), faster=mode == "auto")
        if learner.processes.leads:
            record("graph", update=0, **decision.plain())
        used = decision.used
    if used:
        learner.learn = Graphs(learner).learn


def decide(learner: Learner, method: Method, batch: Batch, *, faster: bool = True) -> Decision:
    """Learn from the batch as it is and by a graph, compare, and put everything back.

    faster: whether the graph must be, by trials.GAIN, to be used.
    """
    began = time.perf_counter()
    reason = refusal(learner)
    if reason is not None:
        return Decision(used=False, reason=reason)
    with _put_back(learner, method):
        try:
            decision = _tried(learner, method, batch, faster)
        except Exception as error:
            # what a card, a driver or a method say to recording has no common class, and none of
            # it may end a training run
            reason = f"recording failed: {trials.complaint(error)}"
            decision = Decision(used=False, reason=reason)
    return replace(decision, seconds=time.perf_counter() - began)


def _tried(learner: Learner, method: Method, batch: Batch, faster: bool) -> Decision:
    graphs = Graphs(learner)
    graphs.prepare()
    for _ in range(2):  # makes moments, running statistics and what the method keeps
        learner.fit(method, batch)
    recording = graphs.record(method, learner.placed(batch))
    if recording is None:
        name = type(learner.optimizer).__name__
        return Decision(used=False, reason=f"{name}'s steps cannot be recorded")

    def now() -> None:
        learner.learn_now(method, learner.placed(batch))

    def replayed() -> None:
        recording.replay(learner.placed(batch))

    apart = _apart(recording, replayed, now)
    if not apart < NEAR:
        reason = f"replays part from the kernels by {apart:.2g}"
        return Decision(used=False, reason=reason, apart=apart)
    timed = (partial(_milliseconds, way, learner.device) for way in (now, replayed))
    eager, fast, pays = trials.in_turns(*timed)
    reason = f"a graph takes {fast / eager:.2f} of the time"
    return Decision(used=pays or not faster, reason=reason, eager=eager, replayed=fast, apart=apart)


def _apart(recording: Recording, *ways: Callable[[], None]) -> float:
    """How far from each other weights end on two ways, as a share of how far they go.

    Two batches long, so that rates, draws and what a method keeps change on the way.
    """
    learner = recording.learner
    weights = [parameter.detach() for parameter in learner.model.parameters()]
    changed = [*weights, *learner.model.buffers(), *recording.kept.values()]
    changed += [] if learner.averaged is None else learner.averaged.module.state_dict().values()
    for state in learner.optimizer.state.values():
        changed += [value for value in state.values() if isinstance(value, Tensor)]
    before = [tensor.clone() for tensor in changed]
    random = torch.cuda.get_rng_state(learner.device)
    ends = []
    for way in ways:
        with counts_kept(learner):
            way()
            way()
        ends.append([tensor.clone() for tensor in weights])
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        torch.cuda.set_rng_state(random, learner.device)
        recording.method.load_state(recording.kept)
    gap, length = _distance(*ends), _distance(before[: len(weights)], ends[-1])
    return gap / length if length else gap


def _distance(some: list[Tensor], others: list[Tensor]) -> float:
    squares = [(a.double() - b.double()).square().sum() for a, b in zip(some, others, strict=True)]
    return float(torch.stack(squares).sum().sqrt())


def _milliseconds(learn: Callable[[], None], device: torch.device) -> float:
    began = clock.seconds(device)
    learn()
    return 1000 * (clock.seconds(device) - began)


@contextmanager
def _put_back(learner: Learner, method: Method) -> Iterator[None]:
    """Within it learner and method may learn; afterwards they stand where they stood."""
    state = copy.deepcopy(learner.state())
    kept = {name: value.clone() for name, value in method.state().items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in learner.optimizer.param_groups]
    random = torch.get_rng_state(), torch.cuda.get_rng_state(learner.device)
    try:
        yield
    finally:
        for group, before in zip(learner.optimizer.param_groups, groups, strict=True):
            group.update(before)
        learner.optimizer.zero_grad(set_to_none=True)
        learner.load_state(state)
        method.load_state(kept)
        torch.set_rng_state(random[0])
        torch.cuda.set_rng_state(random[1], learner.device)
