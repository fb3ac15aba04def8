"""bf16 where the machine has it: decided once, by the hardware, and kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gratis import casts, precision, train
from gratis.casts import has_bf16
from gratis.learner import Learner
from gratis.lr_range import lr_range
from gratis.precision import settle
from gratis.recipe import read, shipped
from gratis.run import Run
from tests.recipes import tiny
from tests.reports import page_of

CPU = torch.device("cpu")


def learner() -> Learner:
    model = torch.nn.Linear(4, 2)
    return Learner(model, torch.optim.SGD(model.parameters(), 0.1))


def machine(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: bf16)


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("avx512", [False, True])
def test_of_intel_and_amd_the_processor_is_asked(
    avx512: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casts.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_bf16(CPU) == (avx512 or amx)


def test_a_gpu_that_emulates_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert not has_bf16(torch.device("cuda"))
    assert not has_bf16(torch.device("meta"))


@pytest.mark.parametrize("bf16", [False, True])
def test_auto_is_what_the_machine_has(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, bf16)
    engine = learner()
    events: list[dict[str, Any]] = []
    settle("auto", engine, record=lambda kind, **values: events.append({"kind": kind, **values}))
    wanted = torch.bfloat16 if bf16 else None
    assert (engine.dtype, engine.probe.precision) == (wanted, wanted)
    (event,) = events
    assert event["used"] == ("bf16" if bf16 else "fp32")
    assert event["reason"] == f"the cpu has {'' if bf16 else 'no '}instructions for bf16"


@pytest.mark.parametrize("named", ["fp32", "bf16"])
def test_what_a_recipe_names_is_not_decided(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, named == "fp32")
    engine = learner()
    events: list[str] = []
    engine.set_precision(named)
    settle(named, engine, record=lambda kind, **values: events.append(kind))
    assert engine.dtype == (torch.bfloat16 if named == "bf16" else None)
    assert events == (["warning"] if named == "bf16" else []), "emulated bf16 is slow"


@pytest.mark.parametrize("first", [False, True])
def test_a_run_stays_as_it_began_on_another_machine(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, first)
    recipe = tiny("fgsm-rs", "engine.precision=auto", "engine.checkpoint_seconds=0")
    whole = train.run(recipe, tmp_path / "whole")
    broken = tmp_path / "broken"
    _stop_after(3, monkeypatch)
    with pytest.raises(InterruptedError):
        train.run(recipe, broken)
    monkeypatch.undo()
    machine(monkeypatch, not first)
    train.run(recipe, broken, resume=True)
    weights = [Run.open(run).load_checkpoint()[0]["model"] for run in (whole.path, broken)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    events = [e for e in Run.open(broken).log() if e["kind"] == "precision"]
    assert [event["used"] for event in events] == ["bf16" if first else "fp32"]


def _stop_after(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Learner.fit

    def fit(self: Learner, *given: Any, **named: Any) -> Any:
        if self.updates == updates:
            raise InterruptedError
        return done(self, *given, **named)

    monkeypatch.setattr(Learner, "fit", fit)


def test_bf16_learns_otherwise_than_fp32(tmp_path: Path) -> None:
    runs = {
        name: train.run(tiny("fgsm-rs", f"engine.precision={name}"), tmp_path / name)
        for name in ("fp32", "bf16")
    }
    losses = {n: [e["loss"] for e in r.log() if e["kind"] == "step"] for n, r in runs.items()}
    assert losses["fp32"] != losses["bf16"]
    assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.05)


def test_the_report_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, False)
    run = train.run(tiny("natural", "engine.precision=auto"), tmp_path / "run")
    said = " ".join(page_of(tmp_path, run).words)
    assert "Trained in fp32: the cpu has no instructions for bf16." in said


def test_a_rate_is_sought_in_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for bf16 in (False, True):
        machine(monkeypatch, bf16)
        found[bf16] = lr_range(tiny("natural", "engine.precision=auto"), updates=50).losses
    assert found[False] != found[True]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_no_shipped_recipe_asks_for_bf16_unseen(name: str) -> None:
    engine = read(name).get("engine", {})
    assert engine.get("precision", "fp32") in ("auto", "fp32"), yaml.safe_dump(engine)
