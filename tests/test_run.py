"""The run directory: never overwritten, never torn, and nothing in it runs code."""

import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gratis.checkpoint import DamagedCheckpointError, load_state, save_state
from gratis.run import Run, RunInUseError

RECIPE: dict[str, Any] = {
    "name": "small",
    "seed": 0,
    "method": {"name": "free", "replays": 8, "ball": {"eps": "8/255"}},
    "optimizer": {"learning_rate": 0.1, "weight_decay": 1e-05},
    "budget": {"passes": 15.0, "data_passes": None},
}


def state(update: int) -> dict[str, Any]:
    return {
        "updates": update,
        "model": {"weight": torch.full((20, 5), float(update))},
        "optimizer": {"param_groups": [{"lr": 0.1, "params": [0]}]},
        "best": (0.5, 0.7),
        "averaged": None,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with Run.writing(tmp_path / "run", RECIPE, resume=False) as made:
        return made


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
    looked = Run._occupied
    calls = []

    def look_then_lose_the_race(self: Run) -> bool:
        found = looked(self)
        if not calls:
            calls.append(None)
            (self.path / "recipe.yaml").write_text("name: small\n")
        return found

    monkeypatch.setattr(Run, "_occupied", look_then_lose_the_race)
    with (
        pytest.raises(ValueError, match="never overwritten"),
        Run.writing(tmp_path, {"name": "small"}, resume=False),
    ):
        raise AssertionError


# --- the log


def test_records_come_back_in_order(run: Run) -> None:
    records = [{"kind": "step", "update": i, "loss": i / 3, "note": "ä\u2028\n"} for i in range(5)]
    writer = run.log_writer()
    for record in records:
        writer.write(record)
    writer.close()
    assert run.log() == records
    assert len((run.path / "log.jsonl").read_bytes().splitlines()) == 5


def test_a_flushed_record_survives_a_kill(run: Run) -> None:
    writer = run.log_writer()
    writer.write({"kind": "step", "update": 1})
    writer.flush()
    assert run.log() == [{"kind": "step", "update": 1}]  # read while the writer still holds it
    writer.close()


def test_a_torn_last_line_is_left_out_and_repaired(run: Run) -> None:
    whole = b'{"kind": "step", "update": 1}\n'
    torn = b'{"kind": "step", "update": 22}'
    path = run.path / "log.jsonl"
    for cut in range(1, len(torn)):
        path.write_bytes(whole + torn[:cut])
        assert [r["update"] for r in run.log()] == [1]
        writer = run.log_writer()
        writer.write({"kind": "step", "update": 3})
        writer.close()
        assert [r["update"] for r in run.log()] == [1, 3]


def test_a_whole_last_line_without_its_newline_is_kept(run: Run) -> None:
    (run.path / "log.jsonl").write_bytes(b'{"kind": "step", "update": 1}')
    writer = run.log_writer()
    writer.write({"kind": "step", "update": 2})
    writer.close()
    assert [r["update"] for r in run.log()] == [1, 2]


def test_what_a_resumed_run_did_again_is_superseded(run: Run) -> None:
    writer = run.log_writer()
    for update in range(1, 7):
        writer.write({"kind": "step", "update": update, "life": 1})
    writer.write({"kind": "note", "life": 1})  # belongs to no update: stays
    writer.write({"kind": "resumed", "update": 4})
    for update in range(5, 9):
        writer.write({"kind": "step", "update": update, "life": 2})
    writer.write({"kind": "resumed", "update": 2})
    writer.write({"kind": "step", "update": 3, "life": 3})
    writer.close()
    steps = [(r["update"], r["life"]) for r in run.log() if r["kind"] == "step"]
    assert steps == [(1, 1), (2, 1), (3, 3)]
    assert [r["update"] for r in run.log() if r["kind"] == "resumed"] == [2]
    assert [r for r in run.log() if r["kind"] == "note"] == [{"kind": "note", "life": 1}]


# --- checkpoints


def save(run: Run, *updates: int) -> None:
    for update in updates:
        run.save_checkpoint("last", state(update))


def test_a_checkpoint_comes_back_and_the_one_before_is_kept(run: Run) -> None:
    assert not run.has_checkpoint
    save(run, 1, 2, 3)
    assert run.has_checkpoint
    loaded, warnings = run.load_checkpoint()
    assert warnings == []
    torch.testing.assert_close(loaded, state(3), rtol=0, atol=0)
    assert run.load_checkpoint("previous")[0]["updates"] == 2
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [
        "last.pt",
        "previous.pt",
    ]


def test_best_stands_apart(run: Run) -> None:
    save(run, 1)
    run.save_checkpoint("best", state(7))
    save(run, 2)
    assert run.load_checkpoint("best")[0]["updates"] == 7
    run.checkpoint_path("best").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no usable checkpoint.*best\.pt is damaged"):
        run.load_checkpoint("best")


def test_nothing_to_load_says_so(run: Run) -> None:
    with pytest.raises(ValueError, match=r"no usable checkpoint.*last\.pt does not exist"):
        run.load_checkpoint()


def test_a_checkpoint_cut_anywhere_is_named_and_the_one_before_used(run: Run) -> None:
    save(run, 1, 2)
    last = run.checkpoint_path("last")
    whole = last.read_bytes()
    cuts = {*range(9), *range(9, len(whole), 37), *range(len(whole) - 40, len(whole))}
    for cut in sorted(cuts):
        last.write_bytes(whole[:cut])
        loaded, warnings = run.load_checkpoint()
        assert loaded["updates"] == 1, cut
        assert [str(last) in message for message in warnings] == [True]
        assert "damaged or cut short" in warnings[0], (cut, warnings)
    last.write_bytes(whole)
    loaded, warnings = run.load_checkpoint()
    assert (loaded["updates"], warnings) == (2, [])


@pytest.mark.parametrize("content", [b"\0" * 3000, b"not a checkpoint", b"PK\3\4" + b"x" * 500])
def test_rubbish_is_named_and_the_one_before_used(run: Run, content: bytes) -> None:
    save(run, 1, 2)
    run.checkpoint_path("last").write_bytes(content)
    loaded, warnings = run.load_checkpoint()
    assert loaded["updates"] == 1
    assert "last.pt" in warnings[0]


def test_overwritten_bytes_never_pass_for_a_whole_checkpoint(run: Run) -> None:
    """The archive's checksums catch bytes that changed in the weights themselves."""
    save(run, 1, 2)
    last = run.checkpoint_path("last")
    whole = last.read_bytes()
    weights = whole.index(torch.full((20,), 2.0).numpy().tobytes())
    last.write_bytes(whole[:weights] + b"\xff" * 16 + whole[weights + 16 :])
    loaded, warnings = run.load_checkpoint()
    assert loaded["updates"] == 1
    assert len(warnings) == 1


def test_both_damaged_names_both(run: Run) -> None:
    save(run, 1, 2)
    run.checkpoint_path("last").write_bytes(b"x")
    run.checkpoint_path("previous").unlink()
    with pytest.raises(ValueError, match=r"last\.pt is.*previous\.pt does not exist"):
        run.load_checkpoint()


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_crash_between_the_renames_loses_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    save(run, 1, 2)
    really, done = os.replace, []

    def replace(source: Path, target: Path) -> None:
        if len(done) == allowed:
            raise KilledError
        done.append(target)
        really(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KilledError):
            save(run, 3)
    loaded, warnings = run.load_checkpoint()
    assert run.has_checkpoint
    assert loaded["updates"] == 2
    assert [("last.pt does not exist" in w) for w in warnings] == [True] * allowed
    save(run, 3)  # and the next life goes on
    assert run.load_checkpoint()[0]["updates"] == 3
    assert run.load_checkpoint("previous")[0]["updates"] == 2


def test_a_crash_while_writing_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1, 2)

    def half(path: Path, _: object) -> None:
        path.write_bytes(b"PK\3\4 half")
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("gratis.run.save_state", half)
        with pytest.raises(KilledError):
            save(run, 3)
    assert run.load_checkpoint()[0]["updates"] == 2
    save(run, 3)
    assert run.load_checkpoint()[0]["updates"] == 3


def test_leftovers_of_a_crash_are_harmless(run: Run) -> None:
    save(run, 1)
    for name in ("checkpoints/last.pt.tmp", "results.json.tmp", "per_image.npz.tmp"):
        (run.path / name).write_bytes(b"half")
    save(run, 2)
    run.write_results({"evaluations": []})
    run.write_per_image({"a": np.zeros(1, bool)})
    loaded, warnings = run.load_checkpoint()
    assert (loaded["updates"], warnings) == (2, [])
    assert run.results == {"evaluations": []}
    assert not list(run.path.rglob("*.tmp"))


# --- nothing in a checkpoint runs


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_a_payload_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    target, path = tmp_path / "pwned", tmp_path / "evil.pt"
    evil = {"updates": 1, "model": Payload(target)}
    path.write_bytes(pickle.dumps(evil, protocol))
    with pytest.raises(DamagedCheckpointError, match=r"evil\.pt is damaged"):
        load_state(path)
    torch.save(evil, path)
    with pytest.raises(DamagedCheckpointError, match=r"evil\.pt .*not loaded"):
        load_state(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(evil))  # the payload itself works
    assert target.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(DamagedCheckpointError, match="not loaded"):
        load_state(tmp_path / "module.pt")


def test_a_tensor_alone_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(DamagedCheckpointError, match="holds a Tensor"):
        load_state(tmp_path / "tensor.pt")


def test_plain_state_survives(tmp_path: Path) -> None:
    save_state(tmp_path / "a.pt", state(5))
    torch.testing.assert_close(load_state(tmp_path / "a.pt"), state(5), rtol=0, atol=0)


# --- results


def test_results_are_whole_or_absent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_results({"evaluations": [1]})

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KilledError):
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
