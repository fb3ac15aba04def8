"""Linear programs: what they hold, and bounds that are true whatever a solver says."""

import time
from dataclasses import replace

import pytest
import torch
from scipy.optimize import linprog

from gratis.verify import tighten
from gratis.verify.bounds import lower_bound, margin_rows, unstable
from gratis.verify.nodes import margin_bound, relaxed, roots, split
from gratis.verify.program import composed, program, unit_rows
from gratis.verify.tighten import certified, doubted, tightened
from tests.verify_problems import conv_problem, linear, problem_of, samples, seeds, soon, tiny_net

# --- the program


def pre_activations(network, x):
    """[N, *shape] of each ReLU layer, and the logits."""
    found = []
    for stage in network.stages:
        x = stage.apply(x)
        found.append(x)
        x = x.clamp_min(0)
    return found


@pytest.mark.parametrize("seed", range(2))
def test_a_program_holds_every_image_of_the_box(seed):
    problem = conv_problem(seed)
    network, bounds = problem.network, list(problem.bounds)
    x = samples(problem.box, 50)
    *layers, logits = pre_activations(network, x)
    whole = program(network, problem.box, bounds)
    z = torch.cat(
        [a.flatten(1)[:, units] for a, units in zip(layers, problem.units, strict=True)], 1
    ).numpy()
    pixels, a = x.flatten(1).numpy(), z.clip(0)
    assert len(whole.low) > 10
    assert (z >= whole.low).all()
    assert (z <= whole.high).all()
    again = pixels @ whole.rows.pixels.T + a @ whole.rows.units.T + whole.rows.constant
    assert abs(again - z).max() < 1e-9
    rows = margin_rows(network, 0, torch.tensor([1, 2, 3]))
    costs = composed(network, rows, bounds)
    margins = pixels @ costs.pixels.T + a @ costs.units.T + costs.constant
    assert abs(margins - (logits[:, :1] - logits[:, 1:]).numpy()).max() < 1e-9


def test_chunks_of_rows_make_no_difference(monkeypatch):
    problem = conv_problem(0)
    bounds = list(problem.bounds)
    whole = program(problem.network, problem.box, bounds)
    monkeypatch.setattr("gratis.verify.program.ENTRIES_AT_ONCE", 100)
    parts = program(problem.network, problem.box, bounds)
    assert abs(whole.rows.pixels - parts.rows.pixels).max() < 1e-12
    assert abs(whole.rows.units - parts.rows.units).max() < 1e-12
    assert abs(whole.rows.constant - parts.rows.constant).max() < 1e-12


# --- linear programs


@pytest.mark.parametrize("seed", range(3))
def test_any_multipliers_give_a_bound(seed):
    problem = conv_problem(seed)
    bounds = list(problem.bounds)
    rows = margin_rows(problem.network, 0, torch.tensor([1, 2, 3]))
    count = sum(map(len, problem.units))
    x = samples(problem.box, 500)
    logits = problem.network.logits(x)
    least = (logits[:, :1] - logits[:, 1:]).amin(0)
    for scale in (0.0, 0.1, 1.0, 1e12):
        multipliers = scale * torch.randn(3, count, dtype=torch.double)
        values = certified(problem, rows, bounds, multipliers)
        assert values.isfinite().all()
        assert (values <= least).all()
    multipliers[1] = torch.nan
    values = certified(problem, rows, bounds, multipliers)
    assert values.isfinite().tolist() == [True, False, True]
    assert values[1] == -torch.inf


def best_value(job, place):
    """The optimum of a program, written down once more, for scipy."""
    n = len(job["low"])
    slope = job["high"] / (job["high"] - job["low"])
    # z is replaced by its definition: pixels x + units a + constant
    of_x, of_a, constant = job["pixels"], job["units"], job["constant"]
    eye = torch.eye(n).double().numpy()
    rows, limits = [], []
    for x, a, limit in (
        (of_x, of_a - eye, -constant),
        (-slope[:, None] * of_x, eye - slope[:, None] * of_a, slope * (constant - job["low"])),
        (of_x, of_a, job["high"] - constant),
        (-of_x, -of_a, constant - job["low"]),
    ):
        rows.append(torch.cat([torch.tensor(x), torch.tensor(a)], 1))
        limits.append(torch.tensor(limit))
    pixel_bounds = zip(job["pixel_low"], job["pixel_high"], strict=True)
    found = linprog(
        torch.cat([torch.tensor(job[k][place]) for k in ("cost_pixels", "cost_units")]).numpy(),
        torch.cat(rows).numpy(),
        torch.cat(limits).numpy(),
        bounds=[*pixel_bounds, *((0, high) for high in job["high"])],
    )
    assert found.status == 0
    return found.fun + job["cost_constant"][place]


def inside(layers, bounds, room=0.0):
    """Which samples lie within all bounds, bool [N]."""
    each = [
        ((a >= low - room) & (a <= high + room)).flatten(1).all(1)
        for a, (low, high) in zip(layers, bounds, strict=True)
    ]
    return torch.stack(each).all(0)


@linear
@pytest.mark.parametrize("seed", seeds(3, {0}))
def test_bounds_as_a_solver_states_them(seed):
    problem = conv_problem(seed, 0.2)
    tight = tightened(problem, soon())
    *layers, _ = pre_activations(problem.network, samples(problem.box))
    assert inside(layers, tight.bounds, 1e-6).all()
    for old, new in zip(problem.bounds, tight.bounds, strict=True):
        assert (new[0] >= old[0]).all()
        assert (new[1] <= old[1]).all()
    assert (tight.bounds[-1][0] > problem.bounds[-1][0] + 1e-4).any()
    place = len(tight.bounds) - 1
    unit = int(unstable(*problem.bounds[place]).flatten().nonzero()[0])
    before = list(tight.bounds[:place])
    costs = composed(problem.network, unit_rows(8, torch.tensor([unit])), before)
    job = program(problem.network, problem.box, before).job(costs)
    optimum = best_value(job, 0)
    assert float(tight.bounds[place][0].flatten()[unit]) == pytest.approx(optimum, abs=1e-6)


@linear
@pytest.mark.parametrize("seed", seeds(4, {1}))
def test_bounds_where_a_target_is_doubted(seed):
    problem = conv_problem(seed, 0.2)
    row = margin_rows(problem.network, 0, torch.tensor([1]))
    *layers, logits = pre_activations(problem.network, samples(problem.box))
    margins = logits[:, 0] - logits[:, 1]
    enough = float(margins.sort().values[10])
    tight, loose = (doubted(problem, 1, limit, soon()) for limit in (enough, float(margins.max())))
    assert inside(layers, tight.bounds)[margins <= enough].all()
    assert inside(layers, loose.bounds).all()
    widths = [sum(float((b[1] - b[0]).sum()) for b in p.bounds) for p in (tight, loose, problem)]
    assert widths[0] + 1e-3 < widths[1] < widths[2] - 1e-3
    for old, new in zip(problem.bounds, tight.bounds, strict=True):
        assert (new[0] >= old[0]).all()
        assert (new[1] <= old[1]).all()
    # our bound of a margin is its program's optimum, from below and with rounding
    bounds = list(problem.bounds)
    costs = composed(problem.network, row, bounds)
    job = program(problem.network, problem.box, bounds).job(costs)
    value = tighten._margin(problem, row, bounds, job, soon())
    assert value == pytest.approx(best_value(job, 0), abs=1e-6)
    assert doubted(problem, 1, value - 1e-3, soon()) is None, "no such image"


@linear
def test_without_time_bounds_stay_as_they_are():
    problem = conv_problem(0)
    for tight in (
        doubted(problem, 1, 0.0, time.perf_counter()),
        tightened(problem, time.perf_counter()),
    ):
        pairs = zip(problem.bounds, tight.bounds, strict=True)
        assert all(torch.equal(a, b) for old, new in pairs for a, b in zip(old, new, strict=True))


def test_a_solver_that_lies_proves_nothing(monkeypatch):
    problem = conv_problem(0, 0.2)
    *layers, logits = pre_activations(problem.network, samples(problem.box))
    margins = logits[:, 0] - logits[:, 1]
    enough = float(margins.quantile(0.2))

    for scale in (0.05, 1e3, torch.nan):

        def lies(script, job, seconds, scale=scale):
            wide = len(job["low"]) + ("row" in job)
            count = len(job["cost_units"])
            return [(place, 1e9, scale * torch.randn(wide).numpy()) for place in range(count)]

        monkeypatch.setattr(tighten, "answers", lies)
        tight = doubted(problem, 1, enough, soon())
        assert inside(layers, tight.bounds)[margins <= enough].all()


def test_what_large_multipliers_round_is_taken_off_their_bounds():
    """They may cancel to less than they round: nothing that small is proved by them."""
    problem = conv_problem(0)
    assert 0 < problem.rounding < 1e-9
    nodes = roots(problem, torch.tensor([1]))
    half = split(nodes, torch.tensor([0]), torch.tensor([0]), 1.0)
    for size in (0.0, 1.0, 1e9):
        push = tuple(part.clone() for part in half.push)
        push[0][0, 0] = size
        pushed = replace(half, push=push)
        row = margin_rows(problem.network, 0, torch.tensor([1]))[0][:, None]
        plain = lower_bound(problem.network, row, relaxed(problem, pushed), problem.box)
        found = margin_bound(problem, pushed).values
        torch.testing.assert_close(
            plain.values - found,
            torch.full_like(found, size * problem.rounding),
            rtol=1e-3,
            atol=1e-12,
        )
    # the linear programs' bounds: of rows, of multipliers, and of inputs that are bounded
    count, rows = sum(map(len, problem.units)), margin_rows(problem.network, 0, torch.tensor([1]))
    few, none = torch.rand(1, count).double(), torch.zeros(1, count).double()
    for weight, multipliers, inputs in ((1.0, none, none), (3.0, none, none), (0.0, few, -few)):
        values = []
        for rounding in (0.0, 0.5):
            problem.__dict__["rounding"] = rounding
            values.append(
                float(certified(problem, weight * rows, list(problem.bounds), multipliers, inputs))
            )
        scale = weight + float(multipliers.abs().sum() + inputs.abs().sum())
        assert values[0] - values[1] == pytest.approx(0.5 * scale)


@linear
def test_a_round_that_settles_every_unit_is_the_last():
    net = tiny_net(0)
    x = torch.rand(1, 1, 2, 2)
    problem = problem_of(net, x, 0, 1e-7)
    assert not sum(map(len, problem.units))
    assert doubted(problem, 1, 1e6, time.perf_counter() + 20) is not None
    low = problem_of(net, x, int(net(x).argmax()), 1e-7)
    assert doubted(low, (low.label + 1) % 3, -1e6, time.perf_counter() + 20) is None
