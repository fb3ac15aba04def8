"""The learning-rate range test: planted limits of stability, and what it writes."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from gratis.cli import main
from gratis.lr_range import RateRange, lr_range, write
from gratis.recipe import from_plain
from gratis.run import Run
from tests.recipes import tiny


def quadratic(curvature, noise, updates=400, start=3.0, **rates):
    """The expected losses of SGD on curvature w^2 / 2 whose gradient has additive noise.

    E[w^2] becomes (1 - rate curvature)^2 E[w^2] + rate^2 noise: it grows without bound exactly
    beyond the rate 2 / curvature.
    """
    found = RateRange(**{"low": 1e-3, "high": 100.0, "updates": updates} | rates)
    square = start**2
    for update in range(updates):
        found.add(curvature * square / 2)
        if found.diverged:
            break
        rate = found.rate(update)
        square = (1 - rate * curvature) ** 2 * square + rate**2 * noise
    return found


# --- where divergence begins


@pytest.mark.parametrize("curvature", [0.2, 2.0, 20.0])
@pytest.mark.parametrize(("updates", "within"), [(100, 0.4), (400, 0.2), (2000, 0.06)])
def test_a_quadratic_diverges_beyond_two_over_its_curvature(curvature, updates, within):
    found = quadratic(curvature, noise=0.03 * curvature**2, updates=updates)
    assert found.diverged
    assert found.highest == pytest.approx(2 / curvature, rel=within)
    assert found.lowest[0] < 2 / curvature * (1 + within)


def test_the_answer_moves_with_the_curvature():
    rates = [quadratic(c, noise=0.03 * c**2).highest for c in (0.1, 1.0, 10.0)]
    assert rates[0] > rates[1] > rates[2]
    assert rates[0] / rates[2] == pytest.approx(100, rel=0.2)


def test_a_range_below_the_limit_does_not_diverge():
    found = quadratic(2.0, noise=0.01, high=0.9)
    assert not found.diverged
    assert found.highest == pytest.approx(0.9)
    assert found.answer.startswith("at least 0.9")


def test_a_range_above_the_limit_has_no_answer():
    found = quadratic(2.0, noise=0.01, low=5.0)
    assert found.diverged
    assert found.highest is None
    assert found.answer.startswith("below 5")


def test_a_loss_that_is_no_number_is_divergence():
    found = RateRange(1e-3, 1.0, 50)
    for loss in (2.3, 2.2, 2.0, math.nan):
        found.add(loss)
    assert found.diverged
    # the step of the third update made the fourth loss
    assert found.highest == found.rates[1]
    assert found.lowest == (found.rates[2], found.smoothed[2])
    worst = RateRange(1e-3, 1.0, 50)
    worst.add(math.inf)
    assert (worst.diverged, worst.highest, worst.lowest) == (True, None, None)


def test_noise_and_a_rise_that_undoes_little_are_no_divergence():
    torch.manual_seed(0)
    found = RateRange(1e-3, 1.0, 400)
    for update in range(400):
        low = 2.3 - 0.6 * math.sin(math.pi * min(update / 300, 0.7))  # ends a quarter of the way up
        found.add(low + 0.15 * float(torch.randn(())))
    assert not found.diverged


def test_chance_level_is_divergence_though_it_is_no_explosion():
    found = RateRange(1e-3, 1.0, 200)
    for update in range(200):
        found.add(2.3 if update < 20 or update > 150 else 1.9)
    assert found.diverged
    assert found.highest == found.rates[149]  # the first loss at chance is that of update 151


def test_harder_examples_after_the_first_update_are_no_divergence():
    """Free's first examples are clean ones."""
    found = RateRange(1e-3, 1.0, 200)
    for update in range(200):
        found.add(2.3 if update == 0 else 2.9 - update / 200)
    assert not found.diverged


def test_smoothing_is_an_average_from_the_start_on():
    found = RateRange(1e-3, 1.0, 200)
    for _ in range(50):
        found.add(1.7)
    assert found.smoothed == pytest.approx([1.7] * 50)
    found.add(2.7)
    assert 1.7 < found.smoothed[-1] < 1.9


def test_rates_rise_by_one_factor_from_low_to_high():
    found = RateRange(1e-4, 10.0, 200)
    rates = [found.rate(update) for update in range(200)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[-1] == pytest.approx(10.0)
    factors = [after / before for before, after in pairwise(rates)]
    assert factors == pytest.approx([factors[0]] * 199)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((1.0, 0.1, 200), "from 1 to 0.1"),
        ((0.0, 0.1, 200), "positive"),
        ((0.1, math.inf, 200), "to inf"),
        ((1e-3, 1.0, 3), "too few"),
    ],
)
def test_senseless_ranges_are_explained(rates, message):
    with pytest.raises(ValueError, match=message):
        RateRange(*rates)


# --- with a network


class OneWeight(nn.Module):
    """Logits (0, w): with labels that are coin flips the loss is least at w = 0, and curved there
    by p (1 - p) = 1/4, so that plain SGD is stable there up to the rate 8.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), self.weight.expand(len(x))], 1)


def one_weight(classes, channels, image_size):
    return OneWeight()


def coins(split, root):
    return torch.rand(1024, 1, 4, 4), torch.arange(1024) % 2


def logistic(**changed):
    return from_plain(
        {
            "name": "logistic",
            "data": {"name": "tests.test_lr_range:coins", "batch_size": 64, "holdout": 0},
            "model": {"name": "tests.test_lr_range:one_weight"},
            "method": {"name": "natural", "ball": {"eps": 0.1}},
            "optimizer": {"learning_rate": 123.0, "momentum": 0.0},
            "budget": {"passes": 1},
            **changed,
        }
    )


def test_a_logistic_models_limit_is_found():
    found = lr_range(logistic(), low=1e-2, high=1000.0, updates=300)
    assert found.diverged
    # beyond 8 the loss does not explode, it grows with the rate
    assert 6 < found.highest < 20
    assert found.lowest[0] < 8


def test_momentum_is_the_recipes():
    """Heavy-ball momentum m is stable up to 2 (1 + m) / curvature."""
    heavy = {"learning_rate": 1.0, "momentum": 0.9}
    found = lr_range(
        logistic(optimizer=heavy, schedule={"cycle_momentum": True}),
        low=1e-2,
        high=1000.0,
        updates=300,
    )
    assert found.diverged
    assert 8 < found.highest < 2 * 15.2


@pytest.mark.parametrize("method", ["natural", "free-3", "pgd-1", "yopo-2-1", "fast-advprop"])
def test_every_update_has_its_rate_and_loss(method):
    updates = 50
    found = lr_range(tiny(method), low=1e-3, high=1e-2, updates=updates)
    assert len(found.losses) == len(found.rates) == len(found.smoothed) == updates
    assert found.rates == [found.rate(update) for update in range(updates)]
    assert all(map(math.isfinite, found.losses))
    assert found.passes > 0


def test_it_is_a_function_of_the_seed():
    one, same = (lr_range(tiny(), updates=50) for _ in range(2))
    assert one == same
    assert one != lr_range(tiny("fgsm-rs", "seed=1"), updates=50)


def test_it_stops_where_it_diverges():
    found = lr_range(tiny("natural"), low=1e-3, high=1e20, updates=60)
    assert found.diverged
    assert len(found.losses) < 60
    assert found.highest < found.rates[-1]


# --- what is written


def test_what_is_written_is_whole_and_nothing_is_overwritten(tmp_path):
    recipe = tiny("natural")
    found = RateRange(1e-3, 10.0, 50)
    for loss in (2.3, 2.2, 2.0, 1.8, 1.9, math.inf):
        found.add(loss)
    out = tmp_path / "deep" / "test"
    write(found, recipe, out)
    record = json.loads((out / "lr_range.json").read_text())
    assert record["largest_rate_before_divergence"] == found.highest == found.rates[3]
    assert record["losses"] == [2.3, 2.2, 2.0, 1.8, 1.9, None]
    assert record["rates"] == found.rates
    assert record["recipe"] == recipe.plain()
    assert record["versions"]["torch"] == torch.__version__
    page = (out / "lr_range.html").read_text()
    assert found.answer in page
    assert "<svg viewBox" in page
    assert "http" not in page.replace("http-equiv", "")
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="not empty; nothing is overwritten"):
        write(found, recipe, out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("losses", [[2.3] * 5, [math.nan], [2.3, math.nan]])
def test_odd_outcomes_have_their_page(tmp_path, losses):
    found = RateRange(1e-3, 10.0, 50)
    for loss in losses:
        found.add(loss)
    write(found, tiny("natural"), tmp_path)
    assert found.answer in (tmp_path / "lr_range.html").read_text()


SMALL = ["model.options.width=4", "data.limit=300"]


def test_the_command_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["lr-range", "digits", "--set", *SMALL, "--from", "1e-3", "--updates", "50"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    out = Path("runs") / "lr-range" / "digits"
    assert {path.name for path in out.iterdir()} == {"lr_range.json", "lr_range.html"}
    record = json.loads((out / "lr_range.json").read_text())
    assert f"largest rate before divergence: {record['answer']}" in printed
    assert record["from"] == 1e-3
    assert record["recipe"]["data"]["limit"] == 300
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "nothing is overwritten" in said
    assert "--resume" not in said
    with pytest.raises(ValueError, match="no run directory"):
        Run.open(out)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["digitz"], "did you mean digits"),
        (["digits", "--from", "1", "--to", "0.1"], "cannot rise"),
        (["digits", "--updates", "5"], "too few"),
    ],
)
def test_unusable_input_is_one_line(tmp_path, monkeypatch, capsys, wrong, reason):
    monkeypatch.chdir(tmp_path)
    assert main(["lr-range", *wrong]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_a_start_left_is_no_place_for_it(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "digits", "--out", str(out), "--set", "model.name=small-cnn"]) == 2
    capsys.readouterr()
    assert main(["lr-range", "digits", "--out", str(out)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
