"""What an evaluation keeps: points, checks, and the answers of one that was interrupted."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from gratis import assess, train
from gratis.asked import question
from gratis.assess import evaluate_run, trained
from gratis.budget import Meter
from gratis.cli import main
from gratis.data import load
from gratis.evaluate import robustness
from gratis.evaluate.answered import Answered
from gratis.recipe import from_plain
from gratis.run import Run
from gratis.training_data import load_split
from gratis.unfinished import Unfinished, sample_of
from tests.recipes import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train.run(tiny("fgsm-rs", passes=6), tmp_path_factory.mktemp("run") / "run")


def test_points_are_kept(run):
    command = ["evaluate", str(run.path), "--limit", "30", "--save-adversarial"]
    assert main([*command, "--attack", "cw-5", "--attack", "pgd-3"]) == 0
    entries = [e for e in run.results["evaluations"] if "adversarial" in e]
    assert [e["attack"] for e in entries] == ["cw-5", "pgd-3"]
    test = load("digits", "test")
    recipe = from_plain(run.recipe)
    model = trained(recipe, load_split(recipe.data, "test"), run.load_checkpoint("last")[0]).eval()
    for entry in entries:
        kept = np.load(run.path / entry["adversarial"])
        points = torch.from_numpy(kept["points"])
        assert (points - test.pixels(slice(0, 30))).abs().max() <= 0.2 + 1e-6
        right = model(points).argmax(1) == torch.from_numpy(kept["label"])
        assert right.tolist() == kept["robust"].tolist()
        assert kept["points_uint8"].dtype == np.uint8
    (union,) = [u for u in run.results["unions"] if u["attacks"] == ["cw-5", "pgd-3"]]
    both = [run.per_image()[f"{e['per_image']}.robust"] for e in entries]
    assert union["robust"]["correct"] == int((both[0] & both[1]).sum())


def test_attacks_in_turn_leave_one_entry_with_parts(run):
    command = ["evaluate", str(run.path), "--limit", "30", "--union", "--checks", "none"]
    assert main([*command, "--attack", "fgsm", "--attack", "cw-9"]) == 0
    (entry,) = [e for e in run.results["evaluations"] if e["attack"] == "fgsm, then cw-9"]
    assert [part["attack"] for part in entry["parts"]] == ["fgsm", "cw-9"]
    assert entry["parts"][0]["images"] == entry["clean"]["correct"]
    assert entry["parts"][1]["images"] == entry["parts"][0]["standing"]
    assert entry["parts"][1]["standing"] == entry["robust"]["correct"]


def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch):
    recipe = tiny("fgsm-rs", "evaluation.batch_size=2", passes=1)  # three pools of 24 images
    whole = train.run(recipe, tmp_path / "whole")
    real, places = Unfinished.put, []

    def third_time_stops(self, place, answered):
        places.append(place)
        if len(places) == 3:
            raise KeyboardInterrupt
        real(self, place, answered)

    monkeypatch.setattr(Unfinished, "put", third_time_stops)
    with pytest.raises(KeyboardInterrupt):
        train.run(recipe, tmp_path / "stopped")
    stopped = Run.open(tmp_path / "stopped")
    assert stopped.results is None
    (directory,) = stopped.unfinished.iterdir()
    assert sorted(p.name for p in directory.glob("*.pt")) == ["00000.pt", "00001.pt"]
    (directory / "00001.pt").write_bytes(b"cut short")
    train.run(recipe, stopped.path, resume=True)
    assert places == [0, 1, 2, 1, 2]  # the damaged one is asked again
    assert not stopped.unfinished.exists()

    def bare(results):
        return [{k: v for k, v in e.items() if k != "seconds"} for e in results["evaluations"]]

    assert bare(stopped.results) == bare(whole.results)


def test_another_question_does_not_take_up_the_answers(run, monkeypatch):
    asked = question(from_plain(run.recipe))
    real, seen = robustness._answer, []
    monkeypatch.setattr(robustness, "_answer", lambda *a: seen.append(1) or real(*a))
    monkeypatch.setattr("gratis.unfinished.Unfinished.done", lambda self: None)
    for attacks in (("pgd-2",), ("pgd-3",), ("pgd-3",)):
        evaluate_run(run, replace(asked, attacks=attacks, checks="none"))
    assert len(seen) == 2


def test_points_of_attacks_in_turn_are_those_that_broke_each_image(run):
    attacks = ("fgsm:alpha=0.1", "pgd-9")
    command = ["evaluate", str(run.path), "--limit", "200", "--union", "--save-adversarial"]
    command += ["--checks", "none", "--attack", attacks[0], "--attack", attacks[1]]
    assert main(command) == 0
    (entry,) = [e for e in run.results["evaluations"] if e["attack"] == ", then ".join(attacks)]
    kept = np.load(run.path / entry["adversarial"])
    recipe = from_plain(run.recipe)
    model = trained(recipe, load_split(recipe.data, "test"), run.load_checkpoint("last")[0]).eval()
    right = model(torch.from_numpy(kept["points"])).argmax(1) == torch.from_numpy(kept["label"])
    assert right.tolist() == kept["robust"].tolist()
    assert int(kept["robust"].sum()) == entry["robust"]["correct"]
    broken = [part["broken"] for part in entry["parts"]]
    assert min(broken) > 0, "each of them has broken some"


def test_checks_of_one_evaluation_do_not_replace_those_of_another(run):
    command = ["evaluate", str(run.path), "--limit", "20"]
    for attack in ("pgd-12-2", "fgsm", "pgd-12-2"):
        assert main([*command, "--attack", attack]) == 0
    judged = [checks["judged"] for checks in run.results["checks"]]
    assert judged.count(["pgd-12-2"]) == judged.count(["fgsm"]) == 1


def test_answers_of_other_code_are_not_taken_up(tmp_path, monkeypatch):
    recipe = tiny("fgsm-rs", "evaluation.batch_size=2", passes=1)
    real, places, scale = Unfinished.put, [], [1.0]

    def second_time_stops(self, place, answered):
        places.append(place)
        if len(places) == 2:
            raise KeyboardInterrupt
        real(self, place, answered)

    def scaled(module, given, out):
        return scale[0] * out

    monkeypatch.setattr(Unfinished, "put", second_time_stops)
    build = assess.trained

    def hooked(*arguments):
        model = build(*arguments)
        model.register_forward_hook(scaled)
        return model

    monkeypatch.setattr(assess, "trained", hooked)
    with pytest.raises(KeyboardInterrupt):
        train.run(recipe, tmp_path / "run")
    scale[0] = -1.0  # as if a constant in the network's code had been put right
    train.run(recipe, tmp_path / "run", resume=True)
    assert places == [0, 1, 0, 1, 2]


def test_what_a_model_says_tells_its_code_unless_it_answers_at_random(tmp_path):
    x = torch.rand(4, 1, 8, 8)
    fixed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    random = torch.nn.Sequential(fixed, Noisy())
    assert torch.equal(sample_of(fixed, x), fixed(x))
    assert sample_of(random, x) is None
    empty = Answered(torch.ones(2, 1, dtype=torch.bool), [0.0], [Meter()], [], torch.zeros(0), [])
    old, new = (Unfinished(tmp_path, sample) for sample in (None, sample_of(fixed, x)))
    old.put(0, empty)
    assert new.get(0) is None
    began = time.monotonic()
    new.wait_for(1, 0.5)
    assert time.monotonic() - began > 0.4, "what is no answer is waited for"
    new.put(0, empty)
    assert new.get(0) is not None
    Unfinished(tmp_path, sample_of(fixed, x)).wait_for(1, 60.0)


class Noisy(torch.nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)
