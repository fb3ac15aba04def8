"""Every entry of results.json says which images, device, versions and weights it is of."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gratis import answers, assess, train
from gratis.asked import question
from gratis.cli import main
from gratis.recipe import from_plain
from gratis.run import Run
from tests.reports import Page
from tests.test_changed_images import recipe, tree
from tests.test_stale_answers import evaluated_half_way
from tests.test_stale_answers import recipe as interrupted

KINDS = ("evaluations", "unions", "checks")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return train.run(recipe(tree(tmp_path / "images")), tmp_path / "run")


def results_of(run: Run) -> dict[str, Any]:
    assert run.results is not None
    return run.results


def evaluate(run: Run, *words: str) -> list[dict[str, Any]]:
    assert main(["evaluate", str(run.path), "--limit", "9", *words]) == 0
    return [e for e in results_of(run)["evaluations"] if e["attack"] == "fgsm"]


def changed(tmp_path: Path) -> Path:
    other = tree(tmp_path / "others")
    Image.new("L", (8, 8), 7).save(other / "test" / "a" / "0.png")
    return other


def page(run: Run) -> str:
    return Page((run.path / "report.html").read_text("utf-8")).text


def test_other_images_are_another_question(run: Run, tmp_path: Path) -> None:
    attacks = ("--attack", "fgsm", "--attack", "pgd-2")
    (first,) = evaluate(run, *attacks)
    elsewhere = ("--set", f"data.root={changed(tmp_path)}")
    for _ in range(2):
        before, other = evaluate(run, *attacks, *elsewhere)
    results = results_of(run)
    assert before == first
    assert first["fingerprint"] == results["data"]["fingerprint"] != other["fingerprint"]
    assert other["warnings"] == [assess.OTHER_IMAGES]
    assert "warnings" not in first
    for kind in KINDS:
        found = {entry["fingerprint"] for entry in results[kind]}
        assert found == {first["fingerprint"], other["fingerprint"]}
    assert before["per_image"] != other["per_image"]
    assert {f"{e['per_image']}.robust" for e in (before, other)} <= run.per_image().keys()

    (again, still) = evaluate(run, *attacks)
    assert again["robust"] == first["robust"]
    assert still == other, "what was warned of then stays with the entry"
    assert "warnings" not in results_of(run)
    assert assess.OTHER_IMAGES in page(run)
    assert f"on test images with fingerprint {other['fingerprint'][:16]}" in page(run)


def test_figures_of_other_images_are_no_answer_for_the_run(run: Run, tmp_path: Path) -> None:
    asked = question(from_plain(run.recipe))
    asked = replace(asked, attacks=("fgsm",), limit=9)
    evaluate(run, "--attack", "fgsm", "--set", f"data.root={changed(tmp_path)}")
    assert not asked.answered_by(results_of(run))
    evaluate(run, "--attack", "fgsm")
    assert asked.answered_by(results_of(run))


def test_where_the_runs_own_images_have_changed_they_are_asked_about(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by another decoder of JPEGs: what the recipe reads is what tables and exports are of."""
    asked = replace(question(from_plain(run.recipe)), attacks=("fgsm",), limit=9)
    (first,) = evaluate(run, "--attack", "fgsm")
    before = results_of(run)["data"]["fingerprint"]
    Image.new("L", (8, 8), 7).save(tmp_path / "images" / "test" / "a" / "0.png")
    old, new = evaluate(run, "--attack", "fgsm")
    assert old == first
    assert results_of(run)["data"]["fingerprint"] == new["fingerprint"] != before
    assert new["warnings"] == [assess.OTHER_IMAGES]
    assert asked.answered_by(results_of(run))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"on test images with fingerprint {before[:16]}" in shown
    assert "data.root=DIR" in page(run)
    old, again = evaluate(run, "--attack", "fgsm")
    assert old == first
    assert "warnings" not in again


def test_another_choice_of_parameters_by_a_later_version_replaces(run: Run) -> None:
    evaluate(run, "--attack", "fgsm")
    results = results_of(run)
    results["evaluations"][0]["parameters"]["alpha"] = 1.0
    twice = results["evaluations"][0] | {"parameters": {"alpha": 2.0}}
    results["evaluations"].insert(1, twice)
    (run.path / "results.json").write_text(json.dumps(results))
    (entry,) = evaluate(run, "--attack", "fgsm")
    assert entry["parameters"]["alpha"] != 1.0


def test_entries_of_earlier_versions_are_of_the_headers_images(run: Run) -> None:
    evaluate(run, "--attack", "fgsm")
    results = results_of(run)
    for kind in ("evaluations", "checks"):
        for entry in results[kind]:
            for key in ("fingerprint", "device", "versions"):
                del entry[key]
            if "per_image" in entry:
                entry["per_image"] = "an old name"
    (run.path / "results.json").write_text(json.dumps(results))
    run.write_per_image({"an old name.robust": np.ones(9, bool)})
    assert len(evaluate(run, "--attack", "fgsm")) == 1
    assert [len(results_of(run)[kind]) for kind in ("evaluations", "checks")] == [
        len(results[kind]) for kind in ("evaluations", "checks")
    ]
    old = results_of(run)["evaluations"][0]
    assert run.per_image()[f"{old['per_image']}.robust"].all()


def test_each_entry_says_its_device_and_versions(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_device", lambda recipe: "another card")
    (entry,) = evaluate(run, "--attack", "fgsm")
    results = results_of(run)
    assert entry["device"] == "another card" != results["device"]
    assert entry["versions"] == results["versions"]
    assert "on another card" in page(run)


def test_what_a_damaged_checkpoint_gave_way_to_stays_said(run: Run) -> None:
    last = run.checkpoint_path("last")
    whole = last.read_bytes()
    last.write_bytes(whole[:100])
    (entry,) = evaluate(run, "--attack", "fgsm")
    assert any("damaged" in said for said in entry["warnings"])
    last.write_bytes(whole)
    evaluate(run, "--attack", "pgd-2")
    results = results_of(run)
    assert "warnings" not in results
    entries = results["evaluations"] + results.get("superseded", [])
    (kept,) = [e for e in entries if e.get("attack") == "fgsm"]
    assert kept["warnings"] == entry["warnings"]


def test_successes_that_did_not_hold_are_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = assess.robust_accuracy

    def doubtful(*given: Any, **how: Any) -> Any:
        found = whole(*given, **how)
        return replace(found, rejected=(2, *found.rejected[1:]))

    monkeypatch.setattr(assess, "robust_accuracy", doubtful)
    two = ("--attack", "fgsm", "--attack", "pgd-2")
    (entry,) = evaluate(run, *two)
    assert entry["rejected"] == 2
    assert not any("rejected" in e for e in results_of(run)["evaluations"] if e != entry)
    evaluate(run, *two, "--union")
    (turn,) = [e for e in results_of(run)["evaluations"] if e["attack"] == "fgsm, then pgd-2"]
    assert turn["rejected"] == 2
    assert "2 successes of the attack did not hold when looked at again" in page(run)


def test_files_of_earlier_weights_stay_theirs(tmp_path: Path) -> None:
    run = evaluated_half_way(tmp_path / "run", "pgd-3-2")
    (early,) = results_of(run)["evaluations"]
    before = run.per_image()[f"{early['per_image']}.robust"]
    train.run(interrupted(), run.path, resume=True)
    (late,) = results_of(run)["evaluations"]
    (kept,) = [e for e in results_of(run)["superseded"] if e["of"] == "evaluations"]
    assert kept["per_image"] == early["per_image"] != late["per_image"]
    assert (run.per_image()[f"{kept['per_image']}.robust"] == before).all()
    assert before.sum() == kept["robust"]["correct"]
    assert run.per_image()[f"{late['per_image']}.robust"].sum() == late["robust"]["correct"]


def test_how_many_training_images_a_pass_is_of_is_kept(run: Run) -> None:
    images = results_of(run)["budget"]["images"]
    assert images == 60 - 10
    evaluate(run, "--attack", "fgsm")
    assert f"per training image ({images} images)" in page(run)
