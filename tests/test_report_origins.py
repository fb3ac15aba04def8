"""On the page: images, device and versions of a figure, where they are not the header's."""

from pathlib import Path

from tests.report_parts import add_verified, union, verified
from tests.reports import RESULTS, evaluation, make_run, page_of
from tests.test_report_content import _figures_in_words

__all__ = ["_figures_in_words"]  # a fixture, which every test has


def test_figures_of_other_images_stand_apart(tmp_path: Path) -> None:
    """An entry's own fingerprint counts, not that of the run's first evaluation."""
    odd = evaluation(100, fingerprint="0ther" * 12, warnings=["the test images are others"])
    runs = [
        make_run(tmp_path / "a", method="natural"),
        make_run(tmp_path / "b", method="free-8", evaluations=[evaluation(), odd]),
        make_run(tmp_path / "c", method="pgd-7", evaluations=[evaluation(fingerprint="f00dfeed")]),
    ]
    page = page_of(tmp_path, *runs)
    assert len([a for a in page.all("tr") if a.get("class") == "protocol"]) == 2
    assert page.text.count("on test images with fingerprint 0ther0ther0ther0") == 2
    assert "the test images are others" in page.text.split("Accuracy and cost")[0]


def test_the_clean_accuracy_and_the_bound_are_of_the_same_images(tmp_path: Path) -> None:
    odd = {"fingerprint": "beef"}
    run = make_run(
        tmp_path / "a",
        evaluations=[evaluation(100, clean=250, **odd), evaluation()],
        unions=[union(), union() | odd],
    )
    add_verified(run, verified())
    text = page_of(tmp_path, run).text
    assert "57.0% 51.3% to 57.0% 92.0% 88.0% to 95.0%" in text
    assert "57.0% 51.3% to 57.0% on test images with fingerprint beef 50.0%" in text
    assert "at most 71.2% by pgd-50-10" in text
    assert "at most 20.0%" not in text


def test_another_device_and_version_are_said_beside_the_figure(tmp_path: Path) -> None:
    own = {"device": "a card", "versions": RESULTS["versions"] | {"torch": "2.16.0"}}
    same = {key: RESULTS[key] for key in ("device", "versions")}
    entries = [evaluation(**own, rejected=3), evaluation(attack="fgsm", **same)]
    text = page_of(tmp_path, make_run(tmp_path / "a", evaluations=entries)).text
    assert text.count("on a card") == text.count("with torch 2.16.0") == 2
    assert text.count("3 successes of the attack did not hold when looked at again") == 2
