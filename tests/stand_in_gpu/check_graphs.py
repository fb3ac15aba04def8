"""Replayed graphs learn what the kernels by themselves learn, bit by bit, and wait for nothing."""

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from gratis import Free, Learner, fgsm_rs
from gratis.graphs import Graphs
from gratis.optim import LAMB
from gratis.passes import Method
from tests.dying import assert_same
from tests.stand_in_gpu.gpu import StandInGpu
from tests.stand_in_gpu.learning import (
    BALL,
    METHODS,
    batches,
    every_method,
    learned,
    learner,
    muon,
    network,
    standing,
)


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

    def moved_later(update: int, begun: int) -> dict[str, float]:
        return {"lr": 0.1} if update < 3 else {"lr": 0.1, "weight_decay": 0.3}

    assert compared(gpu, METHODS["fgsm-rs"], schedule=moved_later) > 9


@every_method
def test_an_update_waits_for_nothing(gpu: StandInGpu, method: Callable[[], Method]) -> None:
    """Recorded or not: no value, shape or tensor is fetched from the card, and
    none sent to it."""
    made = method()
    ours = learner(made, ema=0.9)
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


@pytest.mark.parametrize("setting", ["lr", "weight_decay", "a frozen norm"])
def test_what_a_user_sets_between_batches_counts(gpu: StandInGpu, setting: str) -> None:
    ends = []
    for graphs in (False, True):
        method = fgsm_rs(BALL)
        ours = learner(method, schedule=None)
        if graphs:
            ours.learn = Graphs(ours).learn
        some = list(batches((16,) * 6))
        told = learned(ours, method, iter(some[:3]))
        if setting == "a frozen norm":
            ours.model[1].eval()
        else:
            ours.optimizer.param_groups[0][setting] = 0.3
        ends.append((told, learned(ours, method, iter(some[3:])), standing(ours)))
    assert ends[0][:2] == ends[1][:2]
    assert_same(ends[0][2], ends[1][2])
    assert gpu.replays == 4, "it is recorded anew when it has come twice"


def test_what_changes_at_every_batch_is_not_recorded_at_every_batch(gpu: StandInGpu) -> None:
    for what in ("lr", "eps"):
        method = fgsm_rs(BALL)
        ours = learner(method, schedule=None)
        ours.learn = Graphs(ours).learn
        for place, batch in enumerate(batches((16,) * 6)):
            if what == "lr":
                ours.optimizer.param_groups[0]["lr"] = 0.1 + 0.01 * place
            else:
                method.ball = BALL.of(BALL.eps * (1 + place / 10))
            ours.fit(method, batch)
    assert gpu.replays == 0


def test_a_short_batch_in_every_epoch_leaves_the_recording_alone(gpu: StandInGpu) -> None:
    sizes = (16, 16, 16, 12) * 3
    method = fgsm_rs(BALL)
    ours = learner(method)
    graphs = Graphs(ours)
    ours.learn, kept = graphs.learn, set()
    for batch in batches(sizes):
        ours.fit(method, batch)
        kept.add(id(graphs.recording))
    assert gpu.replays == 2 + 3 + 3
    assert len(kept - {id(None)}) == 1


def test_another_radius_is_learned_from(gpu: StandInGpu) -> None:
    ends = []
    for graphs in (False, True):
        method = fgsm_rs(BALL)
        ours = learner(method)
        if graphs:
            ours.learn = Graphs(ours).learn
        some = list(batches((16,) * 6))
        told = learned(ours, method, iter(some[:3]))
        method.ball = BALL.of(0.0)
        ends.append((told, learned(ours, method, iter(some[3:])), standing(ours)))
    assert ends[0][:2] == ends[1][:2]
    assert_same(ends[0][2], ends[1][2])
    assert gpu.replays == 4


@pytest.mark.parametrize("make", [torch.optim.AdamW, muon], ids=["adamw", "muon"])
def test_moments_begun_in_another_way_are_gone_on_with(gpu: StandInGpu, make: Any) -> None:
    """Counts of steps lie on the host where nothing is fused, and on the card for graphs."""

    def plain() -> Any:
        model = network()
        return Learner(model, make(model if make is muon else model.parameters()), seed=3)

    method, some = fgsm_rs(BALL), list(batches((16,) * 5))
    ours, loaded = plain(), plain()
    learned(ours, method, iter(some[:2]))
    loaded.learn = Graphs(loaded).learn
    loaded.load_state(ours.state())
    learned(loaded, method, iter(some[2:]))
    assert gpu.replays == 2
    counts = [kept["step"] for kept in loaded.optimizer.state.values() if "step" in kept]
    assert counts
    assert {count.device.type for count in counts} == {"cuda"}
    assert {float(count) for count in counts} == {5.0}
    # and back again, where reading a count from the card would be waited for
    back = plain()
    back.load_state(loaded.state())
    learned(back, method, iter(some))
    moved = [kept["step"] for kept in back.optimizer.state.values() if "step" in kept]
    assert {count.device.type for count in moved} == {"cpu"}
