"""Rows of the papers' tables made: trained, measured, gone on with, and what a reader is told."""

import json

import pytest
import yaml

from gratis import train
from gratis.cli import main
from gratis.reproduce import papers
from gratis.reproduce.columns import SHIFTS
from gratis.reproduce.outcome import FACTS
from gratis.run import Run
from tests.tables import MINIMAL, TABLES, make


@pytest.mark.usefixtures("few_steps")
def test_a_table_end_to_end_and_again(tmp_path, monkeypatch):
    record, complete = make("fast-table2", tmp_path, rows=("fgsm",))
    assert complete, "all that was asked"
    left, row = record["rows"]
    assert left["cells"]["clean"] == {"printed": 99.2, "why": "not run"}
    assert row["status"] == "done"
    assert row["epochs"] == {"printed": 10, "here": 2}
    assert row["budget"]["metered_passes"] == pytest.approx(2 * 5 / 3)
    assert row["budget"]["papers_passes"] == 4
    verified = row["cells"]["verified"]
    assert verified["printed"] == 96.8
    assert 0 <= verified["measured"] <= row["cells"]["pgd-0.1"]["measured"], "proofs are right"
    for name, eps in (("pgd-0.1", 0.1), ("pgd-0.3", 0.3)):
        cell = row["cells"][name]
        assert (cell["attack"], cell["threat"]["eps"], cell["images"]) == (
            "pgd-2-2:alpha=0.01", eps, 20,
        )  # fmt: skip
        low, high = cell["ci95"]
        assert low <= cell["measured"] <= high
    said = "smoke: not a result; digits; 80 training and 20 test images; small-conv of width 4"
    assert row["conditions"] == said

    assert json.loads((tmp_path / "table.json").read_text()) == record
    lines = (tmp_path / "table.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| FGSM")]
    assert said in line
    assert "| 99.20 |" in line
    assert all("smoke: not a result" in line for line in lines if line.startswith(("| FG", "| PG")))
    page = (tmp_path / "table.html").read_text()
    assert page.count("smoke: not a result") >= 3

    weights = Run.open(tmp_path / "fgsm").checkpoint_path("last").stat().st_mtime_ns
    monkeypatch.setattr("gratis.train.run", None)  # nothing is trained again
    again, complete = make("fast-table2", tmp_path, rows=("fgsm",))
    assert complete
    assert again == record
    assert Run.open(tmp_path / "fgsm").checkpoint_path("last").stat().st_mtime_ns == weights


def trained_alone(tmp_path, monkeypatch):
    """A table's folder, where a row was killed before it was evaluated."""
    folder = tmp_path / "table" / "smoke"  # beside it rows are looked for, which earlier tests made

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "evaluate_run", killed)
        with pytest.raises(KeyboardInterrupt):
            make("fast-table1", folder, rows=("free-8",))
    assert not (folder / "free-8" / FACTS).exists()
    return folder


def test_an_interrupted_row_goes_on(tmp_path, monkeypatch):
    folder = trained_alone(tmp_path, monkeypatch)
    trained = Run.open(folder / "free-8").log()
    _, complete = make("fast-table1", folder, rows=("free-8",))
    assert complete
    assert Run.open(folder / "free-8").log() == trained, "only the evaluation was missing"


def test_a_cell_is_of_as_many_images_as_its_line_says(tmp_path, monkeypatch):
    """A look at a few images, between training and its evaluation, stands in no cell."""
    folder = trained_alone(tmp_path, monkeypatch)
    assert main(["evaluate", str(folder / "free-8"), "--limit", "7", "--checks", "none"]) == 0
    record, complete = make("fast-table1", folder, rows=("free-8",))
    assert complete
    counts = [e["images"]["count"] for e in Run.open(folder / "free-8").results["evaluations"]]
    assert counts == [7, 20]
    (row,) = [row for row in record["rows"] if row["name"] == "free-8"]
    assert "20 test images" in row["conditions"]
    assert {cell["images"] for cell in row["cells"].values()} == {20}


def test_a_further_attack_trains_nothing_again(tmp_path, monkeypatch):
    before = yaml.safe_load(MINIMAL)
    make(papers.table("t", before), tmp_path)
    weights = Run.open(tmp_path / "one").checkpoint_path("last").stat().st_mtime_ns
    further = {"name": "far", "measure": "pgd-3-1:alpha=1/255"}
    after = before | {"columns": [*before["columns"], further]}
    record, complete = make(papers.table("t", after), tmp_path)
    assert complete
    assert record["rows"][0]["cells"]["far"]["attack"] == "pgd-2-1:alpha=1/255"
    assert Run.open(tmp_path / "one").checkpoint_path("last").stat().st_mtime_ns == weights
    evaluated = [entry["attack"] for entry in Run.open(tmp_path / "one").results["evaluations"]]
    assert evaluated == ["pgd-2", "pgd-2-1:alpha=1/255"]
    assert "resumed" not in {entry["kind"] for entry in Run.open(tmp_path / "one").log()}
    make(papers.table("t", before), tmp_path)
    monkeypatch.setattr("gratis.train.run", None)  # done for either table
    assert make(papers.table("t", after), tmp_path) == (record, True)


def test_a_row_of_other_settings_says_so_and_the_rest_goes_on(tmp_path):
    make("advprop-a1", tmp_path, rows=("fgsm",), given=("seed=1",))
    record, complete = make("advprop-a1", tmp_path)
    assert not complete
    assert [row["status"] for row in record["rows"]] == ["failed", "done"]
    assert "differs in seed" in record["rows"][0]["reason"]
    assert "another --out" in record["rows"][0]["reason"]
    assert "differs in seed" in (tmp_path / "table.md").read_text()


def test_missing_data_is_said_and_not_counted_as_done(tmp_path, monkeypatch):
    monkeypatch.delenv("GRATIS_DATA", raising=False)
    record, complete = make("free-cifar100", tmp_path, "cpu", rows=("natural", "free-8"))
    assert not complete
    by_name = {row["name"]: row for row in record["rows"]}
    assert by_name["natural"]["status"] == by_name["free-8"]["status"] == "no data"
    assert by_name["pgd-7"]["status"] == "not run"
    for said in ("cifar100", "data.root", "GRATIS_DATA"):
        assert said in by_name["natural"]["reason"]
        assert said in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "natural").exists()


def test_settings_that_fit_nothing_are_unusable_input(tmp_path):
    with pytest.raises(ValueError, match="did you mean passes"):
        make("fast-table1", tmp_path, given=("budget.pases=3",))
    assert not list(tmp_path.iterdir())


def test_passes_of_a_shuffled_network_are_measured(tmp_path):
    record, complete = make("advprop-figure2", tmp_path)
    assert complete
    for row in record["rows"]:
        for name in ("train-clean", "train-noisy", "train-adversarial"):
            assert 0 <= row["cells"][name]["measured"] <= 100


def test_pictures_and_surfaces_are_on_the_page(tmp_path):
    _, complete = make("free-pictures", tmp_path / "p", rows=("natural", "free-8"))
    assert complete
    page = (tmp_path / "p" / "table.html").read_text()
    assert page.count("data:image/png") == 2 * 3 * 8
    record, complete = make("free-landscape", tmp_path / "l")
    assert complete
    assert (tmp_path / "l" / "table.html").read_text().count("data:image/png") == 2 * 2 * 2
    for row in record["rows"]:
        assert (
            row["cells"]["adversarial-rise"]["measured"] > row["cells"]["random-rise"]["measured"]
        )


def test_sweeps_draw_paper_and_measured(tmp_path):
    make("advprop-table4", tmp_path, rows=("p-0", "p-50"))
    page = (tmp_path / "table.html").read_text()
    assert page.count('role="img"') == 1
    assert "share of adversarial images p" in page


def test_an_early_stop_is_said(tmp_path):
    make("fast-figure2", tmp_path, rows=("fgsm-5",))
    with (tmp_path / "fgsm-5" / "log.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "guard", "event": "stopped", "update": 3}) + "\n")
    make("fast-figure2", tmp_path, rows=("fgsm-5",))
    assert "stopped early, at update 3" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_every_table_runs_at_smoke(name, tmp_path):
    record, complete = make(name, tmp_path)
    assert complete, [row.get("reason") for row in record["rows"]]
    for row in record["rows"]:
        assert row["conditions"].startswith("smoke: not a result")
        for column in TABLES[name].columns:
            shown = column.measured and column.measure not in SHIFTS
            cell = row["cells"][column.name]
            assert ("measured" in cell) == shown or cell["why"] == "no such phase"
