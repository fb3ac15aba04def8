"""Rows that stand in several tables are trained once."""

import json
import shutil

import pytest

from gratis.reproduce.outcome import FACTS
from gratis.run import Run
from tests.tables import make


def log_of(folder):
    return (folder / "log.jsonl").read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables") / "advprop-table1" / "smoke"
    assert make("advprop-table1", folder, rows=("vanilla",))[1]
    return folder


def second(trained, table="advprop-table2", row="vanilla", **given):
    """A second table beside the first, and its row."""
    folder = trained.parents[1] / table / "smoke"
    record, done = make(table, folder, rows=(row,), **given)
    assert done
    (found,) = [entry for entry in record["rows"] if entry["name"] == row]
    return folder / row, found


def test_a_row_of_another_table_is_taken_over(trained):
    out, row = second(trained)
    assert log_of(out) == log_of(trained / "vanilla"), "it was not trained again"
    assert row["note"] == "trained once, as advprop-table1-vanilla"
    assert row["cells"]["clean"]["measured"] is not None
    assert json.loads((out / FACTS).read_text())["training_images"] == 80
    record, done = make("advprop-table2", out.parent, rows=("vanilla",))
    assert done, "and stands as finished when it is asked for again"
    assert record["rows"][0]["status"] == "done"


def test_what_the_other_table_did_not_ask_is_asked(trained):
    out, _ = second(trained, "advprop-table4", "p-0")
    facts = out / FACTS
    facts.unlink()
    results = Run.open(out).results
    results["evaluations"] = []
    Run.open(out).write_results(results)
    _, row = second(trained, "advprop-table4", "p-0")
    assert row["cells"]["pgd-10"]["measured"] is not None
    assert log_of(out) == log_of(trained / "vanilla")


@pytest.mark.parametrize("setting", ["seed=1", "evaluation.limit=10", "model.options.width=5"])
def test_other_settings_are_trained(trained, setting):
    name = "resnet50-vanilla"
    folder = trained.parents[1] / setting / "smoke"
    assert make("advprop-table3", folder, rows=(name,), given=(setting,))[1]
    assert Run.open(folder / name).recipe["name"] == f"advprop-table3-{name}"
    assert log_of(folder / name) != log_of(trained / "vanilla")


def test_by_other_numbers_of_processes_is_not_taken(trained, tmp_path):
    there = tmp_path / "one" / "smoke" / "vanilla"
    shutil.copytree(trained / "vanilla", there)
    facts = json.loads((there / FACTS).read_text())
    (there / FACTS).write_text(json.dumps(facts | {"processes": 2}))
    beside = tmp_path / "two" / "smoke"
    assert make("advprop-table2", beside, rows=("vanilla",))[1]
    assert Run.open(beside / "vanilla").recipe["name"] == "advprop-table2-vanilla"


def test_a_run_in_use_is_left_alone(trained, tmp_path):
    there = tmp_path / "one" / "smoke" / "vanilla"
    shutil.copytree(trained / "vanilla", there)
    beside = tmp_path / "two" / "smoke"
    with Run.open(there).locked():
        assert make("advprop-table2", beside, rows=("vanilla",))[1]
    assert Run.open(beside / "vanilla").recipe["name"] == "advprop-table2-vanilla"


def test_a_run_whose_checkpoints_are_gone_is_not_taken(trained, tmp_path):
    there = tmp_path / "one" / "smoke" / "vanilla"
    shutil.copytree(trained / "vanilla", there)
    shutil.rmtree(there / "checkpoints")
    beside = tmp_path / "two" / "smoke"
    assert make("advprop-table2", beside, rows=("vanilla",))[1]
    assert Run.open(beside / "vanilla").recipe["name"] == "advprop-table2-vanilla"
