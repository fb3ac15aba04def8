"""What was measured on earlier weights never stands for a run that went on training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gratis import assess, train
from gratis.asked import question
from gratis.assess import evaluate_run
from gratis.merging import supersede
from gratis.recipe import Recipe
from gratis.report import write_report
from gratis.run import Run
from tests.dying import dies
from tests.recipes import tiny
from tests.reports import Page


def recipe(*settings: str) -> Recipe:
    return tiny("fgsm-rs", "engine.checkpoint_seconds=0", *settings, passes=2.5)


def evaluated_half_way(path: Path, *attacks: str) -> Run:
    """A run that was killed, and then evaluated by its user as far as it had come."""
    with dies(9):
        train.run(recipe(), path)
    run = Run.open(path)
    with run.locked():
        evaluate_run(run, replace(question(recipe()), attacks=attacks))
    return run


def updates(results: dict[str, Any] | None, kind: str = "evaluations") -> dict[str, int]:
    assert results is not None
    return {entry["attack"]: entry["update"] for entry in results[kind]}


def test_a_run_that_was_evaluated_half_way_is_evaluated_again_at_its_end(tmp_path: Path) -> None:
    run = evaluated_half_way(tmp_path / "run", "pgd-3-2", "pgd-2")
    half_way = updates(run.results)
    train.run(recipe(), tmp_path / "run", resume=True)
    whole = train.run(recipe(), tmp_path / "whole")
    assert run.results is not None
    assert whole.results is not None
    assert updates(run.results) == updates(whole.results)
    assert run.results["budget"]["metered_passes"] == whole.results["budget"]["metered_passes"]
    one, other = (results["evaluations"][0] for results in (run.results, whole.results))
    assert (one["weights"], one["robust"]) == (other["weights"], other["robust"])
    # kept, but no longer the run's
    of = {e["attack"]: e["update"] for e in run.results["superseded"] if e["of"] == "evaluations"}
    assert of == half_way
    assert {entry["update"] for entry in run.results["checks"]} == {one["update"]}


def test_fewer_images_than_the_recipe_asks_for_are_no_answer(tmp_path: Path) -> None:
    with dies(1, (train, "evaluate_run")):
        train.run(recipe(), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    with run.locked():
        evaluate_run(run, replace(question(recipe()), limit=7))
    train.run(recipe(), tmp_path / "run", resume=True)
    assert run.results is not None
    assert [e["images"]["count"] for e in run.results["evaluations"]] == [7, 24]
    assert "superseded" not in run.results, "the weights are the same"


@pytest.mark.parametrize(
    ("limit", "count", "data", "answers"),
    [
        (24, 24, {"images": 500}, True),
        (24, 7, {"images": 500}, False),
        (None, 24, {"images": 500}, False),
        (None, 500, {"images": 500}, True),
        (1000, 500, {"images": 500}, True),
        (None, 24, {}, True),  # by an earlier version, which did not write how many there are
    ],
)
def test_how_many_images_answer(
    limit: int | None, count: int, data: dict[str, int], answers: bool
) -> None:
    asked = replace(question(recipe()), limit=limit)
    entry = {
        "attack": "pgd-3-2",
        "threat": {"norm": "linf", "eps": 0.2},
        "checkpoint": "last",
        "update": 9,
        "images": {"count": count},
    }
    results = {"data": data, "evaluations": [entry]}
    assert asked.answered_by(results, 9) == answers
    assert asked.answered_by(results) == answers
    assert not asked.answered_by(results, 10)
    assert not asked.answered_by(None)


def test_masking_checks_know_of_training_what_led_to_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run did after its `best` checkpoint is nothing that the checkpoint could show."""
    run = train.run(recipe("check.every=0.3"), tmp_path / "run")
    checks = [r for r in run.log() if r["kind"] == "check"]
    best = torch.load(run.checkpoint_path("last"), weights_only=True)
    best["updates"] = checks[1]["update"]
    run.save_checkpoint("best", best)
    histories: list[Any] = []
    made = assess.check_masking

    def noted(*given: Any, history: Any, **how: Any) -> Any:
        histories.append(history)
        return made(*given, history=history, **how)

    monkeypatch.setattr(assess, "check_masking", noted)
    with run.locked():
        for checkpoint in ("best", "last"):
            evaluate_run(run, replace(question(recipe()), checkpoint=checkpoint))
    accuracies = [check["robust_accuracy"] for check in checks]
    assert len(checks) > 2
    assert histories == [accuracies[:2], accuracies]


def test_the_page_of_a_run_that_was_evaluated_half_way_says_so(tmp_path: Path) -> None:
    run = evaluated_half_way(tmp_path / "run", "pgd-2")
    (run.path / "verify").mkdir()
    assert "has not finished" in said(run)
    assert "trained on digits at a budget" not in said(run)
    with dies(5):  # it goes on, and is killed once more: the figures are older than the log
        train.run(recipe(), run.path, resume=True)
    assert "has not finished" in said(run)
    train.run(recipe(), run.path, resume=True)
    assert "has not finished" not in said(run)
    assert "trained on digits at a budget" in said(run)


def said(run: Run) -> str:
    write_report([run], run.path / "page.html")
    return Page((run.path / "page.html").read_text("utf-8")).text


def test_an_older_checkpoint_in_place_of_a_damaged_one_puts_nothing_aside() -> None:
    entry = {"checkpoint": "last", "update": 9}
    results = {"evaluations": [entry], "shifts": [entry], "checks": []}
    supersede(results, "last", 7)
    supersede(results, "best", 12)
    assert results == {"evaluations": [entry], "shifts": [entry], "checks": []}
    supersede(results, "last", 12)
    assert results["evaluations"] == results["shifts"] == []
    assert results["superseded"] == [{"of": kind, **entry} for kind in ("evaluations", "shifts")]
