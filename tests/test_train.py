"""A whole run: its directory, its budget, and that nothing can be lost."""

import functools
import json
import os
import subprocess
import sys
import time
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gratis
from gratis import train
from gratis.budget import thirds_of
from gratis.data import Loader
from gratis.held import RunInUseError
from gratis.learner import Learner
from gratis.run import Run
from gratis.setting import network
from gratis.training_data import training_data
from tests.dying import assert_same, dies, final_state
from tests.recipes import tiny

METHODS = ["natural", "fgsm-rs", "fgsm", "free-3", "pgd-2"]


def test_the_run_directory_holds_the_whole_truth(tmp_path):
    train.run(tiny(), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["schema"] == 1
    assert results["versions"]["torch"] == torch.__version__
    assert results["method"] == "fgsm-rs"
    assert results["recipe_sha256"] == run.recipe_sha256
    assert results["data"]["name"] == "digits"
    assert results["data"]["split"] == "test"
    budget = results["budget"]
    assert budget["metered_passes"] == budget["predicted_passes"] <= 3
    assert budget["guard_passes"] > 0
    (entry,) = results["evaluations"]
    assert entry["attack"] == "pgd-3-2"
    assert entry["parameters"]["alpha"] == pytest.approx(0.05)
    assert entry["threat"] == {"norm": "linf", "eps": 0.2}
    assert entry["images"] == {"split": "test", "start": 0, "count": 24}
    for kind in ("clean", "robust"):
        share = entry[kind]
        assert share["accuracy"] == share["correct"] / 24
        assert share["ci95"][0] <= share["accuracy"] <= share["ci95"][1]
    per_image = run.per_image()
    assert per_image[f"{entry['per_image']}.robust"].sum() == entry["robust"]["correct"]
    pictures = run.pictures()
    gap = np.abs(pictures["adversarial"] - pictures["clean"]).max()
    assert 0 < gap <= 0.2 + 1e-6
    log = run.log()
    steps = [r for r in log if r["kind"] == "step"]
    assert [r["update"] for r in steps] == list(range(1, budget["updates"] + 1))
    assert steps[-1]["spent_passes"] == pytest.approx(budget["metered_passes"])
    assert {"epoch", "check", "step"} <= {r["kind"] for r in log}
    assert (tmp_path / "run" / "checkpoints" / "best.pt").exists()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("passes", [0.9, 2.3])
def test_prediction_is_the_meter_and_never_over_budget(tmp_path, method, passes):
    recipe = tiny(method, "evaluation.attacks=[pgd-1]", "evaluation.limit=2", passes=passes)
    run = train.run(recipe, tmp_path / "run")
    budget = run.results["budget"]
    assert budget["predicted_passes"] == budget["metered_passes"] <= passes
    images = len(training_data(recipe).training)
    dearest = max(recipe.build_method().update_thirds(100))
    left = thirds_of(passes, images) - round(budget["metered_passes"] * 3 * images)
    assert 0 <= left < dearest  # the next whole update would not have fitted
    rates = [r["learning_rate"] for r in run.log() if r["kind"] == "step"]
    assert rates[0] == 0
    assert 0 < rates[-1] <= 0.1 / (0.6 * len(rates)) + 1e-9  # the schedule ends with the run


@pytest.mark.parametrize("method", METHODS)
def test_own_loop_is_bitwise_our_trainer(tmp_path, method):
    recipe = tiny(method, "budget.data_passes=2", "schedule.shape=constant")
    run = train.run(recipe, tmp_path / "run")
    data = training_data(recipe).training
    model = network(recipe, data)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    lent = recipe.build_method()
    loader = Loader(data, 100, seed=0)
    for x, y in lent.batches(chain(loader, loader), model, seed=recipe.seed):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_same(final_state(run.path)["model"], dict(model.state_dict()))


def mortal(method):
    return tiny(method, "engine.checkpoint_seconds=0", "engine.ema=0.9", passes=2.5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(method): where a run lies that nothing interrupted; made once, and only read."""

    @functools.cache
    def made(method):
        return train.run(mortal(method), tmp_path_factory.mktemp("whole") / method).path

    return made


@pytest.mark.parametrize("method", ["fgsm-rs", "free-3"])
@pytest.mark.parametrize(
    ("where", "at"),
    [
        ((Learner, "update"), 8),
        ((Learner, "backward"), 17),
        ((os, "replace"), 3),
        ((os, "replace"), 10),
        ((os, "replace"), 21),
        ((torch, "save"), 1),
        ((torch, "save"), 6),
    ],
    ids=lambda value: value if isinstance(value, int) else value[1],
)
def test_a_run_that_died_anywhere_ends_bitwise_the_same(tmp_path, whole, method, where, at):
    recipe, intact = mortal(method), whole(method)
    with dies(at, where):
        train.run(recipe, tmp_path / "died")
    torch.manual_seed(99)  # a new process knows nothing of the old one's generators
    train.run(recipe, tmp_path / "died", resume=True)
    assert_same(final_state(intact), final_state(tmp_path / "died"))
    lived, died = Run.open(intact), Run.open(tmp_path / "died")
    for one, other in zip(lived.results["evaluations"], died.results["evaluations"], strict=True):
        assert one["robust"] == other["robust"]

    def losses(run):
        return [(r["update"], r["loss"]) for r in run.log() if r["kind"] == "step"]

    assert losses(lived) == losses(died)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["free-3", "fgsm"])
def test_kill_9_at_random_moments(tmp_path, method):
    """Real processes, killed at five random moments one after the other, then left to end."""
    settings = [
        f"method={method}", "model.options.width=16", "budget.passes=100", "check.every=1",
        "engine.checkpoint_seconds=0", "evaluation.limit=20", "evaluation.attacks=[pgd-2]",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    errors = tmp_path / "errors"

    def command(name, *more):
        with errors.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "gratis", "train", "digits", "--set", *settings,
                 "--out", str(tmp_path / name), *more],
                env=environment, stdout=subprocess.DEVNULL, stderr=file,
            )  # fmt: skip

    whole = command("whole")
    assert whole.wait() == 0, errors.read_text()
    chance = np.random.default_rng(len(method))
    more = []
    for _ in range(5):
        process = command("died", *more)
        log = tmp_path / "died" / "log.jsonl"
        before = log.stat().st_size if log.exists() else 0
        # the draw begins with the first new line: most of a start is importing
        while process.poll() is None and not (log.exists() and log.stat().st_size > before):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.0))
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()
        more = ["--resume"]
    assert command("died", *more).wait() == 0, errors.read_text()
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "died"))


def test_a_truncated_checkpoint_is_named_and_the_one_before_used(tmp_path, whole):
    recipe, intact = mortal("free-3"), whole("free-3")
    with dies(20):
        train.run(recipe, tmp_path / "died")
    last = tmp_path / "died" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    run = train.run(recipe, tmp_path / "died", resume=True)
    assert_same(final_state(intact), final_state(tmp_path / "died"))
    assert last.with_suffix(".pt.damaged").exists()
    warnings = [r["message"] for r in run.log() if r["kind"] == "warning"]
    assert any("last.pt is damaged or cut short" in message for message in warnings)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    run = train.run(tiny(passes=1), tmp_path / "run")
    before = run.results
    state = final_state(run.path)
    train.run(tiny(passes=1), tmp_path / "run", resume=True)
    assert run.results == before
    assert_same(state, final_state(run.path))


def test_nothing_is_overwritten(tmp_path):
    run = train.run(tiny(passes=1), tmp_path / "run")
    with pytest.raises(ValueError, match="never overwritten"):
        train.run(tiny(passes=1), tmp_path / "run")
    with pytest.raises(ValueError, match=r"differs in budget\.passes"):
        train.run(tiny(passes=2), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="nothing to resume"):
        train.run(tiny(passes=2), tmp_path / "none", resume=True)
    with run.locked(), pytest.raises(RunInUseError, match="in use"):
        train.run(tiny(passes=1), tmp_path / "run", resume=True)


def test_public_names_answer():
    assert gratis.__version__
    assert "Free" in dir(gratis)
    with pytest.raises(AttributeError, match="no attribute 'Fre'"):
        _ = gratis.Fre


def test_a_finished_run_without_its_checkpoints_does_not_begin_anew(tmp_path):
    run = train.run(tiny(), tmp_path / "run")
    for name in ("last", "previous"):
        run.checkpoint_path(name).unlink(missing_ok=True)
    before = (run.path / "results.json").read_bytes()
    with pytest.raises(ValueError, match="are missing; copy them"):
        train.run(tiny(), tmp_path / "run", resume=True)
    assert (run.path / "results.json").read_bytes() == before
