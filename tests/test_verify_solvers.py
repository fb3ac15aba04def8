"""The rungs with solvers, the cross-check and what is kept between commands."""

import importlib.util
import itertools
import json
import time
from dataclasses import asdict, replace

import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from gratis import train
from gratis.balls import Linf
from gratis.cli import main
from gratis.data import load
from gratis.verify import Settings, Verifier, check, image, integer, record, tighten, verify_run
from gratis.verify import search as searching
from gratis.verify.bounds import Box, crown_bounds, interval_bounds, margin_rows, unstable
from gratis.verify.branch import Found, branch_and_bound
from gratis.verify.lower import lowered
from gratis.verify.nodes import Problem
from gratis.verify.program import composed, program, unit_rows
from gratis.verify.solver import INTEGER, LINEAR, answers
from gratis.verify.tighten import certified, doubted, tightened
from tests.recipes import tiny
from tests.test_verify import IMAGE, conv_net, exact_minimum, problem_of, samples, tiny_net


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (gratis[verify])")


linear, integers = needs(LINEAR), needs(INTEGER)


def seeds(count, fast):
    """`count` seeds, of which those not in `fast` are for `pytest -m slow`."""
    return [
        seed if seed in fast else pytest.param(seed, marks=pytest.mark.slow)
        for seed in range(count)
    ]


def soon(seconds=30.0):
    return time.perf_counter() + seconds


def conv_problem(seed, eps=0.1):
    net = conv_net(seed)
    network, x = lowered(net, IMAGE), torch.rand(1, *IMAGE)
    box = Box.around(x, eps)
    return Problem(network, box, 0, tuple(crown_bounds(network, box)))


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
    for scale in (0.0, 0.1, 1.0):
        multipliers = scale * torch.randn(3, count, dtype=torch.double)
        values = certified(problem.network, problem.box, rows, bounds, multipliers)
        assert values.isfinite().all()
        assert (values <= least).all()
    multipliers[1] = torch.nan
    values = certified(problem.network, problem.box, rows, bounds, multipliers)
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


# --- integer programs


def edge(net, x, label):
    """Radii close to the least that breaks the image, on either side."""
    low, high = 0.0, 1.0
    for _ in range(4):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_minimum(net, x, label, middle) > 0 else (low, middle)
    return low, high


@integers
@pytest.mark.parametrize("seed", seeds(8, {2}))
@pytest.mark.parametrize("kind", ["crown", "interval"])
def test_integer_programs_equal_brute_force(seed, kind):
    net, x = tiny_net(seed), torch.rand(1, 1, 2, 2)
    label = int(net(x).argmax())
    targets = torch.tensor([t for t in range(3) if t != label])
    seen = set()
    for eps in edge(net, x, label):
        exact = exact_minimum(net, x, label, eps)
        problem = problem_of(net, x, label, eps)
        bounds = list(problem.bounds)
        if kind == "interval":
            bounds = interval_bounds(problem.network, problem.box)[:-1]
        found = integer.solved(problem.network, problem.box, bounds, label, targets, 20.0)
        assert not found.timed_out
        if exact > 2 * integer.CUTOFF:
            assert found.proved == 2
            assert found.point is None
            seen.add("safe")
        elif exact < -1e-5:
            assert found.proved < 2
            held = Verifier(net, (1, 2, 2), Linf(eps), Settings()).confirm(x, label, found.point)
            assert held is not None
            seen.add("unsafe")
    assert seen


@integers
def test_a_tie_is_not_proved_by_an_integer_program():
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for part, value in ((net[1].weight, 1.0), (net[1].bias, -0.5), (net[3].bias, 0.0)):
            part.fill_(value)
        net[3].weight.copy_(torch.tensor([[0.0], [1.0]]))
        net[3].bias[0] = 0.25
    x = torch.full((1, 1, 1, 1), 0.625)
    problem = problem_of(net, x, 0, 0.125)
    found = integer.solved(
        problem.network, problem.box, list(problem.bounds), 0, torch.tensor([1]), 20.0
    )
    assert found.proved == 0


@integers
def test_integer_programs_out_of_time_prove_nothing():
    problem = conv_problem(0)
    found = integer.solved(
        problem.network,
        problem.box,
        list(problem.bounds),
        0,
        torch.tensor([1, 2, 3]),
        -integer.ROOM,
    )
    assert found.proved == 0
    assert found.timed_out


# --- the ladder's end


def gives_up(problem, nodes, **given):
    """Branch and bound that finds nothing out."""
    return Found("undecided", -1.0, len(nodes), left=nodes, closed=2.0)


def cut_off(times):
    """Branch and bound that gives up the first `times` times."""
    results = itertools.chain([gives_up] * times, itertools.repeat(branch_and_bound))
    return lambda problem, nodes, **given: next(results)(problem, nodes, **given)


@linear
@integers
@pytest.mark.parametrize("seed", seeds(8, {1}))
def test_the_last_rungs_equal_brute_force(seed, monkeypatch):
    net, x = tiny_net(seed), torch.rand(1, 1, 2, 2)
    label = int(net(x).argmax())
    exact = exact_minimum(net, x, label, 0.3)
    assert abs(exact) > 2 * integer.CUTOFF
    problem = problem_of(net, x, label, 0.3)
    asked = Verifier(net, (1, 2, 2), Linf(0.3), Settings())
    targets = torch.tensor([t for t in range(3) if t != label])
    for place, rung in enumerate(("branch", "lp", "milp")):
        times = 9 if rung == "milp" else place  # for each class that is open, there are two
        monkeypatch.setattr(searching, "branch_and_bound", cut_off(times))
        if rung == "milp":  # or the linear programs do it without a search
            monkeypatch.setattr(searching, "doubted", lambda problem, *given: problem)
        solvers = (LINEAR, INTEGER)[:place]
        search = searching.Search(
            1e-6, 5, 10.0, solvers, lambda point: asked.confirm(x, label, point)
        )
        seconds = {}
        last, found = search.run(problem, searching.roots(problem, targets), seconds)
        assert last == [*seconds][-1] == rung
        assert found.outcome == ("proved" if exact > 0 else "broken")
        if exact > 0 and rung == "milp":
            assert found.value == -torch.inf, "a solver's proof bounds nothing"
        elif exact > 0:
            assert 1e-6 <= found.value <= exact + 1e-9


def test_without_solvers_all_the_time_is_for_branch_and_bound(monkeypatch):
    deadlines = []

    def listening(problem, nodes, *, deadline, **given):
        deadlines.append(deadline - time.perf_counter())
        return gives_up(problem, nodes)

    monkeypatch.setattr(searching, "branch_and_bound", listening)
    problem = conv_problem(0)
    search = searching.Search(1e-6, 5, 40.0, (), lambda point: None)
    rung, found = search.run(problem, searching.roots(problem, torch.tensor([1])), {})
    assert (rung, found.outcome) == ("branch", "undecided")
    assert 39 < deadlines[0] <= 40
    monkeypatch.setattr(searching, "doubted", lambda problem, *given: problem)
    search = replace(search, solvers=(LINEAR,))
    search.run(problem, searching.roots(problem, torch.tensor([1])), {})
    assert 9 < deadlines[1] <= 10
    assert 39 < deadlines[2] <= 40, "until the time limit"


# --- processes


def test_a_process_that_hangs_is_killed(tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text(
        "import pickle, sys, time\njob = pickle.load(sys.stdin.buffer)\n"
        "sys.stdout.buffer.write(pickle.dumps(job + 1) + pickle.dumps([0] * 99)[:20])\n"
        "sys.stdout.buffer.flush()\ntime.sleep(600)\n"
    )
    clock = time.perf_counter()
    assert answers(script, 6, 1.0) == [7], "what came before counts, half an answer does not"
    assert time.perf_counter() - clock < 10
    assert answers(script, bytes(10**7), -1.0) == []


def test_a_process_that_fails_says_why(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("raise KeyError('no such parameter')\n")
    with pytest.raises(RuntimeError, match=r"fails.py ended with status 1: KeyError: 'no such"):
        answers(script, bytes(10**7), 30.0)
    script.write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert answers(script, 0, 30.0) == [], "as if there had been no time"


# --- what is kept, tried again and checked


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    recipe = tiny("fgsm-rs", "method.ball.eps=0.1", passes=10)
    return train.run(recipe, tmp_path_factory.mktemp("verify") / "run")


BALL, SETTINGS = Linf(0.05), Settings(attack="cw-10", time_limit=5)


@pytest.fixture
def images(run):
    for path in (run.path / "verify").glob("*"):
        path.unlink()
    return load("digits", "test")


def lines_of(run):
    text = (run.path / "verify" / "linf-0.05.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def undecided(run, *indices):
    """Make records say that nothing was found out."""
    path = run.path / "verify" / "linf-0.05.jsonl"
    records = lines_of(run)
    for each in records:
        if each["index"] in indices:
            each["verdict"] = "undecided"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))


def test_only_undecided_images_are_tried_again_and_only_harder(run, images, monkeypatch):
    monkeypatch.setattr(image, "installed", lambda: ())
    first = verify_run(run, BALL, SETTINGS, limit=5, images=images)
    undecided(run, 1, 3)
    shorter = replace(SETTINGS, time_limit=2)
    for settings in (SETTINGS, shorter):
        again = verify_run(run, BALL, settings, limit=5, images=images)
        assert len(lines_of(run)) == 5
        assert again["counts"]["undecided"] == 2
    longer = verify_run(run, BALL, replace(SETTINGS, time_limit=6), limit=5, images=images)
    assert [r["index"] for r in lines_of(run)] == [0, 1, 2, 3, 4, 1, 3]
    assert longer["counts"] == first["counts"]
    verify_run(run, BALL, shorter, limit=5, images=images)
    assert len(lines_of(run)) == 7, "decided for good"


@linear
@integers
def test_new_solvers_try_again(run, images, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(image, "installed", lambda: ())
        verify_run(run, BALL, SETTINGS, limit=3, images=images)
    undecided(run, 2)
    verify_run(run, BALL, SETTINGS, limit=3, images=images)
    assert [r["index"] for r in lines_of(run)] == [0, 1, 2, 2]
    assert lines_of(run)[-1]["solvers"] == [LINEAR, INTEGER]


@pytest.mark.parametrize("formerly", [SETTINGS.time_limit, 60.0])
def test_records_of_schema_1_count(run, images, monkeypatch, formerly):
    monkeypatch.setattr(image, "installed", lambda: ())
    summary = verify_run(run, BALL, SETTINGS, limit=3, images=images)
    question = {
        "schema": 1,
        **{key: summary[key] for key in ("network_sha256", "threat", "least_margin", "data")},
        "settings": asdict(replace(SETTINGS, time_limit=formerly)),
    }
    records = lines_of(run)
    for each in records:
        del each["time_limit"], each["solvers"]
        each["question"] = record._key(question)
        each["seconds"] = {k: s for k, s in each["seconds"].items() if k not in ("lp", "milp")}
    path = run.path / "verify" / "linf-0.05.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    undecided(run, 0)
    again = verify_run(run, BALL, SETTINGS, limit=4, images=images)
    assert [r["index"] for r in lines_of(run)] == [0, 1, 2, 3]
    assert again["counts"]["undecided"] == 1
    verify_run(run, BALL, replace(SETTINGS, time_limit=90.0), limit=4, images=images)
    assert [r["index"] for r in lines_of(run)] == [0, 1, 2, 3, 0]


def test_what_a_cross_check_takes():
    def one(index, rung, seconds, verdict="safe"):
        return {"index": index, "rung": rung, "verdict": verdict, "seconds": {rung: seconds}}

    easy = [one(i, "crown", 0.1) for i in range(50)]
    hard = [one(100 + i, "branch", float(i)) for i in range(10)]
    other = [one(200, "branch", 99.0, "undecided"), one(201, "clean", 0.1, "misclassified")]
    picked = [r["index"] for r in check.chosen(easy + hard + other, 9)]
    assert picked == [109, 108, 107, 106, 105, 104, 0, 16, 33]
    assert len(check.chosen(easy + hard[:2], 9)) == 9
    assert len(check.chosen(easy[:1] + hard, 9)) == 9
    assert len(check.chosen(easy[:1] + hard[:1], 9)) == 2
    assert check.chosen(other, 9) == []


@linear
@integers
def test_the_cross_check(run, images, capsys):
    command = ["verify", str(run.path), "--eps", "0.05", "--limit", "8", "--time-limit", "60"]
    assert main([*command, "--cross-check", "2"]) == 0
    assert "cross-check by SCIP: 2 agreed, 0 disagreed" in capsys.readouterr().out
    path = run.path / "verify" / "linf-0.05.json"
    found = json.loads(path.read_text())["cross_check"]
    assert found["counts"]["agreed"] == len(found["images"]) == 2
    assert all(each["targets_proved"] == 9 for each in found["images"] if each["verdict"] == "safe")
    assert main(command) == 0
    assert json.loads(path.read_text())["cross_check"] == found, "kept by a later command"
    # a record that says the contrary
    records = lines_of(run)
    wrong = next(r for r in records if r["rung"] == "crown")
    wrong["verdict"], wrong["rung"], wrong["seconds"]["branch"] = "unsafe", "branch", 1e3
    log = run.path / "verify" / "linf-0.05.jsonl"
    log.write_text("".join(json.dumps(each) + "\n" for each in records))
    capsys.readouterr()
    assert main([*command, "--cross-check", "1"]) == 1
    printed = capsys.readouterr().out
    assert f"image {wrong['index']}, unsafe by branch and bound: disagreed" in printed


def test_missing_solvers_are_named(run, images, capsys, monkeypatch):
    monkeypatch.setattr(image, "installed", lambda: ())
    command = ["verify", str(run.path), "--eps", "0.05", "--limit", "2"]
    assert main([*command, "--cross-check", "1"]) == 2
    message = "needs highspy and pyscipopt, which are not both installed: pip install 'gratis["
    assert message in capsys.readouterr().err
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not tried: highspy, pyscipopt (pip install 'gratis[verify]')" in printed
    summary = json.loads((run.path / "verify" / "linf-0.05.json").read_text())
    assert summary["solvers"] == {"highspy": False, "pyscipopt": False}
