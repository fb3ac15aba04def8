"""What newer runs hold beside their evaluations: masking checks, parts, unions, proofs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup, escape

from gratis.report.plots import frontier
from tests.report_parts import (
    add_verified,
    autoattack,
    check,
    make_full_run,
    union,
    verified,
    views,
)
from tests.reports import RESULTS, evaluation, make_run, page_of, pictures


@pytest.fixture(autouse=True)
def _figures_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a page's time, and what is drawn is looked at elsewhere."""

    def worded(name: str, description: str, curves: Any, **_: Any) -> Markup:
        return Markup(f'<svg role="img" aria-label="{escape(description)}"></svg>')

    monkeypatch.setattr("gratis.report.plots.curves_svg", worded)
    monkeypatch.setattr("gratis.report.views.curves_svg", worded)


@pytest.mark.parametrize(
    ("verdict", "tone"),
    [
        ("no sign of masking found", "good"),
        ("no sign of masking found; clocks were used", "good"),
        ("signs: M3, M7", "doubtful"),
        ("nothing to attack: no image is right when clean", "doubtful"),
        ("evaluation unreliable", "bad"),
    ],
)
def test_the_verdict_on_masking_stands_before_any_figure(
    tmp_path: Path, verdict: str, tone: str
) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "run", checks=[check(verdict)]))
    assert page.text.index(verdict) < page.text.index("Accuracy and cost")
    said = "full checks, 3 of 4 made; L∞, eps 8/255, 500 test images, checkpoint last"
    assert f"{verdict} {said}; 321.5 passes per image, 1 min 5 s" in page.text
    (strip,) = [p for p in page.all("p") if "verdict" in str(p.get("class"))]
    assert strip["class"] == f"verdict {tone}"
    assert "numbers 0 to 499" in str(strip["title"])


def test_every_finding_is_there(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "run", checks=[check()]))
    assert "All 4 findings" in page.text
    assert "M7 square against gradients fail 0.250 at most 0.1 above 0.5" in page.text
    assert "One step beats many. Athalye 2018" in page.text
    assert "a <b>name</b> not run" in page.text
    assert {"finding pass", "finding warn", "finding fail", "finding not-run"} <= {
        str(cell.get("class")) for cell in page.all("td")
    }


def test_without_checks_the_command_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run")
    text = page_of(tmp_path, run).text
    assert "Masking checks have not been run." in text
    assert f"gratis evaluate '{run.path}' --checks full" in text


def test_other_flags_stand_on_top_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", recipe_sha256="0ld", warnings=["last.pt is damaged"])
    top = page_of(tmp_path, run).text.split("Accuracy and cost")[0]
    assert "recipe.yaml is not the recipe that was trained" in top
    assert "last.pt is damaged" in top


def test_what_each_part_of_an_attack_left(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "run", evaluations=[autoattack()]))
    text = page.text
    assert "autoattack step by step, each attack on what the ones before left" in text
    assert "none 500 40 460 (92.0%)" in text
    assert "apgd-ce 460 160 300 (60.0%) 45,000 44,000 12.0 s" in text
    assert "square 290 0 290 (58.0%) 45,000 0 12.0 s" in text
    assert "1,234,567 765,432" in text


def test_a_run_without_counts_of_forwards_is_shown(tmp_path: Path) -> None:
    assert "460 of 500 – – 333.4" in page_of(tmp_path, make_run(tmp_path / "run")).text  # noqa: RUF001


def test_the_worst_of_several_attacks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unions=[union()])
    text = page_of(tmp_path, run).text
    assert "all of pgd-50-10 and autoattack, L∞, eps 8/255 , on 500 test images" in text
    assert "right only where none of them breaks it" in text
    assert "57.0% 51.3% to 57.0%" in text
    assert text.count("92.0% 88.0% to 95.0%") == 2, "clean of the same images stands beside it"


def test_a_union_without_its_evaluations(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluations=[], unions=[union()])
    assert "57.0% 51.3% to 57.0%" in page_of(tmp_path, run).text


def test_verified_accuracy_is_an_interval_beside_the_attacks_bound(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluations=[evaluation(), autoattack()])
    add_verified(run, verified(), verified(196, 196, eps=0.001))
    page = page_of(tmp_path, run)
    text = page.text
    assert "exact verification, L∞, eps 8/255 , on 200 test images of digits" in text
    assert "time_limit 60" in text
    assert "75.0% to 85.0% 69.0% to 90.0%" in text
    assert "150 safe, 26 unsafe, 20 undecided, 4 misclassified" in text
    assert "at most 58.0% by autoattack (500 test images: not the same ones)" in text
    assert "98.0% 92.0% to 103.0%" in text, "decided for all: one number"
    assert "no attack was measured at this eps" in text
    command = "gratis verify {}/checkpoints/last.pt --eps 8/255 --limit 200 --time-limit 60"
    assert command.format(run.path) in text


def test_the_commands_do_it_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    text = page_of(tmp_path, run).text
    last = run.path / "checkpoints" / "last.pt"
    assert f"gratis evaluate {last} --attack pgd-50-10 --eps 8/255 --limit 500" in text
    assert f"gratis train {run.path}/recipe.yaml --out" in text


def test_every_accuracy_has_its_protocol_where_it_is_pointed_at(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_full_run(tmp_path / "run"))
    spans = [s for s in page.all("span") if s.get("class") == "value"]
    assert len(spans) == 2 * 4
    assert all("500 test images of digits" in str(s["title"]) for s in spans[:6])
    assert all("time limit 60.0 s" in str(s["title"]) for s in spans[6:])
    cells = [c for c in page.all("td") if "data-value" in c and "data-label" not in c]
    named = [c for c in cells if "title" in c]
    assert len(cells) - len(named) == 3, "only how many images a class has speaks for itself"


def test_attacks_in_turn_are_asked_for_again_in_turn(tmp_path: Path) -> None:
    names = {"attacks": "pgd-2, square", "each on": "what the last one left"}
    entry = evaluation(attack="pgd-2, then square", parameters=names)
    text = page_of(tmp_path, make_run(tmp_path / "run", evaluations=[entry])).text
    assert "--attack pgd-2 --attack square --union --eps 8/255 --limit 500" in text
    text = page_of(tmp_path, make_run(tmp_path / "other", evaluations=[autoattack()])).text
    assert "--attack autoattack --eps 8/255 --limit 500" in text


def test_a_model_trained_elsewhere_has_no_price(tmp_path: Path) -> None:
    given = {"model": "theirs:net", "weights": "net.pt", "weights_sha256": "c0ffee"}
    nothing = dict.fromkeys(RESULTS["budget"], 0)
    runs = [
        make_run(tmp_path / "a", method="theirs:net", given=given, budget=nothing, records=[]),
        make_run(tmp_path / "b", method="free-8"),
        make_run(tmp_path / "c", method="pgd-7"),
    ]
    page = page_of(tmp_path, *runs)
    text = page.text
    assert "free-8 and pgd-7, trained on digits at a budget of 160 passes" in text
    assert "theirs:net, trained elsewhere, tested on digits, attacked with pgd-50-10" in text
    assert "not known trained elsewhere" in text
    assert "theirs:net , its weights net.pt , SHA-256 c0ffee" in text
    assert text.count("for 163.5 passes") == 2
    assert "for 0 passes" not in text
    assert text.count("gratis train") == 2
    assert "a budget of" not in page_of(tmp_path, runs[0]).text


# --- price


def test_the_frontier_is_what_nothing_beats_at_its_price() -> None:
    points = [(20.0, 0.5), (10.0, 0.4), (10.0, 0.3), (30.0, 0.45), (40.0, 0.5), (50.0, 0.6)]
    assert frontier(points) == [(10.0, 0.4), (20.0, 0.5), (50.0, 0.6)]


def test_accuracy_for_its_price_by_protocol(tmp_path: Path) -> None:
    cheap = RESULTS["budget"] | {"metered_passes": 40.0}
    page = page_of(
        tmp_path,
        make_run(tmp_path / "a", method="natural", budget=cheap),
        make_run(tmp_path / "b", method="free-8"),
        make_run(tmp_path / "c", method="pgd-7", evaluations=[evaluation(400)]),
        make_run(tmp_path / "d", method="fgsm", evaluations=[autoattack()]),
    )
    (plot,) = [a for a in page.all("svg") if "passes spent (pgd" in str(a.get("aria-label"))]
    assert "natural: 71.2% for 43.5 passes; free-8: 71.2% for 163.5 passes" in str(
        plot["aria-label"]
    )
    assert "500 test images of digits" in str(plot["aria-label"])
    assert page.text.count("for 163.5 passes, on the frontier") == 1
    assert "71.2% for 43.5 passes, on the frontier" in page.text


def test_passes_of_a_guard_are_part_of_the_price(tmp_path: Path) -> None:
    guarded = RESULTS["budget"] | {"guard_passes": 40.0}
    page = page_of(
        tmp_path,
        make_run(tmp_path / "a", method="fgsm-rs", budget=guarded),
        make_run(tmp_path / "b", method="free-8"),
    )
    assert "71.2% for 200 passes" in page.text
    assert page.text.count(", on the frontier") == 1, "at equal training the guard costs more"


def test_passes_for_other_numbers_of_training_images_are_no_price_to_compare(
    tmp_path: Path,
) -> None:
    of = {
        name: RESULTS["budget"] | {"images": images}
        for name, images in (("natural", 1000), ("free-8", 1000), ("pgd-7", 60_000))
    }
    runs = [make_run(tmp_path / n, method=n, budget=budget) for n, budget in of.items()]
    runs.append(make_run(tmp_path / "older", method="fgsm"))
    page = page_of(tmp_path, *runs)
    said = "natural and free-8, trained on digits at a budget of 160 passes per training image each"
    assert f"{said} (1,000 images)" in page.text
    said = "trained on digits at a budget of 160 passes per training image"
    assert f"pgd-7, {said} (60,000 images)" in page.text
    assert f"fgsm, {said}, attacked" in page.text
    (plot,) = [a for a in page.all("svg") if "passes spent (pgd" in str(a.get("aria-label"))]
    assert "natural" in str(plot["aria-label"])
    assert "pgd-7" not in str(plot["aria-label"])
    assert "1,000 training images each" in page.text


# --- strings that others chose


def test_names_in_newer_parts_are_text(tmp_path: Path) -> None:
    name = "</script><b>&\"'"
    run = make_run(
        tmp_path / "a<b>&",
        method=name,
        checks=[check(name, level=name)],
        evaluations=[autoattack(), evaluation(attack=name)],
        unions=[union() | {"attacks": [name]}],
        arrays=pictures(),
        warnings=[name],
    )
    classes = np.array([name, "<i>", "two"])
    run.write_views(views(attack=name, checkpoint=name) | {"classes": classes})
    data = verified()["data"] | {"name": name}
    add_verified(run, verified(data=data, checkpoint=name))
    page = page_of(tmp_path, run)
    assert page.all("b") == []
    assert page.all("i") == []
    assert len(page.all("script")) == 1
    assert name in page.text


def test_the_policy_names_the_one_script(tmp_path: Path) -> None:
    page_of(tmp_path, make_run(tmp_path / "run"))
    html = (tmp_path / "report.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)
    assert "default-src 'none'" in policy


def test_a_full_page_is_the_same_each_time(tmp_path: Path) -> None:
    runs = [make_full_run(tmp_path / "a"), make_full_run(tmp_path / "b", method="free-8")]
    page_of(tmp_path, *runs)
    first = (tmp_path / "report.html").read_bytes()
    page_of(tmp_path, *runs)
    assert (tmp_path / "report.html").read_bytes() == first
    assert json.loads(str(runs[0].views()["about"]))["count"] == 40
