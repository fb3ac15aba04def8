"""A trained network verified: held against attacks, resumed, kept apart, and the command."""

import json

import pytest
import torch
from torch import nn

from gratis import train
from gratis.assess import trained
from gratis.balls import Linf
from gratis.cli import main
from gratis.data import load
from gratis.evaluate import robust_accuracy
from gratis.recipe import from_plain
from gratis.verify import Verifier, verify_run
from gratis.verify import record as records
from tests.dying import dies
from tests.recipes import tiny
from tests.verify_problems import BALL, SETTINGS, lines_of, trained_run


def bent(classes, channels, image_size, width=4):
    """A network that is not piecewise linear, for a recipe."""
    pixels = channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.Linear(pixels, classes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("verify"), passes=30)


def without_seconds(record):
    return {key: value for key, value in record.items() if key != "seconds"}


@pytest.mark.slow
def test_no_attack_breaks_what_is_safe(run):
    images = load("digits", "test")
    summary = verify_run(run, BALL, SETTINGS, limit=40, images=images)
    found = lines_of(run)
    assert [r["index"] for r in found] == list(range(40))
    counts = summary["counts"]
    assert sum(counts.values()) == 40
    assert counts["safe"] > 10
    assert counts["unsafe"] > 0
    verified = summary["verified"]
    assert verified["low"]["correct"] == counts["safe"]
    assert verified["high"]["correct"] == counts["safe"] + counts["undecided"]
    assert verified["ci95"][0] < verified["low"]["accuracy"] <= verified["high"]["accuracy"]

    state, _ = run.load_checkpoint("last")
    net = trained(from_plain(run.recipe), images, state).eval()
    safe = torch.tensor([r["index"] for r in found if r["verdict"] == "safe"])
    loader = [(images.pixels(safe), images.y[safe])]
    attacked = robust_accuracy(net, loader, ["pgd-20-2", "cw-20-2", "apgd-t"], ball=BALL)
    assert attacked.robust.all()
    for record in found:
        if record["verdict"] == "unsafe":
            point = records.decoded(record["point"], tuple(images.x.shape[1:]))
            x = images.pixels(slice(record["index"], record["index"] + 1))
            assert (point.double() - x.double()).abs().max() <= BALL.eps
            assert 0 <= point.min() <= point.max() <= 1
            assert net(point).argmax() != record["label"]
            assert net.double()(point.double()).argmax() != record["label"]
            net.float()


@pytest.mark.usefixtures("few_steps")
def test_resumed_equals_whole(run):
    images = load("digits", "test")
    path = run.path / "verify" / "linf-0.05.jsonl"
    path.unlink(missing_ok=True)
    whole = verify_run(run, BALL, SETTINGS, limit=7, images=images)
    expected = [without_seconds(r) for r in lines_of(run)]
    path.unlink()

    with dies(4, (Verifier, "verdict")):
        verify_run(run, BALL, SETTINGS, limit=7, images=images)
    assert len(lines_of(run)) == 3
    with path.open("a") as file:
        file.write('{"question": "torn')
    resumed = verify_run(run, BALL, SETTINGS, limit=7, images=images)
    text = path.read_text().splitlines()
    assert len(text) == 8
    kept = [json.loads(line) for line in text if not line.endswith("torn")]
    assert [without_seconds(r) for r in kept] == expected
    assert resumed["counts"] == whole["counts"]


@pytest.mark.usefixtures("few_steps")
def test_other_networks_and_balls_are_not_mixed(run):
    images = load("digits", "test")
    path = run.path / "verify" / "linf-0.05.jsonl"
    path.unlink(missing_ok=True)
    verify_run(run, BALL, SETTINGS, limit=3, images=images)
    verify_run(run, BALL, SETTINGS, limit=4, images=images)
    assert len(lines_of(run)) == 4
    verify_run(run, BALL, SETTINGS, limit=3, checkpoint="best", images=images)
    verify_run(run, Linf(0.0), SETTINGS, limit=3, images=images)
    assert {r["index"] for r in lines_of(run, "linf-0.jsonl")} == {0, 1, 2}
    questions = {r["question"] for r in lines_of(run)}
    assert len(questions) in (1, 2), "best may be last"


def test_the_command(run, capsys):
    out = str(run.path)
    assert main(["verify", out, "--eps", "8/255", "--limit", "6", "--time-limit", "5"]) == 0
    printed = capsys.readouterr().out
    assert "verified at linf 8/255, 6 test images, checkpoint last" in printed
    assert "verified accuracy:" in printed
    summary = json.loads((run.path / "verify" / "linf-8over255.json").read_text())
    assert summary["images"] == {"split": "test", "start": 0, "count": 6}
    assert main(["verify", out, "--time-limit", "-1"]) == 2
    assert main(["verify", str(run.path / "nothing")]) == 2


def test_the_command_refuses_other_networks_and_norms(tmp_path, capsys):
    run = train.run(tiny("natural", "method.ball.norm=l2", passes=1), tmp_path / "l2")
    assert main(["verify", str(run.path)]) == 2
    assert "exact verification is in Linf" in capsys.readouterr().err
    run = train.run(tiny("natural", "model.name=tests.test_verify:bent", passes=1), tmp_path / "u")
    assert main(["verify", str(run.path), "--limit", "1"]) == 2
    assert "layer 1 (Sigmoid) is none of these" in capsys.readouterr().err
