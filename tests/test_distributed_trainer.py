"""The trainer on two processes: the run of one, who writes, kills, mistakes and torchrun."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
import yaml

from gratis import train
from gratis.run import Run, WatchedRun
from tests.distributed_runs import early_recipe, folder, found
from tests.dying import assert_same, final_state
from tests.two_processes import WORLD, needs_gloo, whole_recipe

__all__ = ["folder", "found"]  # fixtures, asked for by name

pytestmark = needs_gloo


@pytest.fixture(scope="module")
def one(folder):
    """The same run on one process whose norms see each batch as two would."""
    torch.set_num_threads(1)
    return train.run(whole_recipe(f"model.norm_groups={WORLD}"), folder / "one")


def losses(run):
    return [(r["update"], r["loss"]) for r in run.log() if r["kind"] == "step"]


def test_the_trainer_on_two_processes_is_the_trainer_on_one(folder, found, one):
    two = Run.open(folder / "two")
    ours, theirs = final_state(two.path), final_state(one.path)
    assert ours["updates"] == theirs["updates"] > 80
    for kind in ("model", "averaged"):
        got = {k.replace(".main_norm", ""): v for k, v in theirs[kind].items()}
        assert got.keys() == ours[kind].keys()
        for key, value in got.items():
            torch.testing.assert_close(ours[kind][key], value, rtol=1e-4, atol=1e-5)
    pairs = list(zip(losses(two), losses(one), strict=True))
    assert [a[0] for a, _ in pairs] == [b[0] for _, b in pairs]
    for (_, ours_loss), (_, loss) in pairs:
        assert ours_loss == pytest.approx(loss, rel=1e-4)
    budget, expected = two.results["budget"], one.results["budget"]
    assert budget["predicted_passes"] == budget["metered_passes"] == expected["metered_passes"]
    for key in ("papers_passes", "guard_passes", "updates", "data_passes"):
        assert budget[key] == expected[key]
    spent = [[r["spent_passes"] for r in run.log() if r["kind"] == "step"] for run in (two, one)]
    assert spent[0] == spent[1]
    epochs = [
        [r["train_accuracy"] for r in run.log() if r["kind"] == "epoch"] for run in (two, one)
    ]
    assert epochs[0] == pytest.approx(epochs[1], abs=0.01)
    assert two.results["evaluations"][0]["images"]["count"] == 24


def test_only_the_first_process_writes_and_shows(found):
    assert [f["train"]["kind"] for f in found] == ["Run", "WatchedRun"]
    assert found[0]["train"]["shown"] > 0
    assert found[1]["train"]["shown"] == 0


def test_a_killed_run_of_two_ends_bitwise_the_same(folder):
    assert_same(final_state(folder / "two"), final_state(folder / "died"))
    whole, died = (Run.open(folder / name) for name in ("two", "died"))
    resumed = [r["update"] for r in died.log() if r["kind"] == "resumed"]
    assert 0 < resumed[0] < 50
    assert resumed[0] % 60  # in mid-epoch
    assert losses(whole) == losses(died)
    assert whole.results["evaluations"][0]["robust"] == died.results["evaluations"][0]["robust"]


def test_one_process_decides_whether_code_is_compiled_for_all_and_for_good(folder, found):
    for rank, process in enumerate(found):
        times = process["train"]["compiled"]
        decided = int(rank == 0)
        assert tuple(times["first"]) == (decided, 1)
        assert tuple(times["both"]) == (decided, 2), "taken up again, nobody measures anew"
    events = [r for r in Run.open(folder / "compiled").log() if r["kind"] == "compile"]
    assert [event["used"] for event in events] == [True]


def test_kept_perturbations_are_saved_in_the_order_of_processes(folder, one):
    ours, theirs = (final_state(path)["method"]["delta"] for path in (folder / "two", one.path))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 1e-3


@pytest.mark.parametrize("method", ["fast-advprop", "yopo-2-1", "fgsm-rs"])
def test_prediction_is_the_meter_with_a_short_last_batch(folder, found, method):
    run = Run.open(folder / method)
    budget = run.results["budget"]
    assert budget["predicted_passes"] == budget["metered_passes"] <= 3.9
    assert 3.9 - budget["metered_passes"] < 0.9
    assert budget["data_passes"] > 1  # the short batch, of 32 images instead of 33, was among them
    last = [r["spent_passes"] for r in run.log() if r["kind"] == "step"][-1]
    assert last == pytest.approx(budget["metered_passes"])


def test_early_stop_looks_at_the_whole_batch(folder, found):
    one = train.run(early_recipe(f"model.norm_groups={WORLD}"), folder / "early-one")
    ours, theirs = (final_state(path) for path in (folder / "early", one.path))
    robust = ours["early_stop"]["previous"]
    assert robust == pytest.approx(theirs["early_stop"]["previous"], abs=1e-9)
    assert 0 < robust < 1
    assert ours["checked"] == theirs["checked"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("odd", "25 images, of all processes together, cannot be divided equally among 2"),
        ("data", "digits"),
        ("diverged", "the loss became"),
    ],
)
def test_mistakes_are_told_by_every_process(found, folder, name, said):
    assert all(said in f["train"][name] for f in found)
    if name != "diverged":
        assert not (folder / name).exists()


def test_a_process_that_fails_alone_keeps_nobody_waiting(found):
    (heard, when), (said, failed) = (f["lost"] for f in found)
    assert said == "only here"
    assert heard
    assert when - failed < 20


def test_a_watched_directory_is_left_alone(tmp_path):
    run = WatchedRun(tmp_path / "run")
    assert not run.has_checkpoint
    run.save_checkpoint("last", {})
    run.set_aside_damaged()
    writer = run.log_writer()
    writer.write({"kind": "step"})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def torchrun(recipe, out, *more):
    """`torchrun ... -m gratis train RECIPE`, started; its output is for `communicate`."""
    written = out.with_suffix(".yaml")
    written.write_text(yaml.safe_dump(recipe.plain()))
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}",
         "-m", "gratis", "train", str(written), "--out", str(out), *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_torchrun_trains_evaluates_and_reports(folder, found, tmp_path):
    started = torchrun(whole_recipe(), tmp_path / "run")
    stdout, stderr = started.communicate()
    assert started.returncode == 0, stderr
    assert_same(final_state(tmp_path / "run"), final_state(folder / "two"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["evaluations"]
    assert (tmp_path / "run" / "report.html").exists()
    assert stdout.count("report:") == 1
    assert stdout.count("robust %") == 1
    assert stderr.count(": train ") == 1
    assert "reducer.cpp" not in stderr


@pytest.mark.slow
def test_torchrun_killed_in_mid_run_goes_on(tmp_path):
    recipe = whole_recipe("engine.checkpoint_seconds=0", "budget.passes=30", "check.every=5")
    whole = torchrun(recipe, tmp_path / "whole")
    _, stderr = whole.communicate()
    assert whole.returncode == 0, stderr
    log, more = tmp_path / "died" / "log.jsonl", []
    for moment in (0.5, 1.0):
        died = torchrun(recipe, tmp_path / "died", *more)
        before = log.stat().st_size if log.exists() else 0
        while died.poll() is None and not (log.exists() and log.stat().st_size > before):
            time.sleep(0.01)
        time.sleep(moment)
        died.terminate()  # torchrun hands it on to its processes, which have no word in it
        died.communicate()
        assert died.returncode != 0, "the run ended before it could be killed"
        more = ["--resume"]
    resumed = torchrun(recipe, tmp_path / "died", "--resume")
    _, stderr = resumed.communicate()
    assert resumed.returncode == 0, stderr
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "died"))
    records = [r for r in Run.open(tmp_path / "died").log() if r["kind"] == "resumed"]
    assert any(r["update"] > 0 for r in records)
