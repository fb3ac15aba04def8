"""Whether a run on a card replays graphs: tried before it begins, leaving nothing behind."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from gratis import Free, Learner, Natural
from gratis.capturing import choose, decide
from gratis.graphs import Graphs
from gratis.optim import LAMB
from gratis.passes import Batch, Pass, Probe
from tests.dying import assert_same
from tests.stand_in_gpu.gpu import StandInGpu
from tests.stand_in_gpu.learning import BALL, SGD, batches, learned, learner, network, standing


@dataclass
class Drawn(Natural):
    """Draws from where no recording draws again."""

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        yield Pass(batch.x.roll(random.randrange(12), 3), batch.y)


@dataclass
class Read(Natural):
    """Asks the card for a value."""

    def passes(self, batch: Batch, probe: Probe) -> Iterator[Pass]:
        yield Pass(batch.x * float(batch.x.max()), batch.y)


def test_trying_leaves_everything_as_it_was(gpu: StandInGpu) -> None:
    method = Free(BALL, replays=2)
    ours, twin = learner(method, ema=0.9), learner(method, ema=0.9)
    decision = decide(ours, method, next(batches()), faster=False)
    assert decision.used
    assert decision.apart == 0
    assert method.state() == {}
    assert (ours.updates, ours.spent) == (0, twin.spent)
    assert ours.state()["optimizer"] == twin.state()["optimizer"]
    assert_same(standing(ours), standing(twin))


def test_what_is_not_drawn_anew_is_found_out(gpu: StandInGpu) -> None:
    decision = decide(learner(Drawn()), Drawn(), next(batches()), faster=False)
    assert not decision.used
    assert decision.reason.startswith("replays part from the kernels by")


def test_what_cannot_be_recorded_is_not(gpu: StandInGpu) -> None:
    ours = learner(Read())
    decision = decide(ours, Read(), next(batches()))
    assert not decision.used
    assert decision.reason.startswith("recording failed: ")
    assert ours.optimizer.param_groups[0]["fused"], "as `learner` had set it before"
    assert learned(ours, Read(), batches())  # and it learns as ever
    ours = learner(Free(BALL), partial(LAMB, lr=0.01))
    decision = decide(ours, Free(BALL), next(batches()))
    assert decision.reason == "LAMB's steps cannot be recorded"


def test_fp16_is_refused(gpu: StandInGpu) -> None:
    model = network()
    ours = Learner(model, SGD(model.parameters()), precision="fp16")
    decision = decide(ours, Natural(), next(batches()))
    assert decision.reason == "with fp16 the host asks after each update whether it overflowed"
    with pytest.raises(ValueError, match="with fp16 the host asks"):
        Graphs(ours)


def test_a_card_that_refuses_later_is_learned_on_all_the_same(gpu: StandInGpu) -> None:
    ours = learner(Read())
    ours.learn = Graphs(ours).learn
    with pytest.warns(UserWarning, match="goes on kernel by kernel"):
        told = learned(ours, Read(), batches())
    assert told == learned(learner(Read()), Read(), batches())


@pytest.mark.parametrize("used", [True, False])
def test_an_earlier_decision_is_kept(gpu: StandInGpu, used: bool) -> None:
    ours = learner(Natural())
    choose(
        "auto",
        ours,
        Natural(),
        batch=lambda: pytest.fail("nothing is tried"),
        records=[{"kind": "step"}, {"kind": "graph", "used": used}],
        record=lambda *_, **__: pytest.fail("nothing is decided"),
    )
    learned(ours, Natural(), batches())
    assert (gpu.replays > 0) == used
