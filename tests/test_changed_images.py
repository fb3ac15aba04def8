"""Images that have changed since a run began: other classes, more of them, other pixels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gratis import train
from gratis.checkpoint import save_state
from gratis.cli import main
from gratis.data import folder as folders
from gratis.recipe import Recipe
from gratis.run import Run
from tests.dying import dies
from tests.recipes import tiny

CLASSES = ("a", "b", "c")


def tree(root: Path, each: int = 20) -> Path:
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for place in range(each):
                pixels = draw.integers(0, 80, (8, 8), dtype=np.uint8) + np.uint8(80 * number)
                Image.fromarray(pixels).save(root / split / name / f"{place}.png")
    return root


def recipe(root: Path, *settings: str) -> Recipe:
    of = ("data.name=folder", f"data.root={root}", "data.batch_size=20", "data.holdout=10")
    return tiny("fgsm-rs", *of, "engine.checkpoint_seconds=0", *settings)


def test_classes_that_are_gone_are_not_taken_for_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "images")
    run = train.run(recipe(root), tmp_path / "run")
    for split in ("train", "test"):
        shutil.rmtree(root / split / "a")
    before = run.results
    for command in (["evaluate"], ["export", "--as", "weights", "--out", str(tmp_path / "w.pt")]):
        assert main([command[0], str(run.path), *command[1:]]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "the classes are no longer those that the network was trained on" in said
        assert "only in training: a" in said
    assert run.results == before


def test_a_run_is_not_gone_on_with_on_other_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "images")
    with dies(4):
        train.run(recipe(root), tmp_path / "run")
    assert Run.open(tmp_path / "run").has_checkpoint
    more = root / "train" / "b" / "more.png"
    shutil.copy(root / "train" / "b" / "0.png", more)
    with pytest.raises(ValueError, match="began with 50 training images, now there are 51"):
        train.run(recipe(root), tmp_path / "run", resume=True)
    more.unlink()
    for split in ("train", "test"):
        (root / split / "c").rename(root / split / "d")
    with pytest.raises(ValueError, match="the run began with other classes"):
        train.run(recipe(root), tmp_path / "run", resume=True)
    for split in ("train", "test"):
        (root / split / "d").rename(root / split / "c")
    Image.new("L", (8, 8), 7).save(root / "train" / "a" / "0.png")
    run = train.run(recipe(root), tmp_path / "run", resume=True)
    said = [r["message"] for r in run.log() if r["kind"] == "warning"]
    assert "the training images are not, to the bit, those that the run began with" in said


def test_a_folder_larger_than_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "images", each=4)
    monkeypatch.setattr(folders, "room", lambda: 12 * 64 - 1)
    with pytest.raises(ValueError, match=r"12 images of 8x8 pixels need .*data.stored=SIDE"):
        folders.load_folder(root, "train", None)
    monkeypatch.setattr(folders, "room", lambda: 12 * 64)
    assert len(folders.load_folder(root, "train", None)) == 12


def test_images_that_were_moved_are_found_where_they_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path / "images")
    with dies(4):
        train.run(recipe(root), tmp_path / "run")
    moved = root.rename(tmp_path / "elsewhere")
    kept = (tmp_path / "run" / "recipe.yaml").read_text()
    run = train.run(recipe(moved), tmp_path / "run", resume=True)
    assert run.results is not None
    command = ["evaluate", str(run.path), "--attack", "fgsm", "--limit", "9"]
    assert main(command) == 2
    assert f"{root} " in capsys.readouterr().err
    assert main([*command, "--set", f"data.root={moved}"]) == 0
    assert [e["attack"] for e in run.results["evaluations"]] == ["pgd-3-2", "fgsm"]
    assert (tmp_path / "run" / "recipe.yaml").read_text() == kept
    assert "warnings" not in run.results
    Image.new("L", (8, 8), 7).save(moved / "test" / "a" / "0.png")
    assert main([*command, "--set", f"data.root={moved}"]) == 0
    assert any("test images are not, to the bit" in said for said in run.results["warnings"])


def test_a_checkpoint_that_cannot_tell_its_images_is_not_gone_on_with_elsewhere(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path / "images")
    with dies(4):
        train.run(recipe(root), tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    del state["learned_from"]
    save_state(last, state)
    moved = root.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="by a version that did not keep which images"):
        train.run(recipe(moved), tmp_path / "run", resume=True)
    moved.rename(root)
    assert train.run(recipe(root), tmp_path / "run", resume=True).results is not None


def unlabelled(root: Path, more: Path, *settings: str) -> Recipe:
    """Learns from all images of `root`, and from ten of `more` without their labels."""
    source = f"data.unlabelled={{name: folder, root: {more}, limit: 10}}"
    return recipe(root, source, *settings)


def cut_short(root: Path, more: Path, out: Path, *settings: str) -> None:
    with dies(4):
        train.run(unlabelled(root, more, *settings), out)
    assert Run.open(out).has_checkpoint


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    return tree(tmp_path / "images"), tree(tmp_path / "more", each=6)


@pytest.fixture
def pseudo(tmp_path: Path, sources: tuple[Path, Path]) -> str:
    """The setting that names a run whose model labels the images without any."""
    teacher = train.run(recipe(sources[0]), tmp_path / "teacher")
    return f"data.unlabelled.pseudo={teacher.path}"


def test_pseudo_labels_do_not_go_onto_other_images(
    tmp_path: Path, sources: tuple[Path, Path], pseudo: str
) -> None:
    root, more = sources
    cut_short(root, more, tmp_path / "run", pseudo)
    grown = more / "train" / "b" / "more.png"
    shutil.copy(more / "train" / "b" / "0.png", grown)  # others are drawn, as many as before
    with pytest.raises(ValueError, match=r"labels are not, to the bit, .* the pseudo-labels in"):
        train.run(unlabelled(root, more, pseudo), tmp_path / "run", resume=True)
    grown.unlink()
    moved = more.rename(tmp_path / "elsewhere")
    run = train.run(unlabelled(root, moved, pseudo), tmp_path / "run", resume=True)
    assert run.results is not None
    assert not [r for r in run.log() if r["kind"] == "warning"]


def test_other_images_without_labels_are_warned_of_and_fewer_refused(
    tmp_path: Path, sources: tuple[Path, Path]
) -> None:
    root, more = sources
    trades = "method=trades-1", "budget.passes=20"
    cut_short(root, more, tmp_path / "run", *trades)
    for name in CLASSES:
        for place in (4, 5):
            (more / "train" / name / f"{place}.png").rename(tmp_path / f"{name}{place}.png")
    for place in (1, 2, 3):
        (more / "train" / "a" / f"{place}.png").unlink()
    with pytest.raises(ValueError, match="began with 10 images without labels, now there are 9"):
        train.run(unlabelled(root, more, *trades), tmp_path / "run", resume=True)
    for name in CLASSES:
        for place in (4, 5):
            (tmp_path / f"{name}{place}.png").rename(more / "train" / name / f"{place}.png")
    run = train.run(unlabelled(root, more, *trades), tmp_path / "run", resume=True)
    (said,) = [r["message"] for r in run.log() if r["kind"] == "warning"]
    assert said == "the images without labels are not, to the bit, those that the run began with"


def test_a_checkpoint_that_cannot_tell_its_images_without_labels_goes_on_as_before(
    tmp_path: Path, sources: tuple[Path, Path], pseudo: str
) -> None:
    root, more = sources
    cut_short(root, more, tmp_path / "run", pseudo)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    del state["learned_from"]["unlabelled"]
    save_state(last, state)
    moved = more.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"data\.unlabelled\.root: .* by a version that did not"):
        train.run(unlabelled(root, moved, pseudo), tmp_path / "run", resume=True)
    moved.rename(more)
    run = train.run(unlabelled(root, more, pseudo), tmp_path / "run", resume=True)
    assert run.results is not None
