"""Checkpoints: never torn, the one before is kept, and nothing in them runs code."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gratis.checkpoint import DamagedCheckpointError, load_state, save_state
from gratis.run import Run
from tests.dying import KilledError, dies
from tests.run_directories import Payload, run

__all__ = ["run"]  # a fixture, asked for by name


def state(update: int) -> dict[str, Any]:
    return {
        "updates": update,
        "model": {"weight": torch.full((20, 5), float(update))},
        "optimizer": {"param_groups": [{"lr": 0.1, "params": [0]}]},
        "best": (0.5, 0.7),
        "averaged": None,
    }


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


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_crash_between_the_renames_loses_nothing(run: Run, allowed: int) -> None:
    save(run, 1, 2)
    with dies(allowed + 1, (os, "replace")):
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
