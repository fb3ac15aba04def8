"""What `gratis pictures` computes, keeps and does not compute again."""

import json

import numpy as np
import pytest
import torch

from gratis import pictures, train
from gratis.cli import main
from gratis.recipe import from_plain
from gratis.run import Run
from tests.recipes import tiny
from tests.reports import Page

EPS = 30 / 255


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs")
    cases = {"fgsm-rs": ["evaluation.limit=10"], "natural": ["evaluation.norm=l2", "seed=3"]}
    return [
        train.run(tiny(name, "evaluation.attacks=[fgsm]", *more, passes=8), folder / name)
        for name, more in cases.items()
    ]


@pytest.fixture(scope="module")
def drawn(runs):
    for sitter in pictures.sitters(runs, 40):
        assert pictures.keep(sitter, EPS)
    return runs


def test_the_views_hang_together(drawn):
    for run in drawn:
        arrays = run.views()
        about = json.loads(str(arrays["about"]))
        assert about["count"] == len(arrays["falls eps"]) == 40
        assert set(arrays["falls eps"]) <= {0.0, *about["radii"], np.inf}
        assert about["radii"] == [0.2 * share for share in pictures.SHARES]
        assert arrays["large clean"].shape == (8, 1, 8, 8)
        for kind in ("untargeted", "targeted"):
            moved = np.abs(arrays[f"large {kind}"] - arrays["large clean"]).max()
            assert moved == pytest.approx(EPS, abs=1e-6)
        assert (arrays["large target"] == (arrays["large label"] + 1) % 10).all()
        shown = arrays["falls shown"]
        assert len(shown) == len(set(shown)) == 16
        fallen = arrays["falls eps"][shown]
        assert (np.diff(fallen[:8]) >= 0).all()
        assert fallen[:8].max() <= fallen[8:].min()
        assert fallen[0] == min(eps for eps in arrays["falls eps"] if eps > 0)
        assert arrays["falls clean"].shape == arrays["falls adversarial"].shape == (16, 1, 8, 8)


def test_surfaces_of_all_runs_are_around_the_same_images(drawn):
    first, second = (run.views() for run in drawn)
    np.testing.assert_array_equal(first["large clean"], second["large clean"])
    names = {name for name in first if name.startswith("surface")}
    assert names == {f"surface {k} {r!r}" for k in ("adversarial", "random") for r in (EPS, 0.2)}
    # in L2 the run's own eps says nothing of a step in every pixel
    assert {n for n in second if n.startswith("surface")} == {n for n in names if repr(EPS) in n}
    surface = first[f"surface adversarial {EPS!r}"]
    assert surface.shape == (11, 11)
    assert surface[-1, 5] > surface[5, 5], "the loss rises along the gradient's sign"


def test_what_is_there_is_not_computed_again(drawn, monkeypatch):
    (sitter, _) = pictures.sitters(drawn, 40)
    before = (sitter.run.path / "views.npz").stat().st_mtime_ns

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(pictures, "falls", never)
    assert not pictures.keep(sitter, EPS)
    assert (sitter.run.path / "views.npz").stat().st_mtime_ns == before
    with pytest.raises(AssertionError, match="computed again"):
        pictures.keep(sitter, 0.3)
    (other, _) = pictures.sitters(drawn, 41)
    with pytest.raises(AssertionError, match="computed again"):
        pictures.keep(other, EPS)


def test_another_checkpoint_is_looked_at_anew(drawn, monkeypatch):
    (sitter, _) = pictures.sitters(drawn, 40)
    state, _ = sitter.run.load_checkpoint("last")
    name = next(name for name, value in state["model"].items() if value.is_floating_point())
    state["model"][name] += 0.5
    monkeypatch.setattr(Run, "load_checkpoint", lambda self, name: (state, []))
    monkeypatch.setattr(pictures, "_falls", lambda *_: {})
    written = []
    monkeypatch.setattr(Run, "write_views", lambda self, arrays: written.append(arrays))
    assert pictures.keep(sitter, EPS)
    assert len(written) == 1


def test_large_batches_and_small_ones_see_the_same(drawn, tmp_path):
    recipe = from_plain(drawn[0].recipe)
    (sitter,) = pictures.sitters(drawn[:1], 40)
    model = pictures.trained(recipe, sitter.images, drawn[0].load_checkpoint("last")[0])
    ball = recipe.evaluation_balls()[0]
    asked = (model, sitter.images, ball, [0.05, 0.2])
    whole, parts = (pictures._falls(*asked, size, lambda *_: None) for size in (100, 7))
    np.testing.assert_array_equal(whole["eps"], parts["eps"])
    np.testing.assert_allclose(whole["after"], parts["after"], atol=1e-5)
    np.testing.assert_array_equal(whole["label"], parts["label"])


def test_runs_of_other_data_are_not_put_side_by_side(drawn, monkeypatch, capsys):
    load = pictures.load_split
    splits = iter([lambda images: images, lambda images: images.select(torch.arange(99))])
    monkeypatch.setattr(pictures, "load_split", lambda *asked: next(splits)(load(*asked)))
    first, second = (run.path for run in drawn)
    assert main(["pictures", str(first), str(second)]) == 2
    said = capsys.readouterr().err
    assert f"{first} is of digits" in said
    assert f"{second} of digits" in said
    assert "draw the runs apart" in said


def test_a_radius_that_is_none(drawn, capsys):
    assert main(["pictures", str(drawn[0].path), "--eps", "8"]) == 2
    assert "8 grey levels" in capsys.readouterr().err


def test_the_command_draws_the_page(drawn, tmp_path, capsys):
    out = tmp_path / "page.html"
    paths = [str(run.path) for run in drawn]
    command = ["pictures", *paths, "--limit", "40", "--out", str(out)]
    assert main(command) == 0
    assert capsys.readouterr().out.count("there already") == 2
    page = Page(out.read_text())
    assert "How far images stand" in page.text
    assert "Accuracy against L∞ eps" in page.text
    assert "Accuracy against L2 eps" in page.text
    kinds = {str(image["alt"]).split(",")[0] for image in page.all("img")}
    assert {"original", "fgsm-rs", "natural", "Loss of fgsm-rs", "attacked"} <= kinds
