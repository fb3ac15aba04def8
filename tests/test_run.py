"""The run directory: never overwritten, one writer at a time, and results that are never torn."""

import errno
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gratis import run as run_module
from gratis.held import RunInUseError
from gratis.run import Run
from tests.dying import dies
from tests.run_directories import RECIPE, Payload, run

__all__ = ["run"]  # a fixture, asked for by name


# --- starting and resuming


def test_a_run_is_made_with_its_parents_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "deep" / "one"
    with Run.writing(str(path), RECIPE, resume=False) as made:
        assert made.recipe == RECIPE
    opened = Run.open(str(path))
    assert opened.recipe == RECIPE
    assert len(opened.recipe_sha256) == 64
    assert opened.log() == []
    assert opened.results is None
    assert opened.per_image() == {}
    assert opened.pictures() == {}
    assert not opened.has_checkpoint


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    with Run.writing(tmp_path, RECIPE, resume=False):
        assert (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize("name", ["notes.txt", "recipe.yaml", "log.jsonl", "checkpoints/last.pt"])
def test_a_directory_that_holds_anything_is_refused(tmp_path: Path, name: str) -> None:
    kept = tmp_path / name
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with (
        pytest.raises(ValueError, match=r"never overwritten.*--resume"),
        Run.writing(tmp_path, RECIPE, resume=False),
    ):
        raise AssertionError
    assert kept.read_text() == "mine"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [kept.name]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for resume, message in ((False, "never overwritten"), (True, "nothing to resume")):
        with (
            pytest.raises(ValueError, match=message),
            Run.writing(tmp_path / "run", RECIPE, resume=resume),
        ):
            raise AssertionError
    assert (tmp_path / "run").read_text() == "mine"


def test_resuming_needs_a_directory_and_makes_none(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="nothing to resume"),
        Run.writing(tmp_path / "run", RECIPE, resume=True),
    ):
        raise AssertionError
    assert not (tmp_path / "run").exists()


def test_the_same_recipe_resumes_and_leaves_the_file_alone(run: Run) -> None:
    before = (run.path / "recipe.yaml").read_bytes()
    with Run.writing(run.path, json.loads(json.dumps(RECIPE)), resume=True) as again:
        assert again.recipe == RECIPE
    assert (run.path / "recipe.yaml").read_bytes() == before


def test_another_recipe_is_refused_with_the_keys_that_differ(run: Run) -> None:
    other = json.loads(json.dumps(RECIPE))
    other["seed"] = 1
    other["method"]["ball"]["eps"] = "4/255"
    other["method"]["step_size"] = 0.1
    del other["optimizer"]["weight_decay"]
    names = "method.ball.eps, method.step_size, optimizer.weight_decay, seed;"
    with (
        pytest.raises(ValueError, match=f"differs in {names}"),
        Run.writing(run.path, other, resume=True),
    ):
        raise AssertionError
    assert run.recipe == RECIPE


def test_a_run_that_died_before_its_recipe_was_written_resumes(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml.tmp").write_bytes(b"name: sm")
    with Run.writing(tmp_path, RECIPE, resume=True) as made:
        assert made.recipe == RECIPE


def test_opening_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"no run directory: it holds no recipe\.yaml"):
            Run.open(path)


# --- one writer at a time


HOLD = """
import sys
from gratis.run import Run
with Run.writing(sys.argv[1], {"name": "held"}, resume=len(sys.argv) > 2):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    recipe = {"name": "held"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunInUseError, match="in use by another process"),
            Run.writing(tmp_path, recipe, resume=True),
        ):
            raise AssertionError
        with pytest.raises(RunInUseError), Run.open(tmp_path).locked():
            raise AssertionError
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with Run.writing(tmp_path, recipe, resume=True) as run:
        assert run.recipe == recipe


def test_the_lock_is_let_go_also_after_an_error(run: Run) -> None:
    with pytest.raises(KeyError), Run.writing(run.path, RECIPE, resume=True):
        raise KeyError
    with Run.writing(run.path, RECIPE, resume=True), pytest.raises(RunInUseError), run.locked():
        raise AssertionError


def test_a_run_that_began_meanwhile_is_not_taken_for_an_empty_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process starts and ends a run between our look and our lock."""
    looked = run_module.occupied
    calls = []

    def look_then_lose_the_race(directory: Path) -> bool:
        found = looked(directory)
        if not calls:
            calls.append(None)
            (directory / "recipe.yaml").write_text("name: small\n")
        return found

    monkeypatch.setattr(run_module, "occupied", look_then_lose_the_race)
    with (
        pytest.raises(ValueError, match="never overwritten"),
        Run.writing(tmp_path, {"name": "small"}, resume=False),
    ):
        raise AssertionError


# --- results


def test_results_are_whole_or_absent(run: Run) -> None:
    run.write_results({"evaluations": [1]})
    with dies(1, (os, "replace")):
        run.write_results({"evaluations": [1, 2]})
    assert run.results == {"evaluations": [1]}


def test_per_image_arrays_are_merged_and_replaced(run: Run) -> None:
    run.write_per_image({"a.clean": np.array([True, False]), "a.robust": np.array([False, False])})
    run.write_per_image({"b.clean": np.array([True]), "a.robust": np.array([True, False])})
    kept = run.per_image()
    assert sorted(kept) == ["a.clean", "a.robust", "b.clean"]
    assert kept["a.clean"].tolist() == [True, False]
    assert kept["a.robust"].tolist() == [True, False]
    assert kept["a.robust"].dtype == bool


def test_pictures_are_replaced_as_a_whole(run: Run) -> None:
    run.write_pictures({"clean": np.zeros((2, 1, 3, 3)), "attack": np.array("pgd-10")})
    run.write_pictures({"clean": np.ones((1, 1, 3, 3))})
    assert list(run.pictures()) == ["clean"]


def test_an_array_of_objects_is_not_unpickled(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    array = np.empty(1, dtype=object)
    array[0] = Payload(target)
    np.savez(run.path / "per_image.npz", evil=array)
    with pytest.raises(ValueError, match="allow_pickle"):
        run.per_image()
    assert not target.exists()
    assert zipfile.is_zipfile(run.path / "per_image.npz")


def test_a_start_that_came_to_nothing_is_begun_anew_with_another_recipe(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with Run.writing(tmp_path, RECIPE | {"name": name}, resume=False) as made:
            made.log_writer().close()
            assert made.recipe["name"] == name
    assert made.free()
    with Run.writing(tmp_path, RECIPE | {"name": "third"}, resume=True):
        assert made.recipe["name"] == "third"
    (tmp_path / "log.jsonl").write_text("{}\n")
    assert not made.free()
    with (
        pytest.raises(ValueError, match="another recipe; it differs in name"),
        Run.writing(tmp_path, RECIPE, resume=True),
    ):
        raise AssertionError


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("gratis.held.fcntl.flock", none)
    with (
        pytest.raises(ValueError, match=r"its file system has no locks .*mount it with flock"),
        Run.writing(tmp_path / "run", RECIPE, resume=False),
    ):
        raise AssertionError


def test_nothing_older_stands_in_for_a_damaged_checkpoint(run: Run) -> None:
    for number in (1, 2):
        run.save_checkpoint("last", {"updates": number})
    assert run.whole_checkpoint("last") == {"updates": 2}
    run.checkpoint_path("last").write_bytes(b"cut short")
    assert run.load_checkpoint("last")[0] == {"updates": 1}
    with pytest.raises(ValueError, match=r"last.pt.*the one before it is .*previous.pt"):
        run.whole_checkpoint("last")
