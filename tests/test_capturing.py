"""Graphs where there is no GPU; with one, or a stand-in, see tests/stand_in_gpu/check_graphs.py."""

from pathlib import Path

import pytest
import torch

from gratis import Learner, Natural, train
from gratis.capturing import decide
from gratis.graphs import Graphs
from gratis.optim import groups
from gratis.passes import Batch
from gratis.run import Run
from tests.recipes import tiny
from tests.small_net import sgd, small_net, some_batches

REASON = "graphs are CUDA's, and the network is on the cpu"


def test_a_run_without_a_gpu_says_why_it_uses_none(tmp_path: Path) -> None:
    train.run(tiny("natural", "engine.device=cpu", "engine.graph=on", passes=1), tmp_path / "on")
    (event,) = [r for r in Run.open(tmp_path / "on").log() if r["kind"] == "graph"]
    assert (event["used"], event["reason"]) == (False, REASON)


def test_auto_says_nothing_where_there_is_no_gpu(tmp_path: Path) -> None:
    train.run(tiny("natural", "engine.device=cpu", "engine.graph=auto", passes=1), tmp_path / "run")
    assert all(r["kind"] != "graph" for r in Run.open(tmp_path / "run").log())


def test_a_learner_without_a_gpu_has_no_graphs() -> None:
    model = small_net()
    learner = Learner(model, sgd(model))
    with pytest.raises(ValueError, match=REASON):
        Graphs(learner)
    decision = decide(learner, Natural(), Batch(*some_batches((8,))[0]))
    assert (decision.used, decision.reason) == (False, REASON)


def test_a_rate_that_is_a_tensor_stays_one() -> None:
    rate, other = torch.tensor(0.5), torch.tensor(0.25)
    group = {"lr": rate, "momentum": 0.9}
    groups.put(group, {"lr": 0.125, "momentum": 0.8})
    assert group["lr"] is rate
    assert (float(rate), group["momentum"]) == (0.125, 0.8)
    groups.put(group, {"lr": other})
    assert group["lr"] is rate
    assert float(rate) == 0.25


def test_a_checkpoint_says_nothing_of_how_a_step_is_computed() -> None:
    model = small_net()
    saved, taken_up = sgd(model), sgd(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    saved.param_groups[0].update(lr=torch.tensor(0.5), fused=True, foreach=False)
    saved.step()
    state = groups.saved(saved)
    assert state["param_groups"][0]["lr"] == 0.5
    assert isinstance(saved.param_groups[0]["lr"], torch.Tensor), "the optimizer's own stays"
    groups.load(taken_up, state)
    group = taken_up.param_groups[0]
    assert (group["lr"], group["fused"], group["foreach"]) == (0.5, None, None)
    for parameter in model.parameters():
        buffers = [o.state[parameter]["momentum_buffer"] for o in (saved, taken_up)]
        assert torch.equal(*buffers)
