"""A run in phases on the page: what each saw and took, and where it is in the curves."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markupsafe import Markup

from gratis.figures import Curve, Span, curves_svg
from gratis.report.phases import in_words, spans
from gratis.report.runs import run_views
from gratis.run import Run
from tests.reports import Page, log, make_run, page_of

PHASES = [
    {"share": 0.4, "stored": 160, "image_size": 128, "batch_size": 512},
    {"share": 0.4, "stored": None, "image_size": None, "batch_size": None},
    {"share": 0.2, "stored": "files", "image_size": 288, "batch_size": 128},
]
DATA = {"stored": 352, "image_size": 224, "batch_size": 224}
EPOCHS, UPDATES = (0, 6, 12, 15), (2, 4, 8)  # where phases end, and updates an epoch in each


def phased_log(epochs: int = 15, each: float = 5 / 3) -> list[dict[str, Any]]:
    """Every update of the phases; one costs the more the fewer an epoch has."""
    records: list[dict[str, Any]] = []
    at: dict[str, Any] = {"update": 0, "epoch": 0.0, "spent_passes": 0.0, "seconds": 0.0}
    for epoch in range(epochs):
        phase = np.searchsorted(EPOCHS, epoch, side="right") - 1
        if epoch in EPOCHS:
            records.append({"kind": "phase", "phase": int(phase) + 1, **at})
        for number in range(1, UPDATES[phase] + 1):
            at = {"update": at["update"] + 1, "epoch": epoch + number / UPDATES[phase]}
            at |= {"spent_passes": each * at["epoch"], "seconds": 60.0 * at["epoch"]}
            rate = 0.4 - 0.02 * abs(at["epoch"] - 1)
            records.append({"kind": "step", **at, "loss": 1.0, "learning_rate": rate})
    return records


def phased(path: Path, records: list[dict[str, Any]] | None = None, **changed: Any) -> Run:
    run = make_run(path, records=phased_log() if records is None else records, **changed)
    recipe = run.recipe | {"data": DATA, "phases": PHASES}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return run


def rows(page: Page) -> str:
    return page.text[page.text.index("Phases of") : page.text.index("Cost and provenance")]


def test_the_table_says_what_each_phase_saw_and_took(tmp_path: Path) -> None:
    said = rows(page_of(tmp_path, phased(tmp_path / "run")))
    assert "1 6 0 to 6 128 px stored 160 px 512 12 10 0 to 10 0.39 to 0.3 0.4 at most 6 min" in said
    assert "2 6 6 to 12 224 px stored 352 px 224 24 10 10 to 20 0.295 to 0.18 6 min" in said
    assert "3 3 12 to 15 288 px files 128 24 5 20 to 25 0.178 to 0.12 3 min" in said


def test_an_unfinished_run_has_what_it_has_begun(tmp_path: Path) -> None:
    run = phased(tmp_path / "run", phased_log(7), finished=False)
    said = rows(page_of(tmp_path, run))
    assert "2 1 6 to 7 224 px stored 352 px 224 4 1.67 10 to 11.67" in said
    assert "3 none 288 px files 128 0 – – –" in said  # noqa: RUF001
    assert [span.begin for span in spans(run_views([run]))] == pytest.approx([0, 10])


def test_a_phase_begun_again_is_counted_once(tmp_path: Path) -> None:
    records = phased_log(6)
    begun = phased_log(7)[12]
    resumed = {"kind": "resumed", "update": 12, "lost_updates": 0, "processes": 1}
    run = phased(tmp_path / "run", [*records, begun, resumed, *phased_log(7)[12:]])
    _, second, _ = run_views([run])[0].phases
    assert len(second.steps) == 4
    assert second.reach("epoch") == (6, 7)


@pytest.mark.parametrize("logged", [True, False])
def test_a_run_without_phases_is_shown_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: bool
) -> None:
    """And so is one whose log, of an older version, does not tell where they begin."""
    run = make_run(tmp_path / "run") if logged else phased(tmp_path / "run", log())
    assert run_views([run])[0].phases == []
    seen = []

    def drawn(name: str, description: str, curves: Any, *, spans: Any = (), **_: Any) -> Markup:
        seen.append((description, spans))
        return Markup("<svg></svg>")

    monkeypatch.setattr("gratis.report.plots.curves_svg", drawn)
    assert "Phases of" not in page_of(tmp_path, run).text
    assert [found for _, found in seen] == [[]] * 3
    assert "Learning rate against passes spent." in [description for description, _ in seen]


# --- the marks in curves


def test_all_curves_are_marked_and_say_so_in_words(tmp_path: Path) -> None:
    page = page_of(tmp_path, phased(tmp_path / "run"))
    described = [str(a["aria-label"]) for a in page.all("svg") if a.get("role") == "img"]
    assert len(described) == 2, "no check was logged"
    for words in described:
        assert "phase 2 (224 px, batch 224, stored 352 px) from 10 passes on, phase 3" in words
    html = (tmp_path / "report.html").read_text()
    assert [html.count(f">phase {n}<") for n in (1, 2, 3)] == [2, 2, 2]
    assert [html.count(f">batch {n}<") for n in (512, 224, 128)] == [1, 1, 1], "of the rates alone"


def test_runs_whose_phases_differ_have_marks_of_their_own(tmp_path: Path) -> None:
    alike = run_views([phased(tmp_path / "a"), phased(tmp_path / "b")])
    assert [span.series for span in spans(alike)] == [None] * 3
    dearer = phased(tmp_path / "c", phased_log(each=4))
    views = run_views([make_run(tmp_path / "plain"), phased(tmp_path / "d"), dearer])
    found = spans(views, explained=True)
    assert [(span.series, round(span.begin), span.names) for span in found] == [
        *((1, begin, ()) for begin in (0, 10, 20)),
        *((2, begin, ()) for begin in (0, 24, 48)),
    ]
    assert in_words(views).count("phase 3 (288 px, batch 128, files)") == 2


def test_a_name_that_has_no_room_gives_way_to_a_shorter_one() -> None:
    """Names are above the axes, and none runs into its neighbour's stretch."""
    names = ("a name\nof two lines", "a name", "n")
    ends = [0.0, 50.0, 62.0, 65.0, 65.5, 100.0]
    marks = [Span(begin, end, names) for begin, end in pairwise(ends)]
    curve = Curve(0, np.array([0.0, 100.0]), np.array([0.0, 1.0]))
    svg = curves_svg("marks", "words", [curve], y_label="y", spans=marks)
    shown = [word for word in Page(svg).words if word in ("a name", "of two lines", "n")]
    assert shown == ["a name", "of two lines", "a name", "n", "a name", "of two lines"]
