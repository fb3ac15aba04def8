"""The guard: it sees a collapse, puts back what was good, changes the cause, and goes on."""

import pytest
import torch

from gratis import Learner, Linf, PGDTraining, fgsm, fgsm_rs, train
from gratis.budget import Meter
from gratis.guard import Checker, EarlyStop, Outcome, Recovery
from gratis.passes import Batch
from gratis.setting import network
from gratis.training_data import training_data
from tests.dying import assert_same, dies, final_state
from tests.recipes import tiny
from tests.small_net import sgd, small_net, some_batches, weights


def stepped(learner, times=1):
    for _ in range(times):
        x, y = some_batches()[0]
        learner.fit(fgsm(Linf(0.1)), Batch(x, y))


def test_a_fall_below_half_restores_weights_and_optimizer():
    model = small_net()
    learner = Learner(model, sgd(model))
    recovery = Recovery(images=256, classes=10)
    recovery.begin(learner)
    method = fgsm_rs(Linf(0.1), step_size=0.2)
    stepped(learner)
    assert recovery.look(Outcome(0.9, 0.60), 0.7, learner, method, left=9) is None
    good, moments = weights(model), learner.optimizer.state_dict()["state"][0]["momentum_buffer"]
    moments = moments.clone()
    stepped(learner, 2)
    dip = recovery.look(Outcome(0.9, 0.45), 0.8, learner, method, left=9)
    assert dip is None  # no collapse
    stepped(learner)
    assert not torch.equal(good["0.weight"], model[0].weight)
    changed, event = recovery.look(Outcome(0.9, 0.02), 0.9, learner, method, left=9)
    assert all(torch.equal(good[k], v) for k, v in weights(model).items())
    restored = learner.optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(moments, restored)
    assert changed.step_size == pytest.approx(0.125)
    assert event["restored_update"] == 1
    assert "step_size" in event["change"]
    assert learner.updates == 4  # what was undone stays spent


def test_a_dip_within_chance_of_the_check_is_no_collapse():
    recovery = Recovery(images=16, classes=10)
    recovery.best = 0.3
    assert not recovery._fell(0.14)  # 16 images: a standard error of 11 points
    recovery.images = 1000
    assert recovery._fell(0.14)


def test_below_twice_chance_nothing_can_be_lost():
    recovery = Recovery(images=256, classes=10)
    recovery.best = 0.19
    assert not recovery._fell(0.0)


def test_two_classes_are_guarded_too():
    recovery = Recovery(images=256, classes=2)
    recovery.best = 0.8
    assert recovery._fell(0.1)
    assert recovery._masked(robust=0.05, trained=0.9)
    recovery.best = 0.7
    assert not recovery._fell(0.1)


def test_a_handful_of_images_raises_no_alarm():
    recovery = Recovery(images=8, classes=10)
    assert not recovery._masked(robust=0.0, trained=0.9)


def test_robust_only_to_what_it_is_shown_counts_as_a_collapse():
    recovery = Recovery(images=256, classes=10)
    assert recovery._masked(robust=0.04, trained=0.8)
    assert not recovery._masked(robust=0.25, trained=0.89)
    assert not recovery._masked(robust=0.0, trained=0.25)


def masked(method, left, changes=()):
    """What a check finds in a network that only ever answered the examples it was shown."""
    model = small_net()
    learner = Learner(model, sgd(model))
    recovery = Recovery(images=256, classes=10)
    recovery.begin(learner)
    recovery.changes += changes
    first = weights(model)
    stepped(learner, 3)
    found = recovery.look(Outcome(0.9, 0.01), 0.9, learner, method, left=left)
    return found, learner, all(torch.equal(first[k], v) for k, v in weights(model).items())


def test_what_was_never_robust_starts_afresh_with_a_whole_schedule():
    (changed, event), learner, restored = masked(fgsm(Linf(0.1)), left=9)
    assert restored
    assert changed.start == "random"
    assert event["restored_update"] == 0
    assert (learner.updates, learner.begun) == (3, 3)


def test_untrained_weights_are_never_the_result():
    found, _, restored = masked(fgsm(Linf(0.1)), left=0)
    assert found is None
    assert not restored


def at_chance(clean, started=3, method=None, begun_anew=True):
    """What a check finds, three updates after a new beginning, in a network that answers one
    class to all; `started` had taught it more the first time.
    """
    model = small_net()
    learner = Learner(model, sgd(model))
    recovery = Recovery(images=256, classes=10)
    recovery.begin(learner)
    recovery.started = started
    first = weights(model)
    stepped(learner, 7)
    learner.begun = 4 if begun_anew else 0
    method = method or fgsm_rs(Linf(0.1), clip_start=False)
    found = recovery.look(Outcome(clean, 0.1), 0.1, learner, method, left=9)
    restored = all(torch.equal(first[k], v) for k, v in weights(model).items())
    return found, recovery, learner, restored


def test_what_fails_to_start_again_is_begun_once_more():
    (changed, event), _, learner, restored = at_chance(clean=0.15)
    assert restored
    assert changed.step_size == pytest.approx(0.75 * 0.125)
    assert event["restored_update"] == 0
    assert (learner.updates, learner.begun) == (7, 7)


@pytest.mark.parametrize("waits", [{"started": 4}, {"started": None}, {"begun_anew": False}])
def test_a_slow_start_is_waited_for_and_never_fallen_back_on(waits):
    found, recovery, learner, restored = at_chance(clean=0.15, **waits)
    assert found is None
    assert not restored
    assert recovery.good["update"] == 0  # a network at chance is nothing to keep
    assert recovery.look(Outcome(0.5, 0.2), 0.5, learner, fgsm_rs(Linf(0.1)), left=9) is None
    assert recovery.good["update"] == 7


def test_how_soon_a_network_started_is_noted_once():
    found, recovery, learner, _ = at_chance(clean=0.16, started=None)  # a little above chance
    assert found is None
    assert (recovery.good["update"], recovery.started) == (7, 3)
    recovery.look(Outcome(0.9, 0.5), 0.9, learner, fgsm_rs(Linf(0.1)), left=2)
    assert recovery.started == 3


def test_at_chance_what_cannot_be_made_gentler_goes_on():
    found, _, _, restored = at_chance(0.15, method=PGDTraining(Linf(0.1), 7))
    assert found is None
    assert not restored


def test_nothing_is_undone_for_ever():
    """Where no change is known, or many did not help, a threat may just be too strong."""
    assert masked(PGDTraining(Linf(0.1), 7), left=9)[0] is None
    assert masked(fgsm(Linf(0.1)), left=9, changes=["a", "b", "c", "d"])[0] is None


def outcomes(monkeypatch, robust):
    """Let the run's checks find these robust accuracies, one after the other, the last for ever."""
    found = list(robust)

    def check(self, model, meter):
        meter.probes += 5
        return Outcome(clean=0.9, robust=found.pop(0) if len(found) > 1 else found[0])

    monkeypatch.setattr(Checker, "__call__", check)


def test_a_guarded_run_goes_on_within_its_budget(tmp_path, monkeypatch):
    outcomes(monkeypatch, [0.5, 0.02, 0.5])
    run = train.run(tiny("fgsm", passes=8), tmp_path / "run")
    (event,) = [r for r in run.log() if r["kind"] == "guard"]
    assert event["event"] == "restored"
    assert event["change"].startswith("start zero -> random")
    checks = [r["update"] for r in run.log() if r["kind"] == "check"]
    assert event["update"] == checks[1]
    assert event["restored_update"] == checks[0]
    budget = run.results["budget"]
    assert budget["metered_passes"] == budget["predicted_passes"] <= 8
    assert budget["guard_passes"] > 0


ROBUST = [0.5, 0.02, 0.5, 0.02, 0.5]


def twice_collapsing():
    return tiny("fgsm", "engine.checkpoint_seconds=0", passes=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupted, which is only read."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("guard") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        outcomes(patch, ROBUST)
        train.run(twice_collapsing(), path)
    return path


@pytest.mark.parametrize("stop", [17, 25, 34])
def test_a_guarded_run_resumes_bitwise(tmp_path, monkeypatch, whole, stop):
    """Killed before, between and after two collapses; the changes so far must come back."""
    recipe = twice_collapsing()
    with monkeypatch.context() as patch:
        outcomes(patch, ROBUST)
        with dies(stop + 1):
            train.run(recipe, tmp_path / "died")
    with monkeypatch.context() as patch:
        done = final_state(tmp_path / "died")["checked"]["probes"] // 5
        outcomes(patch, ROBUST[min(done, len(ROBUST) - 1) :])
        run = train.run(recipe, tmp_path / "died", resume=True)
    assert_same(final_state(whole), final_state(tmp_path / "died"))
    changes = [r["change"] for r in run.log() if r["kind"] == "guard"]
    assert len(changes) == 2


def test_a_collapse_at_the_very_end_leaves_good_weights(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        outcomes(patch, [0.5, 0.5, 0.01])
        run = train.run(tiny(passes=5), tmp_path / "run")
    (event,) = [r for r in run.log() if r["kind"] == "guard"]
    assert event["update"] == run.results["budget"]["updates"]
    state = final_state(run.path)
    assert_same(state["recovery"]["good"]["model"], state["model"])


def test_natural_training_is_not_watched(tmp_path, monkeypatch):
    outcomes(monkeypatch, [0.5, 0.0])
    run = train.run(tiny("natural"), tmp_path / "run")
    assert not [r for r in run.log() if r["kind"] == "guard"]


def test_early_stop_is_the_papers(tmp_path, monkeypatch):
    """A drop over 20 points from one epoch's end to the next: back, and over."""
    accuracies = iter([0.40, 0.55, 0.36, 0.15, 0.9])
    monkeypatch.setattr(EarlyStop, "_accuracy", lambda *_: next(accuracies))
    run = train.run(tiny("fgsm-rs", "guard.mode=early-stop", passes=20), tmp_path / "run")
    (event,) = [r for r in run.log() if r["kind"] == "guard"]
    assert event["event"] == "stopped"
    assert event["epoch"] == pytest.approx(4)
    assert event["restored_update"] == 3 * event["update"] // 4
    assert run.results["budget"]["updates"] == event["update"]
    state = final_state(run.path)
    assert_same(state["model"], state["early_stop"]["kept"]["model"])


def test_early_stop_measures_pgd_5_on_the_batch_and_counts_it():
    recipe = tiny()
    data = training_data(recipe).training
    model = network(recipe, data)
    learner = Learner(model, sgd(model))
    for first in range(0, 600, 100):
        rows = slice(first, first + 100)
        learner.fit(fgsm_rs(Linf(0.05)), Batch(data.pixels(rows), data.y[rows]))
    before, meter = weights(model), Meter()
    batch = Batch(data.pixels(slice(0, 100)), data.y[:100])
    accuracies = {
        eps: EarlyStop(Linf(eps))._accuracy(batch, learner, meter) for eps in (0.0, 0.05, 0.3)
    }
    assert accuracies[0.0] > accuracies[0.05] > accuracies[0.3]
    assert meter == Meter(probes=3 * 5 * 100, forwards=3 * 100)
    assert all(torch.equal(before[k], v) for k, v in weights(model).items())


def test_checks_come_from_the_same_starts_every_time():
    recipe = tiny("fgsm-rs")
    data = training_data(recipe)
    model, looked = network(recipe, data.training), []
    checker = Checker(data.held_out, 16, "pgd-3", Linf(0.1), seed=0, size=16)
    model.register_forward_pre_hook(lambda module, given: looked.append(given[0].detach().clone()))
    for seed in (3, 40):
        torch.manual_seed(seed)
        checker(model, Meter())
    first, second = looked[: len(looked) // 2], looked[len(looked) // 2 :]
    assert len(first) > 2
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_checks_leave_the_run_alone(tmp_path):
    """The trained weights are bitwise the same."""
    often = train.run(tiny("free-3", "check.every=0.4"), tmp_path / "often")
    never = train.run(tiny("free-3", "check.every=100"), tmp_path / "never")
    assert len([r for r in often.log() if r["kind"] == "check"]) > 2
    assert_same(final_state(often.path)["model"], final_state(never.path)["model"])
