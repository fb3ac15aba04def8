"""Views on the page: how far images stand, which class they fall to, surfaces."""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tests.report_parts import views
from tests.reports import make_run, page_of
from tests.test_report_content import _figures_in_words

__all__ = ["_figures_in_words"]  # a fixture, which every test has


def test_views_stand_side_by_side(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, method=name) for name in ("free-8", "pgd-7")]
    for seed, run in enumerate(runs):
        run.write_views(views(seed))
    page = page_of(tmp_path, *runs)
    text = page.text
    asked = "pgd-10 at each eps on what still stands; 40 test images of digits, numbers 0 to 39"
    assert asked in text
    large, surfaces, extremes = 2 * (4 + 2 * 4), 2 * 2, 2 * 2 * 6
    assert len(page.all("img")) == large + surfaces + extremes
    assert "Attacked at L∞ eps 30/255" in text
    assert "as aimed" in text
    assert "54,321 forwards, 12,345 backwards" in text
    assert "gratis pictures" in text
    fallen = views(0)["falls eps"]
    for eps in (0.0, 0.1, 0.2, 0.4):
        assert f"{100 * (fallen > eps).mean():.1f}%" in text
    assert "stands at 0.4" in text
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_views_by_class_count_what_fell(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    arrays = views(count=6, shown=1)
    arrays["falls label"] = np.array([0, 0, 0, 0, 1, 1])
    arrays["falls eps"] = np.array([0.0, 0.1, 0.2, 0.4, np.inf, 0.4])
    arrays["falls prediction"] = np.array([1, 2, 2, 1, 1, 0])
    run.write_views(arrays)
    text = page_of(tmp_path, run).text
    assert "zero 4 75.0% 3 of 4 25.0% 1 of 4; most often taken for two" in text
    assert "one 2 100.0% 2 of 2 100.0% 2 of 2 " in text
    assert "two 0" not in text


def test_views_of_other_images_are_kept_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, method=name) for name in ("free-8", "pgd-7")]
    runs[0].write_views(views())
    other = {"name": "mnist", "split": "test", "fingerprint": "beef"}
    runs[1].write_views(views(data=other))
    page = page_of(tmp_path, *runs)
    assert "How far images stand: free-8" in page.text
    assert "How far images stand: pgd-7" in page.text
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def test_views_of_other_norms_are_kept_apart(tmp_path: Path, monkeypatch: Any) -> None:
    drawn = []

    def noted(name: str, description: str, curves: Any, **how: Any) -> Markup:
        drawn.append((how["x_label"], len(curves)))
        return Markup("<svg></svg>")

    monkeypatch.setattr("gratis.report.views.curves_svg", noted)
    runs = [make_run(tmp_path / name, method=name) for name in ("free-8", "pgd-7")]
    runs[0].write_views(views())
    runs[1].write_views(views(threat={"norm": "l2", "eps": 0.2}))
    text = page_of(tmp_path, *runs).text
    assert drawn == [("L∞ eps", 1), ("L2 eps", 1)]
    for norm in ("L∞", "L2"):
        assert f"Accuracy against {norm} eps" in text
        assert f"Accuracy at each {norm} eps" in text
        assert f"checkpoint last; eps in {norm}" in text


def test_surfaces_share_one_scale(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, method=name) for name in ("free-8", "pgd-7")]
    for factor, run in zip((1, 10), runs, strict=True):
        arrays = views()
        for name in list(arrays):
            if name.startswith("surface"):
                arrays[name] = np.linspace(0, factor, 25, dtype=np.float32).reshape(5, 5)
        run.write_views(arrays)
    text = page_of(tmp_path, *runs).text
    assert "Dark is 0.000, bright 10.000" in text
    assert "free-8 0.500 at the centre, 1.000 at most" in text
    assert "pgd-7 5.000 at the centre, 10.000 at most" in text
