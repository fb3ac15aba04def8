"""Learning rates over exactly the updates of a run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gratis.optim.schedules import (
    Schedule,
    constant,
    cosine,
    cycled_momentum,
    cyclic,
    piecewise,
)

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


def test_constant_is_constant() -> None:
    assert [constant()(update, 5) for update in range(5)] == [1.0] * 5
