"""Learning rates over exactly the updates of a run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gratis.budget import Plan
from gratis.optim.schedules import (
    Schedule,
    constant,
    cosine,
    cycled_momentum,
    cyclic,
    piecewise,
    warmed,
)
from gratis.recipe import from_plain
from gratis.sections import Optimizer
from gratis.sections import Schedule as Section
from gratis.setting import learner
from tests.recipes import tiny

ALL = {
    "cyclic": cyclic(0.4),
    "piecewise": piecewise((0.5, 0.75), 0.1),
    "cosine": cosine(),
    "constant": constant(),
}


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
@pytest.mark.parametrize("updates", [1, 2, 3, 7, 100])
def test_shares_lie_between_0_and_1_for_every_update_of_the_run(
    schedule: Schedule, updates: int
) -> None:
    shares = [schedule(update, updates) for update in range(updates)]
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_the_shape_stretches_with_the_run(schedule: Schedule) -> None:
    short = [schedule(update, 20) for update in range(20)]
    long = [schedule(10 * update, 200) for update in range(20)]
    assert short == pytest.approx(long)


@given(
    peak=st.floats(0.05, 0.95), updates=st.integers(1, 500), share=st.floats(0, 1, exclude_max=True)
)
def test_cyclic_is_two_straight_lines(peak: float, updates: int, share: float) -> None:
    update = int(share * updates)
    expected = np.interp(update, [0, peak * updates, updates], [0, 1, 0])
    assert cyclic(peak)(update, updates) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("peak", "top"), [(0.4, 40), (0.5, 50), (0.01, 1), (0.99, 99)])
def test_cyclic_peaks_where_it_should(peak: float, top: int) -> None:
    shares = [cyclic(peak)(update, 100) for update in range(100)]
    assert shares[0] == 0
    assert shares[top] == pytest.approx(1)
    assert int(np.argmax(shares)) == top
    assert shares[99] == pytest.approx(1 / (100 - top))
    assert cyclic(peak)(100, 100) == 0


@pytest.mark.parametrize("updates", [10, 60])
def test_cyclic_and_its_momentum_are_pytorchs(updates: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    theirs = torch.optim.lr_scheduler.CyclicLR(
        optimizer,
        base_lr=0.0,
        max_lr=0.2,
        step_size_up=updates // 2,
        step_size_down=updates // 2,
    )
    ours = cyclic(0.5)
    for update in range(updates):
        share, group = ours(update, updates), optimizer.param_groups[0]
        assert 0.2 * share == pytest.approx(group["lr"], abs=1e-12)
        assert cycled_momentum(share) == pytest.approx(group["momentum"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_cycled_momentum_runs_against_the_rate() -> None:
    assert cycled_momentum(0.0) == pytest.approx(0.9)
    assert cycled_momentum(1.0) == pytest.approx(0.8)
    assert cycled_momentum(0.5, low=0.85, high=0.95) == pytest.approx(0.9)


def test_piecewise_drops_at_exactly_the_boundary() -> None:
    schedule = piecewise((0.5, 0.75), 0.1)
    shares = [schedule(update, 8) for update in range(8)]
    assert shares == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)


@given(tenths=st.integers(1, 9), tens=st.integers(1, 200))
def test_piecewise_boundaries_survive_rounding(tenths: int, tens: int) -> None:
    schedule, at = piecewise((tenths / 10,), 0.5), tenths * tens
    assert schedule(at, 10 * tens) == 0.5
    assert schedule(at - 1, 10 * tens) == 1


def test_piecewise_takes_drops_in_any_order_or_none() -> None:
    assert piecewise((0.75, 0.5), 0.1)(6, 8) == pytest.approx(0.01)
    assert piecewise((), 0.1)(6, 8) == 1


@pytest.mark.parametrize("updates", [1, 4, 9])
def test_cosine_is_pytorchs_and_half_a_wave(updates: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=updates)
    for update in range(updates):
        share = cosine()(update, updates)
        assert share == pytest.approx(optimizer.param_groups[0]["lr"])
        assert share == pytest.approx(math.cos(math.pi * update / updates / 2) ** 2)
        optimizer.step()
        theirs.step()
    assert cosine()(updates, updates) == pytest.approx(0)


def test_warm_up_climbs_by_update_and_then_the_shape_has_its_own_clock() -> None:
    # 5 epochs of 10 updates before 100 epochs with drops at 75, 90 and 95 of them
    schedule = warmed(piecewise((0.75, 0.9, 0.95), 0.1), 5 / 105)
    shares = [schedule(update, 1050) for update in range(1050)]
    assert shares[:50] == pytest.approx([(update + 1) / 50 for update in range(50)])
    main = [1.0] * 750 + [0.1] * 150 + [0.01] * 50 + [0.001] * 50
    assert shares[50:] == pytest.approx(main)


def test_warm_up_ends_where_the_shape_begins() -> None:
    schedule = warmed(cosine(), 0.2)
    assert schedule(3, 20) == schedule(4, 20) == 1
    assert [schedule(4 + update, 20) for update in range(16)] == [
        cosine()(update, 16) for update in range(16)
    ]


@pytest.mark.parametrize("shape", [piecewise((0.5,), 0.1), cosine(), constant()])
@given(warmup=st.floats(0, 1, exclude_max=True), updates=st.integers(1, 300))
def test_warm_up_of_any_length_only_climbs_and_leaves_an_update_to_the_shape(
    shape: Schedule, warmup: float, updates: int
) -> None:
    shares = [warmed(shape, warmup)(update, updates) for update in range(updates)]
    top = shares.index(1.0)
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    climbing = min(round(warmup * updates), updates - 1)
    assert top == max(climbing - 1, 0)
    assert min(shares) > 0


def test_no_warm_up_is_the_shape_itself() -> None:
    for updates in (1, 7):
        for shape in ALL.values():
            for update in range(updates):
                assert warmed(shape, 0.0)(update, updates) == shape(update, updates)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shape": "cosine", "warmup": 1.0}, r"warmup=1\.0 is no share of the run"),
        ({"shape": "cosine", "warmup": -0.1}, r"warmup=-0\.1 is no share"),
        ({"warmup": 0.1}, "warmup: a cyclic rate climbs by itself; set peak"),
    ],
)
def test_warm_ups_that_mean_nothing_are_refused(values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Section(**values)


@pytest.mark.parametrize(
    ("scaling", "batch", "rate"),
    [("linear", 1024, 0.4), ("sqrt", 1024, 0.2), ("linear", 64, 0.025), ("sqrt", 64, 0.05)],
)
def test_the_rate_grows_with_the_batch_as_asked(scaling, batch: int, rate: float) -> None:
    section = Optimizer(learning_rate=0.1, per_images=256, scaling=scaling)
    assert section.rate(batch) == pytest.approx(rate)
    assert section.rate(256) == Optimizer(learning_rate=0.1).rate(batch) == 0.1


def test_a_recipes_rate_is_scaled_and_warmed_up_in_the_learner() -> None:
    recipe = tiny(
        "natural", "data.batch_size=200", "optimizer.per_images=100", "schedule.shape=constant",
        "schedule.warmup=0.4", "optimizer.name=lamb",
    )  # fmt: skip
    engine = learner(from_plain(recipe.plain()), torch.nn.Linear(2, 2), Plan(10, 0))
    expected = [0.05, 0.1, 0.15] + [0.2] * 7
    assert [engine.rate(update) for update in range(10)] == pytest.approx(expected)
    engine.begun = 5  # a run that began anew climbs anew, over the updates left
    assert [engine.rate(update) for update in range(5, 10)] == pytest.approx([0.1] + [0.2] * 4)


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb"])
def test_a_momentum_to_cycle_is_asked_for(name: str) -> None:
    recipe = tiny("natural", "schedule.cycle_momentum=true", f"optimizer.name={name}")
    with pytest.raises(ValueError, match=rf"cycle_momentum: {name} has no momentum .* choose sgd"):
        learner(recipe, torch.nn.Linear(2, 2), Plan(10, 0))


def test_constant_is_constant() -> None:
    assert [constant()(update, 5) for update in range(5)] == [1.0] * 5
