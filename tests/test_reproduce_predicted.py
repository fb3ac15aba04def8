"""Columns of the papers' tables that are predicted: hours and speed-ups of other machines."""

import json
from dataclasses import replace

import pytest
import torch
import torchvision
import yaml

from gratis.reproduce import papers
from gratis.reproduce.columns import Column
from gratis.reproduce.outcome import FACTS, outcome
from gratis.reproduce.page import write
from tests.tables import TABLES, assert_refused, make, recipe

SCALING = """
title: a table
paper: a paper
kind: table
recipe: cifar10
columns: [{name: h, measure: predicted-hours}, {name: s, measure: predicted-speed-up}]
rows:
  - {name: one, layout: {machines: 1, gpus: 2}}
  - {name: two, layout: {machines: 2, gpus: 2}, printed: {h: 5, s: 2}, epochs: 3}
scaling:
  {of: two, images: 900, parameters: 7, tensors: 2, steps: 3, passes: 1, batch: 9, gigabits: 1}
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("scaling:", "scalings:", "did you mean scaling"),
        ("images: 900, ", "", "missing key scaling.images"),
        ("of: two", "of: tow", "did you mean two"),
        ("of: two", "of: one", "printed figures"),
        (", s: 2}", "}", "printed figures"),
        (", layout: {machines: 1, gpus: 2}", "", "row one, give"),
        ("machines: 1", "machines: 0", "1 or more"),
        ("images: 900", "images: 0", "above 0"),
        ("gigabits: 1", "gigabits: 0", "above 0"),
        ("parameters: 7", "parameters: 99000000000000", "exchange and coding alone"),
    ],
)
def test_what_cannot_be_predicted_is_answered_when_it_is_read(before, after, said):
    assert_refused(SCALING, before, after, said)


def test_predicted_columns_need_what_they_are_predicted_from():
    values = yaml.safe_load(SCALING)
    del values["scaling"]
    with pytest.raises(ValueError, match="give the table `scaling`"):
        papers.table("t", values)


# --- the shipped table


def test_hours_are_predicted_in_closed_form_and_nothing_is_run(tmp_path):
    table = TABLES["dat-scaling"]
    record = outcome(table, "paper", tmp_path, {row.name: ("not run", "") for row in table.rows})
    assert not list(tmp_path.iterdir())
    updates, alone = 1_281_167 * 35 / 512, 16.3 * 3.1 * 3600
    for row, machines in zip(record["rows"], (1, 2, 6, 64), strict=True):
        rounds = 2 * (machines - 1)
        line = 8 * rounds / machines * 4 * 25_557_032 / (1e9 * 1448 / 1538) + rounds * 161 * 50e-6
        # the epochs' updates, and what each does inside a machine, are shared by the machines
        hours = (alone + updates * line) / machines / 3600
        assert row["cells"]["hours"]["measured"] == pytest.approx(hours)
        assert row["cells"]["speed-up"]["measured"] == pytest.approx(alone / 3600 / hours)
        assert row["cells"]["hours"]["model"] == "gratis.scaling"
        assert row["cells"]["epoch-seconds"] == {"why": "not run"}
    assert hours < 2
    write(table, record, tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    said = ["| 6 machines of 6 GPUs | 16.3 | 14.62 | 3.1 | 3.46 |", "(extrapolated)"]
    assert all(any(part in line for line in lines) for part in said)
    assert any("50.5 h for 35 epochs" in line and "1 Gbit/s" in line for line in lines)


def test_predictions_are_of_what_the_rows_train():
    table = TABLES["dat-scaling"]
    one, _, six, far = table.rows
    assert one.printed["hours"] == round(six.printed["hours"] * six.printed["speed-up"], 1)
    assert "derived" in one.source
    assert "extrapolat" in far.name
    assert "extrapolat" in far.title
    assert "nobody" in far.note
    for row in table.rows:
        made = recipe("dat-scaling", row.name)
        case = table.case(row)
        assert made.data.batch_size % (case.machines * case.gpus) == 0, "GPUs share it equally"
        assert made.data.batch_size / case.machines == pytest.approx(case.per_machine, rel=0.005)
        assert made.budget.data_passes == case.job.epochs
        assert (made.engine.gradients, case.bits) == ("fp32", 32)
        assert made.method["steps"] * 2 / 3 + 2 == pytest.approx(case.job.cost)
        assert made.method["clean"] > 0, "a second pass for gradients"
    with torch.device("meta"):
        numbers = [weight.numel() for weight in torchvision.models.resnet50().parameters()]
    assert made.model.name == "resnet50"
    assert (sum(numbers), len(numbers)) == (case.job.parameters, case.job.tensors)


def test_a_row_says_how_many_processes_trained_it(tmp_path):
    make("dat-scaling", tmp_path, rows=("1x6",))
    facts = json.loads((tmp_path / "1x6" / FACTS).read_text())
    assert facts["processes"] == 1
    assert "processes;" not in (tmp_path / "table.md").read_text()
    (tmp_path / "1x6" / FACTS).write_text(json.dumps(facts | {"processes": 12}))
    table = TABLES["dat-scaling"]
    further = replace(table, columns=(*table.columns, Column("far", measure="pgd-1-2")))
    for asked in (table, further):
        record, complete = make(asked, tmp_path, rows=("1x6",))
        assert complete
        assert "; 12 processes; small-conv" in record["rows"][0]["conditions"]
    assert "measured" in record["rows"][0]["cells"]["far"], "one attacked what twelve had trained"
