"""The tables' columns that are measured on images from elsewhere."""

import json

import pytest

from gratis.cli import main
from gratis.data import shifted
from gratis.reproduce import papers
from gratis.reproduce.cells import shifted as shifted_cell
from gratis.reproduce.columns import Column
from gratis.reproduce.rows import reproduce
from gratis.run import Run
from tests.tables import quiet
from tests.test_shift_runs import data, draw, run, settings, trained

__all__ = ["data", "run", "trained"]  # fixtures, asked for by name

TABLE = """
title: a table
paper: a paper
kind: table
recipe: cifar10
columns:
  - {name: clean}
  - {name: c, title: ImageNet-C error, measure: corruption-error}
  - {name: r, title: ImageNet-R, measure: imagenet-r, missing: no folder was given}
rows:
  - {name: one, set: [method=natural], printed: {c: 58.5, r: 36.3}}
"""


def make(folder, scale, data=None, **places):
    import yaml

    given = ()
    if data is not None:
        given = (*settings(data), "model={name: small-conv, options: {width: 4}}")
        given += ("engine.precision=fp32", "budget.data_passes=1", "data.augment=[]")
    table = papers.table("t", yaml.safe_load(TABLE))
    return reproduce(table, scale, folder, rows=table.rows, given=given, places=places, bar=quiet)


def test_a_papers_column_is_measured_on_generated_corruptions(run, data, tmp_path):
    record, complete = make(tmp_path, "cpu", data)
    assert complete
    cells = record["rows"][0]["cells"]
    (entry,) = Run.open(tmp_path / "one").results["shifts"]
    assert cells["c"]["measured"] == pytest.approx(100 * entry["mean_error"])
    assert cells["c"]["printed"] == 58.5
    assert cells["c"]["images"] == 4, "the evaluation's limit"
    assert "generated" in cells["c"]["of"]
    assert cells["r"] == {"printed": 36.3, "why": "not measured here: no folder was given"}
    said = (tmp_path / "table.md").read_text()
    assert "ImageNet-C error, here: mean over 2 of corruptions, generated" in said
    assert "imagecorruptions-imaug" in said

    before = json.dumps(entry)
    assert make(tmp_path, "cpu", data)[0] == record
    (entry,) = Run.open(tmp_path / "one").results["shifts"]
    assert json.dumps(entry) == before, "nothing is measured twice"


def test_a_look_at_a_part_is_no_cell_of_a_paper(run, data, tmp_path):
    make(tmp_path, "cpu", data)
    whole = Run.open(tmp_path / "one").results["shifts"][0]
    look = ["--shift", "corruptions=generated", "--limit", "3", "--severities", "1"]
    assert main(["evaluate", str(tmp_path / "one"), *look]) == 0
    record, complete = make(tmp_path, "cpu", data)
    assert complete
    (entry,) = Run.open(tmp_path / "one").results["shifts"]
    assert (entry["cells"], entry["partial"]) == (whole["cells"], whole["partial"])
    assert record["rows"][0]["cells"]["c"]["images"] == 4


def test_a_part_of_a_shift_is_not_printed_beside_the_papers():
    column = Column("c", measure="corruption-error")
    asked = {"evaluation": {"checkpoint": "best"}}
    whole = {
        "shift": "corruptions",
        "checkpoint": "best",
        "images_per_cell": 12,
        "preprocessing": "none",
        "precision": "float32",
        "mean_error": 0.5,
        "mean_of": 15,
    }
    parts = [
        whole | {"partial": ["severities 1 alone"], "mean_error": 0.1},
        whole | {"checkpoint": "last", "mean_error": 0.2},
        whole | {"fingerprint": "beef", "mean_error": 0.3},
    ]
    of = {"data": {"fingerprint": "f00d"}}

    def cell(*entries):
        return shifted_cell(column, "paper", asked, of | {"shifts": list(entries)}, {})

    assert cell(*parts) == {"why": "not looked at yet"}
    assert cell(whole, *parts)["measured"] == 50
    limited = whole | {"partial": ["at most 4 images a cell"], "mean_error": 0.4}
    assert cell(whole, limited)["measured"] == 50
    asked["evaluation"]["limit"] = 4
    assert cell(limited, whole)["measured"] == 40


def test_a_papers_column_is_measured_where_its_files_are_given(run, data, tmp_path, monkeypatch):
    monkeypatch.setitem(shifted.COMPLETE, "imagenet-r", 6)
    monkeypatch.setattr(shifted, "IMAGENET_R_CLASSES", 2)
    draw(tmp_path / "r", 3)
    record, complete = make(tmp_path / "t", "cpu", data, **{"imagenet-r": tmp_path / "r"})
    assert complete
    cell = record["rows"][0]["cells"]["r"]
    assert "ImageNet-R; 4 images a cell" in cell["of"]
    assert len(cell["ci95"]) == 2

    (tmp_path / "r" / "dog").rename(tmp_path / "r" / "wolf")
    record, complete = make(tmp_path / "other", "cpu", data, **{"imagenet-r": tmp_path / "r"})
    assert complete, "the row itself is done"
    assert "none of the run's 2 classes" in record["rows"][0]["cells"]["r"]["why"]
    assert "wolf" in (tmp_path / "other" / "table.md").read_text()


def test_smoke_says_that_it_measures_none(tmp_path):
    record, complete = make(tmp_path, "smoke")
    assert complete
    for name in ("c", "r"):
        assert "at this scale images are grey" in record["rows"][0]["cells"][name]["why"]
    assert "shifts" not in Run.open(tmp_path / "one").results
