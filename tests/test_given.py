"""Models trained elsewhere: what is known of them, asked of them, and said where input lacks."""

import json

import pytest
import torch
import yaml
from torch import nn

from gratis import train
from gratis.cli import main
from gratis.export import robustbench
from gratis.given import load_weights
from gratis.run import Run
from gratis.terminal import NOTHING
from tests.recipes import tiny


def build(classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))


def written(path, **changed):
    plain = json.loads(json.dumps(tiny(passes=1).plain()))
    path.write_text(yaml.safe_dump({k: v for k, v in (plain | changed).items() if v is not None}))
    return str(path)


def test_nothing_is_said_of_what_training_elsewhere_cost(tmp_path, capsys):
    command = ["evaluate", f"{__name__}:build", "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*command, "--attack", "fgsm", "--limit", "9", "--checks", "none"]) == 0
    printed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in printed if line.split()[-2:] == [NOTHING, NOTHING]]
    assert "tests." in line


def test_the_weights_given_are_the_last_ones_whatever_a_recipe_asks(tmp_path):
    data = written(tmp_path / "mine.yaml", evaluation={"checkpoint": "best", "attacks": ["fgsm"]})
    out = tmp_path / "run"
    command = ["evaluate", f"{__name__}:build", "--data", data, "--out", str(out)]
    assert main([*command, "--limit", "9", "--checks", "none"]) == 0
    assert Run.open(out).results["evaluations"][0]["checkpoint"] == "last"


def test_a_recipe_without_a_method_is_enough_or_explained(tmp_path, capsys):
    data, out = (
        written(tmp_path / "mine.yaml", method=None, guard={"mode": "off"}),
        tmp_path / "out",
    )
    command = ["evaluate", f"{__name__}:build", "--data", data, "--out", str(out / "a")]
    assert main([*command, "--limit", "9", "--eps", "0.1", "--checks", "none"]) in (0, 2)
    command = ["compare", "natural", "--data", data, "--budget", "1", "--out", str(out / "b")]
    assert main(command) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_safetensors_that_are_none_are_explained(tmp_path):
    pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    (tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"w\.safetensors could not be read as tensors alone"):
        load_weights(build(10, 1, 8), tmp_path / "w.safetensors")


def test_an_entry_is_of_the_checkpoint_that_it_is_asked_of(tmp_path):
    run = train.run(tiny("fgsm-rs", passes=2), tmp_path / "run")
    state = torch.load(run.checkpoint_path("last"), weights_only=True)
    run.save_checkpoint("best", state)
    results = run.results
    (entry,) = results["evaluations"]
    for checkpoint, correct in (("best", 3), ("last", 2)):
        share = {"correct": correct, "accuracy": correct / 24, "ci95": [0, 1]}
        named = {"attack": "autoattack", "checkpoint": checkpoint, "robust": share}
        results["evaluations"].append({**entry, **named})
    run.write_results(results)
    found = {
        checkpoint: robustbench(run, {}, checkpoint)["autoattack_acc"]
        for checkpoint in ("best", "last", None)
    }
    assert found == {"best": "12.50", "last": "8.33", None: "8.33"}
    with pytest.raises(ValueError, match="on checkpoint previous"):
        robustbench(run, {}, "previous")
