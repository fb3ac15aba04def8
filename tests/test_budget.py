"""Cost in passes: the plan equals what a step-by-step simulation can afford."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gratis.budget import FORWARD, PASS, PROBE, Meter, Plan, passes_of, plan, thirds_of

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=6)
costs = st.lists(st.integers(1, 20), min_size=1, max_size=5)
"""Thirds an image of each update that a method makes of a batch."""


def method(per_update: Sequence[int]) -> Callable[[int], Sequence[int]]:
    return lambda images: [cost * images for cost in per_update]


def simulated(batch_sizes: Sequence[int], per_update: Sequence[int], budget: int) -> Plan:
    """Pay update by update until the next one is too dear."""
    updates = spent = 0
    for size in cycle(batch_sizes):
        for cost in per_update:
            if spent + cost * size > budget:
                return Plan(updates, spent)
            updates, spent = updates + 1, spent + cost * size
    raise AssertionError


@given(batch_sizes=sizes, per_update=costs, budget=st.integers(0, 3000))
def test_plan_equals_a_simulation(
    batch_sizes: list[int], per_update: list[int], budget: int
) -> None:
    planned = plan(batch_sizes, method(per_update), budget_thirds=budget)
    assert planned == simulated(batch_sizes, per_update, budget)


@given(batch_sizes=sizes, per_update=costs, budget=st.integers(0, 10**12))
def test_plan_never_exceeds_and_leaves_less_than_the_dearest_update(
    batch_sizes: list[int], per_update: list[int], budget: int
) -> None:
    planned = plan(batch_sizes, method(per_update), budget_thirds=budget)
    dearest = max(batch_sizes) * max(per_update)
    assert planned.thirds <= budget
    assert budget - planned.thirds < dearest


@given(batch_sizes=sizes, per_update=costs, updates=st.integers(0, 100))
def test_a_budget_that_pays_exactly_buys_exactly(
    batch_sizes: list[int], per_update: list[int], updates: int
) -> None:
    all_costs = [size * cost for size in batch_sizes for cost in per_update]
    price = sum(all_costs[i % len(all_costs)] for i in range(updates))
    assert plan(batch_sizes, method(per_update), budget_thirds=price) == Plan(updates, price)
    if updates:
        short = plan(batch_sizes, method(per_update), budget_thirds=price - 1)
        assert short.updates == updates - 1


@given(batch_sizes=sizes, per_update=costs, tenths=st.integers(0, 60))
def test_data_passes_are_whole_batches(
    batch_sizes: list[int], per_update: list[int], tenths: int
) -> None:
    planned = plan(batch_sizes, method(per_update), data_passes=tenths / 10)
    batches = tenths * len(batch_sizes) // 10
    seen = [batch_sizes[i % len(batch_sizes)] for i in range(batches)]
    assert planned == Plan(batches * len(per_update), sum(seen) * sum(per_update))


def test_methods_cost_what_the_papers_say() -> None:
    batch_sizes = [128, 128, 44]
    free = method([PASS] * 8)
    assert passes_of(plan(batch_sizes, free, data_passes=1).thirds, 300) == 8
    pgd = method([PASS + 7 * PROBE])
    one = plan(batch_sizes, pgd, data_passes=1)
    assert passes_of(one.thirds, 300) == pytest.approx(1 + 14 / 3)
    # equal cost: 15 passes are 15 natural data passes, 1.875 of Free-8
    assert plan(batch_sizes, method([PASS]), budget_thirds=15 * 3 * 300).updates == 45
    assert plan(batch_sizes, free, budget_thirds=15 * 3 * 300).thirds <= 15 * 3 * 300


@pytest.mark.parametrize(
    ("passes", "images", "thirds"),
    [
        (1, 7, 21),
        (5 / 3, 3, 15),  # the float lies below five thirds
        (5 / 3, 1000, 5000),
        (17 / 3, 1797, 30549),
        (0.1, 10, 3),
        (0.1 + 0.2, 10, 9),
        (0.7, 100, 210),
        (160, 50_000, 24_000_000),
        (0.01, 3, 0),
        (1e-9, 1000, 0),
    ],
)
def test_thirds_of_floats(passes: float, images: int, thirds: int) -> None:
    assert thirds_of(passes, images) == thirds


@given(
    top=st.integers(1, 5000),
    bottom=st.sampled_from([1, 2, 3, 4, 5, 8, 10, 100, 255]),
    images=st.integers(1, 100_000),
)
def test_thirds_of_a_typed_fraction_are_exact(top: int, bottom: int, images: int) -> None:
    assert thirds_of(top / bottom, images) == int(Fraction(top, bottom) * 3 * images)


@given(thirds=st.integers(0, 10**9), images=st.integers(1, 100_000))
def test_passes_of_goes_back_to_the_thirds(thirds: int, images: int) -> None:
    assert passes_of(thirds, images) == thirds / (3 * images)


def test_meter_counts_thirds_and_as_the_papers_do() -> None:
    meter = Meter(passes=5, probes=7, forwards=11)
    assert meter.thirds == 5 * PASS + 7 * PROBE + 11 * FORWARD == 40
    assert meter.papers == 12
    assert (PASS, PROBE, FORWARD) == (3, 2, 1)
