"""What the scripts about scaling and convergence compute, before they print it."""

import importlib
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


def script(name: str) -> Any:
    """A script of benchmarks/, which find each other by their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(Path(__file__).parents[1] / "benchmarks"), *sys.path])
        return importlib.import_module(name)


law, fitting, convergence = map(script, ("scaling_law", "scaling_fit", "convergence"))


# --- the paper's case


def test_one_machine_takes_what_the_paper_says() -> None:
    for case in (law.BASE, replace(law.BASE, overlap=1.0, bits=8, exchange="two-sided")):
        alone = replace(case, machines=1)
        assert alone.hours()[0] == pytest.approx(16.3 * 3.1)


def test_without_a_network_to_wait_for_six_machines_are_six_times_as_fast() -> None:
    free = replace(law.BASE, gigabits=1e9, message=0.0)
    inside = law.INSIDE.seconds(2 * 5 / 6 * 4 * law.JOB.parameters, 0)  # of both, in every update
    updates = law.JOB.images * law.JOB.epochs / 512
    assert free.speed_up() == pytest.approx(6)
    assert free.hours()[1] * 3600 == pytest.approx(updates / 6 * inside)


def test_the_batch_that_would_give_the_printed_speed_up_in_closed_form() -> None:
    line, images = law.BASE.cluster(), law.JOB.images * law.JOB.epochs
    # six times fewer updates save the inside's exchanges too, so only the line's are left over
    between = line.exchange(law.BASE.gradient()) - replace(line, machines=1).exchange(
        law.BASE.gradient()
    )
    left = 16.3 * 3600 - 16.3 * 3.1 * 3600 / 6
    batch = images / 6 * between / left
    assert law.batches(batch).speed_up() == pytest.approx(3.1)


def test_twice_the_batch_halves_the_waiting_and_leaves_the_compute() -> None:
    (hours, waiting), (hours_2, waiting_2) = (law.batches(b).hours() for b in (512, 1024))
    assert waiting_2 == pytest.approx(waiting / 2)
    # the one machine too waits half as often inside, which leaves more of its time for compute
    inside = law.INSIDE.seconds(2 * 5 / 6 * 4 * law.JOB.parameters, 0)
    saved = law.JOB.images * law.JOB.epochs / 1024 * inside / 3600
    assert hours_2 - waiting_2 == pytest.approx(hours - waiting + saved / 6)


# --- the fit


TRUE = {
    "seconds an image": 0.02,
    "line's share": 0.9,
    "host's seconds a gigabyte": 0.8,
    "seconds of coding a gigabyte": 3.0,
    "seconds an update": 0.05,
    "seconds a round": 0.02,
    "overlap": 0.3,
}


def rows_of(truth: dict[str, float], noise: float, batches: tuple[int, ...] = (4, 16)) -> list[Any]:
    draws = np.random.default_rng(0)
    found = []
    for batch in batches:
        for rate in (None, 1000.0, 100.0):
            for bits in (32, 16, 8, 4):
                row = fitting.Row(
                    2, batch, f"{bits} bits", bits, 45e6 * bits / 32, 2, 45e6, rate, 1, 1, 0.4
                )
                whole, compute = row.seconds(truth)
                by = 1 + noise * draws.standard_normal(2)
                found.append(
                    replace(
                        row,
                        seconds_per_update=whole * by[0],
                        seconds_of_compute=compute * by[1],
                    )
                )
    return found


def test_rows_that_the_model_made_give_its_numbers_back() -> None:
    found = fitting.fit(rows_of(TRUE, noise=0.0))
    assert found.left_out == {}
    assert found.values == pytest.approx(TRUE, rel=1e-5)
    for row, seconds in found.predicted:
        assert seconds == pytest.approx(row.seconds_per_update)


def test_rows_are_read_as_they_were_written() -> None:
    (row, *_) = rows_of(TRUE, noise=0.0)
    assert fitting.Row.of(asdict(row) | {"bytes": 47e6}) == row


def test_noisy_rows_give_numbers_within_their_errors_and_leave_out_the_lost() -> None:
    lost = {"seconds a round": 0.002, "overlap": 0.1}  # there, and smaller than their errors
    found = fitting.fit(rows_of(TRUE | lost, noise=0.03))
    assert found.left_out.keys() == lost.keys()
    for name, value in found.values.items():
        assert abs(value - TRUE[name]) < 4 * found.errors[name]
        assert found.errors[name] < 0.5 * abs(value - fitting.UNKNOWN[name][0])


def test_one_batch_cannot_tell_an_image_from_an_update() -> None:
    found = fitting.fit(rows_of(TRUE | {"overlap": 0.0}, noise=0.01, batches=(8,)))
    assert "seconds an update" in found.left_out
    assert found.values["seconds an image"] == pytest.approx(0.02 + 0.05 / 8, rel=0.02)


def test_few_rows_carry_few_numbers() -> None:
    rows = rows_of(TRUE, noise=0.01)
    assert len(fitting.fit(rows[:3]).values) <= 2
    with pytest.raises(ValueError, match="at least 3"):
        fitting.fit(rows[:2])


# --- convergence


def test_the_robust_gradient_is_that_of_the_worst_case() -> None:
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(2, 5, generator=draw, dtype=torch.float64).requires_grad_()
    x = torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64)
    y = torch.randint(2, (2, 3, 4), generator=draw) * 2.0 - 1
    direction = w.detach() / w.detach().norm(dim=1, keepdim=True)
    worst = x - convergence.EPS * y[..., None] * direction[:, None, None]
    margin = y * (worst * w[:, None, None]).sum(-1)
    losses = torch.sigmoid(-margin).mean(2) + convergence.DECAY / 2 * w.square().sum(1)[:, None]
    found = convergence.gradient(w.detach(), x, y)
    for worker in range(3):
        # by Danskin's theorem the attack itself is not differentiated
        (truth,) = torch.autograd.grad(losses[:, worker].sum(), w, retain_graph=True)
        torch.testing.assert_close(found[:, worker], truth)
    elsewhere = torch.randn(100, 5, generator=draw, dtype=torch.float64)
    elsewhere *= convergence.EPS / elsewhere.norm(dim=1, keepdim=True)
    other = y[..., None] * ((x[..., None, :] + elsewhere) * w[:, None, None, None]).sum(-1)
    assert (other >= margin[..., None] - 1e-12).all()


def test_coded_gradients_arrive_unbiased_and_each_by_its_own_norm() -> None:
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 3, 6, generator=draw, dtype=torch.float64)
    gradients[0, 1] *= 1000
    found = torch.stack([convergence.coded(gradients, 8, draw) for _ in range(200)])
    norms = gradients.norm(dim=-1, keepdim=True)
    assert ((found - gradients).abs() <= norms / 127 * (1 + 1e-5)).all()
    assert ((found.mean(0) - gradients).abs() <= 5 * norms / (2 * 127) / 200**0.5).all()


def test_the_slope_of_a_power_law_is_its_power() -> None:
    values = np.array([[3 * t**-0.5, 7 * t**-1.0] for t in convergence.HORIZONS])
    assert convergence.slopes(values) == pytest.approx([-0.5, -1.0])
