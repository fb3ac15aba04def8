"""The report: everything is on the page, nothing is fetched, and no odd run breaks it."""

import io
import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gratis.figures import amplified, png_data_uri, thinned
from gratis.report import duration, passes, radius, write_report
from gratis.report.values import percent
from tests.reports import RESULTS, evaluation, log, make_run, page_of, pictures


def test_says_what_was_done_and_every_number_with_its_protocol(tmp_path: Path) -> None:
    text = page_of(tmp_path, make_run(tmp_path / "run", arrays=pictures())).text
    assert (
        "fgsm-rs, trained on digits at a budget of 160 passes per training image, "
        "attacked with pgd-50-10 (L∞, eps 8/255, 500 test images)."
    ) in text
    assert "pgd-50-10, L∞, eps 8/255 , on 500 test images of digits" in text
    assert "steps 50, restarts 10, alpha 0.05" in text
    assert "71.2% 67.2% to 74.2%" in text
    assert "92.0% 88.0% to 95.0%" in text
    assert "160 metered 160 predicted 192 as papers count" in text
    assert "1 min 15 s" in text
    assert "356 of 500" in text
    assert "clean 90.0% (pgd-10, L∞, eps 8/255, 200 held-out images)" in text
    for provenance in ("f00dfeed", "torch 2.15.0", "cpu", "name: fgsm-rs"):
        assert provenance in text


def test_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "run", arrays=pictures()))
    assert page.all("script") == [{}], "inline"
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\((?!#)", html)


def test_figures_have_words_and_ids_of_their_own(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "a", arrays=pictures()), make_run(tmp_path / "b"))
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert all(a.get("alt") for a in page.all("img"))
    described = [a["aria-label"] for a in page.all("svg") if a.get("role") == "img"]
    assert len(described) == 4
    assert "fgsm-rs (a): 71.2% for 163.5 passes" in str(described[0])
    assert "fgsm-rs (a): robust 60.0%, clean 90.0% (pgd-10, L∞, eps 8/255" in str(described[1])
    assert all(a.get("scope") for a in page.all("th"))


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", arrays=pictures())
    write_report([run], tmp_path / "first.html")
    write_report([run], tmp_path / "second.html")
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_runs_compare_only_under_one_protocol(tmp_path: Path) -> None:
    stronger = evaluation(300, parameters={"steps": 100, "restarts": 10, "alpha": 0.05})
    page = page_of(
        tmp_path,
        make_run(tmp_path / "a", method="natural", evaluations=[evaluation(0)]),
        make_run(tmp_path / "b", method="free-8", evaluations=[evaluation(), stronger]),
        make_run(
            tmp_path / "c",
            method="pgd-7",
            data={"name": "cifar10", "split": "45000/10000", "fingerprint": "beef", "note": None},
        ),
    )
    groups = [a for a in page.all("tr") if a.get("class") == "protocol"]
    assert len(groups) == 3
    assert "natural and free-8, trained on digits at" in page.text
    assert "pgd-7, trained on cifar10 at" in page.text


@pytest.mark.parametrize(
    ("predicted", "said"), [(36.6667, "budgets of 36.67 to 160"), (159.1, "a budget of about 160")]
)
def test_budgets_that_differ(tmp_path: Path, predicted: float, said: str) -> None:
    other = RESULTS["budget"] | {"predicted_passes": predicted}
    page = page_of(
        tmp_path,
        make_run(tmp_path / "a", method="natural", budget=other),
        make_run(tmp_path / "b", method="free-8"),
    )
    assert f"at {said} passes per training image each" in page.text


def test_a_note_on_the_data_stands_beside_every_figure(tmp_path: Path) -> None:
    data = RESULTS["data"] | {"note": "Shrunken stand-in data."}
    page = page_of(tmp_path, make_run(tmp_path / "run", data=data, arrays=pictures()))
    # headline, table, curves, pictures, provenance
    assert page.text.count("Shrunken stand-in data.") == 5


def test_training_that_has_not_finished(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        make_run(tmp_path / "a", finished=False),
        make_run(tmp_path / "b", method="free-8", evaluations=[]),
    )
    assert "free-8, trained on digits at" in page.text
    assert "not attacked yet." in page.text
    assert "fgsm-rs has not finished;" in page.text
    assert "160 so far" in page.text
    assert len([a for a in page.all("svg") if a.get("role") == "img"]) == 3


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "run", finished=False, records=[]))
    assert "No check was made during training." in page.text
    assert "Attacked images" not in page.text


def test_what_happened_on_the_way(tmp_path: Path) -> None:
    records = log()
    caught = {"kind": "guard", "update": 400, "epoch": 40.0, "spent_passes": 160.0}
    caught |= {"event": "restored", "restored_update": 360, "change": "step_size 10/255 -> 8/255"}
    caught |= {"robust_accuracy": 0.02, "best_robust_accuracy": 0.54}
    records += [
        caught,
        {"kind": "resumed", "update": 400},
        {"kind": "warning", "message": "the loader <repeats> images"},
        caught | {"event": "stopped", "change": None},
    ]
    page = page_of(
        tmp_path, make_run(tmp_path / "run", records=records, warnings=["last.pt is damaged"])
    )
    assert "held-out check was 2.0%, after 54.0% at best. Went back to update 360." in page.text
    assert "Change: step_size 10/255 -> 8/255." in page.text
    assert "Continued from update 400" in page.text
    assert "Warning: the loader <repeats> images" in page.text
    assert "Training stopped there, with the weights of update 360." in page.text
    assert "Warning: last.pt is damaged" in page.text
    assert "stepped in 2 times" in page.text


def test_names_are_text(tmp_path: Path) -> None:
    name = "<b>&\"'"
    arrays = pictures() | {"classes": np.array(["<i>", "&amp;", "two"])}
    data = {"name": name, "split": name, "fingerprint": name, "note": name}
    page = page_of(
        tmp_path,
        make_run(
            tmp_path / "a<b>&",
            method=name,
            device=name,
            data=data,
            arrays=arrays,
            evaluations=[evaluation(attack=name)],
        ),
    )
    assert page.all("b") == []
    assert page.all("i") == []
    assert "true: &amp;" in page.text
    assert name in page.text


def test_runs_of_one_method_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / path) for path in ("seed-1", "seed-2", "again/seed-2")]
    text = page_of(tmp_path, *runs).text
    assert "fgsm-rs (seed-1)" in text
    assert f"fgsm-rs ({tmp_path / 'again/seed-2'})" in text


def test_more_runs_than_colours(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i), records=log(40), method=f"m{i}") for i in range(9)]
    html_styles = [a.get("style") for a in page_of(tmp_path, *runs).all("svg") if "style" in a]
    assert "color: var(--series-5)" in html_styles


def test_a_changed_recipe_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", recipe_sha256="0ld")
    assert "The recipe was changed after training" in page_of(tmp_path, run).text


def test_no_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run directory"):
        write_report([], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("channels", "side", "width", "enlarged"),
    [(1, 8, 96, True), (3, 28, 112, True), (3, 224, 96, False)],
)
def test_pictures_are_enlarged_by_whole_factors(
    tmp_path: Path, channels: int, side: int, width: int, enlarged: bool
) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "run", arrays=pictures(channels, side, n=2)))
    images = page.all("img")
    assert len(images) == 3 * 2
    assert {image["width"] for image in images} == {str(width)}
    assert {image.get("class") for image in images} == {"enlarged" if enlarged else None}
    assert "✗ wrong" in page.text
    assert "Perturbations are shown 2.5 times as large" in page.text
    assert "eps 0.2, checkpoint last" in page.text


def test_incomplete_pictures_are_left_out(tmp_path: Path) -> None:
    arrays = pictures()
    del arrays["adversarial"]
    assert page_of(tmp_path, make_run(tmp_path / "run", arrays=arrays)).all("img") == []


def test_png_holds_the_pixels() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 12
    uri = png_data_uri(image)
    decoded = np.asarray(Image.open(io.BytesIO(b64decode(uri.split(",")[1]))))
    np.testing.assert_array_equal(decoded, np.rint(image * 255).transpose(1, 2, 0))


def test_amplified_is_round_and_clips_nothing() -> None:
    clean = np.zeros((2, 1, 1, 2), np.float32)
    adversarial = clean + np.float32([8 / 255, -4 / 255])
    shown, factor = amplified(clean, adversarial)
    assert factor == 15.0
    np.testing.assert_allclose(shown[0, 0, 0], [0.5 + 15 * 8 / 255, 0.5 - 15 * 4 / 255], rtol=1e-6)
    shown, factor = amplified(clean, clean)
    assert factor == 1.0
    assert (shown == 0.5).all()
    # the pixel box may be crossed in one step: from black to white
    assert amplified(clean, clean + 1)[1] == 0.5


def test_thinned_keeps_the_mean_and_short_curves() -> None:
    short, long = np.arange(300.0), np.arange(90000.0)
    assert thinned(short) is short
    assert len(thinned(long)) == 300
    assert thinned(long).mean() == pytest.approx(long.mean())


def test_values_as_people_write_them() -> None:
    assert [radius(eps) for eps in (8 / 255, 0.2, 51 / 255, 0.5, 128 / 255, 1.0, 0.0313)] == [
        *("8/255", "0.2", "0.2", "0.5", "128/255", "1", "0.0313")
    ]
    assert radius(float(np.float32(8 / 255))) == "8/255"
    assert [passes(count) for count in (160.0, 110 / 3, 0.0)] == ["160", "36.67", "0"]
    assert [duration(s) for s in (0.049, 4.25, 75.0, 3600.0 * 2 + 61)] == [
        *("0.05 s", "4.2 s", "1 min 15 s", "2 h 1 min")
    ]


def test_importing_it_is_light() -> None:
    command = "import sys, gratis.report; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("share", "shown"), [(1.0, "100.0%"), (0.9996, "99.9%"), (0.9994, "99.9%"), (0.0, "0.0%")]
)
def test_all_but_one_are_not_all(share, shown):
    assert percent(share) == shown
