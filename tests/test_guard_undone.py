"""What a guard keeps to fall back on stays as it was, and its looks are not training."""

import pytest
import torch

from gratis import Learner, Linf, clock, fgsm, fgsm_rs, train
from gratis.guard import EarlyStop, Outcome, Recovery
from gratis.passes import Batch
from tests.dying import assert_same
from tests.recipes import tiny
from tests.small_net import small_net, some_batches


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_collapse_right_after_another_finds_the_same_good_state(optimizer):
    model = small_net()
    moving = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    learner = Learner(model, optimizer(model.parameters(), 0.05, **moving), ema=0.9)
    recovery = Recovery(images=256, classes=10)
    recovery.begin(learner)
    x, y = some_batches()[0]

    def stepped(times):
        for _ in range(times):
            learner.fit(fgsm(Linf(0.1)), Batch(x, y))

    def restored():
        found = recovery.look(Outcome(0.9, 0.02), 0.9, learner, method, left=9)
        assert found is not None
        state = learner.state()
        return {key: state[key] for key in ("model", "optimizer", "averaged")}, found[0]

    method = fgsm_rs(Linf(0.1), step_size=0.2)
    stepped(2)
    assert recovery.look(Outcome(0.9, 0.6), 0.7, learner, method, left=9) is None
    stepped(1)
    once, method = restored()
    once = {key: _copy(value) for key, value in once.items()}
    stepped(3)
    again, _ = restored()
    assert_same(once, again)


def _copy(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return value


def test_early_stops_looks_are_not_seconds_of_training(tmp_path, monkeypatch):
    now = 0.0

    def seconds(_):
        nonlocal now
        now += 0.001
        return now

    def look(*_):
        nonlocal now
        now += 1000

    monkeypatch.setattr(clock, "seconds", seconds)
    monkeypatch.setattr(EarlyStop, "look", look)
    run = train.run(tiny("fgsm-rs", "guard.mode=early-stop", passes=5), tmp_path / "run")
    assert now > 3000
    assert 0 < run.results["budget"]["seconds"] < 100
