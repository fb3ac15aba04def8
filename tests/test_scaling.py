"""The model of an update's time: bytes, rounds, overlap, and calibration."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gratis.scaling import (
    Case,
    Cluster,
    Compute,
    Exchange,
    Gradient,
    Job,
    Link,
    Update,
    seconds_per_image,
    update,
)

NETWORK, INSIDE = Link(8e6, latency=0.5), Link(8e9)  # 1 and 1,000 bytes a microsecond


# --- bytes and rounds


def reduced_in_a_ring(workers: int, chunk: int) -> tuple[np.ndarray, int, int]:
    """Everyone's sum after a ring all-reduce, played through; bytes a worker sent, rounds."""
    held = np.random.default_rng(0).integers(9, size=(workers, workers, chunk))
    total, sent, rounds = held.sum(0), 0, 0
    for phase in ("sum", "hand on"):
        for step in range(workers - 1):
            before = held.copy()
            for worker in range(workers):
                part = (worker - step + (phase == "hand on")) % workers
                after = (worker + 1) % workers
                if phase == "sum":
                    held[after, part] = before[after, part] + before[worker, part]
                else:
                    held[after, part] = before[worker, part]
            sent, rounds = sent + chunk, rounds + 1
    assert (held == total).all()
    return held, sent, rounds


@pytest.mark.parametrize("workers", [1, 2, 3, 6])
@pytest.mark.parametrize("exchange", ["all-reduce", "two-sided"])
def test_a_ring_sends_what_a_ring_played_through_sends(workers: int, exchange: Exchange) -> None:
    chunk = 4
    _, sent, rounds = reduced_in_a_ring(workers, chunk)
    bits = 32 if exchange == "all-reduce" else 8
    gradient = Gradient(chunk * workers, bits, exchange)
    assert gradient.sent(workers) == pytest.approx(sent * bits / 8)
    assert gradient.rounds(workers) == rounds


def test_gathering_sends_every_gradient_to_everyone_with_its_norms() -> None:
    gradient = Gradient(1000, 4, "one-sided", tensors=3)
    assert gradient.bytes == 500 + 12
    assert gradient.sent(6) == 5 * 512
    assert gradient.rounds(6) == 5
    assert Gradient(1000, tensors=3).bytes == 4000  # fp32 has no norms


@pytest.mark.parametrize("bits", [4, 8])
def test_one_sided_codes_are_dearer_than_fp32_from_64_over_bits_workers_on(bits: int) -> None:
    coded, whole = Gradient(1000, bits, "one-sided"), Gradient(1000)
    even = 64 // bits
    assert coded.sent(even) == whole.sent(even)
    assert coded.sent(even - 1) < whole.sent(even - 1)
    assert coded.sent(even + 1) > whole.sent(even + 1)


def test_machines_of_several_gpus_send_one_gradient_over_their_line() -> None:
    gradient = Gradient(1_000_000)
    # inside: 2 * 2/3 * 4 MB at 1 GB/s; between: 2 * 3/4 * 4 MB at 1 MB/s and 6 rounds of 0.5 s
    assert Cluster(4, 3, NETWORK, INSIDE).exchange(gradient) == pytest.approx(0.016 / 3 + 6 + 3)
    assert Cluster(1, 3, NETWORK, INSIDE).exchange(gradient) == pytest.approx(0.016 / 3)
    assert Cluster(1, 1, NETWORK, INSIDE).exchange(gradient) == 0
    half = replace(NETWORK, share=0.5)
    assert Cluster(4, 1, half, INSIDE).exchange(gradient) == pytest.approx(2 * 6 + 3)


def test_codes_travel_between_machines_and_fp32_inside_them() -> None:
    coded = Gradient(1_000_000, 8, "two-sided")
    assert Cluster(2, 2, NETWORK, INSIDE).exchange(coded) == pytest.approx(0.004 + 1 + 1)


# --- an update


shares = st.floats(0, 1)
seconds = st.floats(0.001, 10)


@given(image=seconds, backward=shares, exchange=seconds)
def test_full_overlap_is_an_exchange_that_begins_with_the_backward(
    image: float, backward: float, exchange: float
) -> None:
    cluster = Cluster(2, 1, Link(8 * 4000 / exchange), INSIDE)
    parts = update(Compute(image, backward=backward), Gradient(1000), cluster, batch=2, overlap=1.0)
    begins = image * (1 - backward)
    assert parts.seconds == pytest.approx(max(image, begins + exchange))


def test_an_update_by_hand() -> None:
    compute = Compute(0.01, seconds_per_update=0.1, backward=0.5)
    gradient = Gradient(1_000_000, 8, "one-sided", coding=0.2)
    cluster = Cluster(2, 2, Link(8e6), Link(math.inf))
    # 400 images on 4 GPUs: 1 s and 0.1; 1 MB at 1 MB/s, a quarter of whose 0.5 s are hidden
    parts = update(compute, gradient, cluster, batch=400, overlap=0.25)
    assert parts == Update(1.1, 0.2, 1.0, 0.125)
    assert parts.seconds == pytest.approx(1.1 + 0.2 + 1.0 - 0.125)
    alone = update(compute, gradient, replace(cluster, machines=1), batch=200)
    assert alone.seconds == pytest.approx(1.1)  # nothing is coded for nobody


@given(image=seconds, backward=shares, overlap=shares, exchange=seconds, machines=st.integers(1, 9))
def test_calibration_inverts_the_model(
    image: float, backward: float, overlap: float, exchange: float, machines: int
) -> None:
    cluster = Cluster(machines, 1, Link(8 * 4000 / exchange), INSIDE)
    gradient, compute = Gradient(1000, coding=0.3), Compute(image, backward=backward)
    taken = update(compute, gradient, cluster, batch=2 * machines, overlap=overlap).seconds
    found = seconds_per_image(
        taken, gradient, cluster, batch=2 * machines, backward=backward, overlap=overlap
    )
    again = update(
        replace(compute, seconds_per_image=found),
        gradient,
        cluster,
        batch=2 * machines,
        overlap=overlap,
    )
    assert again.seconds == pytest.approx(taken)
    if overlap * backward < 0.99:  # else a range of answers takes the same time
        assert found == pytest.approx(image, rel=1e-6)


def test_a_case_is_calibrated_on_the_machine_whose_hours_are_known() -> None:
    # 6 h for 10,800 updates of 2 s; inside two GPUs 2 * 1/2 * 4 GB at 10 GB/s take 0.4 s of them
    job = Job(6, gpus=2, images=43_200, epochs=2, cost=3, parameters=10**9, tensors=1)
    case = Case(job, 1, 2, per_machine=8, alone=8, gigabits=1, messages=1)
    assert case.hours() == pytest.approx((6, 1.2))
    # four GPUs share an update's 1.6 s of compute and exchange 2 * 3/4 * 4 GB
    assert replace(case, gpus=4).hours() == pytest.approx((3 * (0.8 + 0.6), 3 * 0.6))
    alone = replace(case, gpus=1)
    assert alone.hours() == pytest.approx((3 * 3.2, 0))
    assert alone.speed_up() == pytest.approx(2 / 3.2)
    assert replace(case, gpus=1, slower=1.5).speed_up() == pytest.approx(2 / 4.8)


def test_an_update_shorter_than_its_exchange_is_refused() -> None:
    cluster = Cluster(2, 1, Link(8e3), INSIDE)
    with pytest.raises(ValueError, match="alone take 4 s of an update's 3"):
        seconds_per_image(3, Gradient(1000), cluster, batch=2, backward=0.5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Link(0), "above 0"),
        (lambda: Link(1e9, share=1.1), "share in"),
        (lambda: Gradient(10, 8), "cannot be summed"),
        (lambda: Gradient(0), "at least 1 parameter"),
        (lambda: Gradient(10, 8, "both"), "choose from"),  # type: ignore[arg-type]
        (lambda: Cluster(0, 1, NETWORK, INSIDE), "1 or more"),
        (lambda: Compute(0.1, backward=1.5), "backward in"),
        (
            lambda: update(
                Compute(1), Gradient(1), Cluster(1, 1, NETWORK, INSIDE), batch=1, overlap=2
            ),
            "overlap in",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()
