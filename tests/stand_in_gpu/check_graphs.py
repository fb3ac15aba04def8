"""Replayed graphs learn what the kernels by themselves learn, bit by bit, and wait for nothing."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gratis import (
    AdvProp,
    FastAdvProp,
    Free,
    GradAlign,
    Learner,
    Linf,
    Natural,
    PGDTraining,
    Trades,
    Yopo,
    add_aux,
    fgsm,
    fgsm_rs,
    n_fgsm,
)
from gratis.capturing import choose, decide
from gratis.graphs import Graphs
from gratis.methods.in_parts import InParts
from gratis.optim import LAMB, build_optimizer
from gratis.passes import Batch, Method, Pass, Probe
from tests.stand_in_gpu.gpu import StandInGpu

BALL = Linf(8 / 255)
METHODS: dict[str, Callable[[], Method]] = {
    "natural": Natural,
    "replayed": partial(Natural, replays=3),
    "fgsm-rs": partial(fgsm_rs, BALL),
    "fgsm-previous": partial(fgsm, BALL, start="previous"),
    "n-fgsm": partial(n_fgsm, BALL),
    "pgd-3": partial(PGDTraining, BALL, steps=3),
    "free-3": partial(Free, BALL, replays=3),
    "free-2 in parts": lambda: InParts(lambda: Free(BALL, replays=2), 2),
    "advprop-2": partial(AdvProp, BALL, 2),
    "fast-advprop": partial(FastAdvProp, BALL),
    "trades-2": partial(Trades, BALL, steps=2),
    "yopo-2-2": partial(Yopo, BALL, 2, 2),
    "gradalign": partial(GradAlign, BALL),
}
muon = partial(build_optimizer, name="muon", learning_rate=0.02, nesterov=True, weight_decay=0.1)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
SIZES = (16, 16, 16, 16, 12, 16)
"""The second batch is recorded and replayed, and all of that size after it."""

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def network(auxiliary: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3)]
    layers += [nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(54, 10)]
    model = nn.Sequential(*layers)
    return (add_aux(model) if auxiliary else model).cuda()


def rate(update: int, begun: int) -> dict[str, float]:
    return {"lr": 0.1 * (1 + update % 3)}


def learner(method: Method, optimizer: Callable[..., Any] = SGD, **options: Any) -> Learner:
    model = network(method.auxiliary)
    groups = model if optimizer is muon else model.parameters()
    options = {"schedule": rate, "channels_last": True, "seed": 3, **options}
    made = Learner(model, optimizer(groups), **options)
    Graphs(made).prepare()  # fused steps round otherwise than others
    return made


def batches(sizes: tuple[int, ...] = SIZES) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        x = torch.rand(size, 3, 12, 12, generator=generator)
        yield Batch(x.cuda(), torch.randint(10, (size,), generator=generator).cuda())


def learned(learner: Learner, method: Method, some: Iterator[Batch]) -> list[float]:
    """Learns; loss and right answers of each update."""
    torch.manual_seed(5)  # dropout draws from PyTorch's own generator
    found: list[Tensor] = []
    for batch in some:
        metrics = learner.fit(method, batch)
        found += [*metrics.losses, *metrics.correct, *metrics.labelled]
    return [float(value) for value in found]


def standing(learner: Learner) -> list[Tensor]:
    """Weights, statistics, averages and moments."""
    state = learner.state()
    kept = [*state["model"].values(), *(state["averaged"] or {}).values()]
    for moments in state["optimizer"]["state"].values():
        kept += [value for value in moments.values() if isinstance(value, Tensor)]
    return [value.clone() for value in kept]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours, theirs)


def compared(gpu: StandInGpu, make: Callable[[], Method], *arguments: Any, **options: Any) -> int:
    """Asserts that both ways learn the same; how often a graph was replayed."""
    ends = []
    for graphs in (False, True):
        method = make()
        ours = learner(method, *arguments, **options)
        if graphs:
            ours.learn = Graphs(ours).learn
        told = learned(ours, method, batches())
        ends.append((told, ours.updates, vars(ours.spent), method.state(), standing(ours)))
    (*counts, state, kept), (*others, other_state, other_kept) = ends
    assert counts == others
    assert_same(kept, other_kept)
    assert_same([*state.values()], [*other_state.values()])
    return gpu.replays


@every_method
def test_a_replay_learns_what_the_kernels_learn(
    gpu: StandInGpu, method: Callable[[], Method]
) -> None:
    assert compared(gpu, method) == 4


@every_method
def test_so_it_does_in_bf16_with_averaged_weights(
    gpu: StandInGpu, method: Callable[[], Method]
) -> None:
    assert compared(gpu, method, precision="bf16", ema=0.9) == 4


@pytest.mark.parametrize("name", ["natural", "fgsm-rs", "free-3", "fast-advprop"])
def test_other_optimizers(gpu: StandInGpu, name: str) -> None:
    assert compared(gpu, METHODS[name], partial(torch.optim.AdamW, lr=1e-3)) == 4
    assert compared(gpu, METHODS[name], muon) == 8
    replays = compared(gpu, METHODS[name], partial(LAMB, lr=0.01)) - 8
    assert replays == (0 if name == "free-3" else 4), "its steps lie between those of a batch"


def test_without_a_schedule_and_with_one_of_momentum(gpu: StandInGpu) -> None:
    assert compared(gpu, METHODS["fgsm-rs"], schedule=None) == 4

    def moved(update: int, begun: int) -> dict[str, float]:
        return {"lr": 0.1, "momentum": 0.8 + update / 100}

    assert compared(gpu, METHODS["fgsm-rs"], schedule=moved) == 8


@every_method
def test_an_update_waits_for_nothing(gpu: StandInGpu, method: Callable[[], Method]) -> None:
    """Recorded or not: no value, shape or tensor is fetched from the card."""
    made = method()
    ours = learner(made)
    ours.learn = Graphs(ours).learn
    some = list(batches((16, 12, 16, 16, 16)))
    ours.fit(made, some[0])
    gpu.waits.clear()
    for batch in some[1:]:
        ours.fit(made, batch)
    assert not gpu.waits
    assert gpu.replays == 2


def test_loaded_weights_are_learned_from(gpu: StandInGpu) -> None:
    """As after a collapse that is undone, or in a run that is taken up again."""
    ends = []
    for graphs in (False, True):
        method = Free(BALL, replays=2)
        ours = learner(method)
        if graphs:
            ours.learn = Graphs(ours).learn
        some = list(batches((16, 16, 16, 16, 16)))
        learned(ours, method, iter(some[:3]))
        saved = {key: value for key, value in ours.state().items() if key != "gradients"}
        saved = torch.load(_written(saved), weights_only=True)
        learned(ours, method, iter(some[3:]))
        ours.load_state(saved)
        ends.append((learned(ours, method, iter(some)), standing(ours)))
    assert ends[0][0] == ends[1][0]
    assert_same(ends[0][1], ends[1][1])


def _written(state: dict[str, Any]) -> Any:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_another_method_is_recorded_anew(gpu: StandInGpu) -> None:
    """As the guard's gentler one."""
    ends = []
    for graphs in (False, True):
        one, other = fgsm_rs(BALL), fgsm_rs(BALL, step_size=0.01)
        ours = learner(one)
        if graphs:
            ours.learn = Graphs(ours).learn
        some = list(batches((16,) * 3))
        ends.append([learned(ours, method, iter(some)) for method in (one, other)])
    assert ends[0] == ends[1]
    assert gpu.replays == 4


@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
def test_what_a_user_sets_between_batches_counts(gpu: StandInGpu, setting: str) -> None:
    ends = []
    for graphs in (False, True):
        method = fgsm_rs(BALL)
        ours = learner(method, schedule=None)
        if graphs:
            ours.learn = Graphs(ours).learn
        some = list(batches((16,) * 6))
        told = learned(ours, method, iter(some[:3]))
        ours.optimizer.param_groups[0][setting] = 0.3
        ends.append((told, learned(ours, method, iter(some[3:])), standing(ours)))
    assert ends[0][:2] == ends[1][:2]
    assert_same(ends[0][2], ends[1][2])
    assert gpu.replays == 5, "it is recorded anew"


# --- the decision


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
