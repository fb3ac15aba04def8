"""A batch learned part by part is the batch that so many processes share."""

import copy
import threading
from datetime import timedelta

import pytest
import torch

from gratis import train
from gratis.batch import Batch, seeded
from gratis.launched import meet
from gratis.lr_range import lr_range
from gratis.methods import METHODS, Natural
from gratis.methods.in_parts import InParts
from gratis.nn.auxbn import branched
from gratis.nn.batchnorm import PartsStatistics
from gratis.run import Run
from gratis.setting import build_loaders, network, parts_of_batch, planned
from gratis.training_data import training_data
from tests.dying import assert_same, dies, final_state
from tests.recipes import tiny
from tests.two_processes import (
    BATCHES,
    LOCAL,
    SETTINGS,
    WORLD,
    build,
    learner_for,
    of,
    whole_batches,
    whole_recipe,
)


def made(name):
    """The method; Fast AdvProp without what crosses parts, which are not there together."""
    method = build(name)
    if name == "fast-advprop":
        method.shuffle = False
    return method


def learned(name, method, groups, shares):
    learner = learner_for(method, groups)
    for x, y in whole_batches():
        rows = learner.processes.rows(method.parts(len(x)), shares)
        learner.fit(method, Batch(x[rows], y[rows]))
    return learner


@pytest.mark.parametrize("name", METHODS)
def test_parts_one_after_the_other_are_norm_groups_at_once(name):
    whole, parts = made(name), InParts(lambda: made(name), WORLD)
    expected = learned(name, whole, WORLD, 1)
    found = learned(name, parts, 1, WORLD)
    assert found.updates == expected.updates
    for key, value in expected.model.state_dict().items():
        torch.testing.assert_close(
            found.model.state_dict()[key], value, rtol=1e-12, atol=1e-13, msg=key
        )
    for key, value in whole.state().items():
        torch.testing.assert_close(parts.state()[key], value, rtol=0, atol=1e-12)
    assert found.spent.passes == expected.spent.passes
    # whole thirds are rounded part by part
    assert found.spent.thirds == BATCHES * sum(parts.update_thirds(WORLD * LOCAL))
    assert parts.update_thirds(WORLD * LOCAL) == tuple(
        WORLD * cost for cost in whole.update_thirds(LOCAL)
    )
    assert parts.cost == whole.cost


def test_parts_differ_from_the_batch_seen_as_one():
    """The comparison above says something: without groups the norms see other statistics."""
    one = learned("fgsm-rs", made("fgsm-rs"), 1, 1)
    parts = learned("fgsm-rs", InParts(lambda: made("fgsm-rs"), WORLD), 1, WORLD)
    weights = next(iter(one.model.parameters())), next(iter(parts.model.parameters()))
    assert not torch.allclose(*weights, rtol=1e-6)


def test_a_state_in_parts_comes_back_in_parts():
    method = InParts(lambda: made("free"), 2)
    learned("free", method, 1, 2)
    again = InParts(lambda: made("free"), 2)
    again.load_state(copy.deepcopy(method.state()))
    assert_same(again.state(), method.state())
    assert not torch.equal(*(part.state()["delta"] for part in again.each))


def test_a_gentler_method_in_parts_is_gentler_in_each():
    method = InParts(lambda: METHODS["fgsm"](made("free").ball), 3)
    gentler, change = method.gentler()
    expected, said = method.each[0].gentler()
    assert change == said
    assert [each == expected for each in gentler.each] == [True] * 3
    assert InParts(lambda: made("natural"), 2).gentler() is None


def test_parts_draw_what_the_whole_draws():
    like = torch.zeros(6, 2)
    whole = Batch(like, torch.arange(6), seeded(1, 2, like.device), rank=1, world=2)
    parts = Batch(like, torch.arange(6), seeded(1, 2, like.device), rank=1, world=2).split(3)

    def sample(like, generator):
        return torch.rand(like.shape, generator=generator)

    for _ in range(2):
        expected = whole.draw(like, sample)
        got = [part.draw(part.x, sample) for part in parts]
        assert torch.equal(torch.cat(got), expected)
    assert [part.rank for part in parts] == [3, 4, 5]
    assert torch.equal(torch.cat([part.y for part in parts]), torch.arange(6))


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_statistics_move_by_the_mean_of_the_parts(momentum):
    torch.manual_seed(0)
    norm, x = torch.nn.BatchNorm1d(4, momentum=momentum).double(), torch.rand(12, 4).double()
    norm(torch.rand(8, 4).double())
    moved = [copy.deepcopy(norm) for _ in range(3)]
    statistics = PartsStatistics()
    for place, part in enumerate(x.chunk(3)):
        with statistics.of(norm, place, 3):
            for one in (moved[place], norm):
                one(part)
                one(part + 1)  # as a loss does that looks at an image twice
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(each, name) for each in moved]).mean(0)
        torch.testing.assert_close(getattr(norm, name), expected, rtol=1e-13, atol=0)
    assert norm.num_batches_tracked == 3


def test_several_shares_are_several_processes_rows():
    two, four = [of(rank, 2) for rank in range(2)], [of(rank, 4) for rank in range(4)]
    for rank, processes in enumerate(two):
        expected = [four[2 * rank + share].rows((3, 1)) for share in range(2)]
        assert torch.equal(processes.rows((3, 1), shares=2), torch.cat(expected))


@pytest.mark.parametrize(
    ("settings", "processes", "begun", "said"),
    [
        (
            ["engine.parts=4"],
            3,
            None,
            r"3 processes.*4 parts.*asks for engine.parts.*start 1, 2, 4",
        ),
        (["engine.parts=4"], 3, None, "set engine.parts to a multiple of 3"),
        ([], 3, 4, "the run began so.*start 1, 2, 4$"),
        (["engine.parts=3"], 1, None, "20 images.*divided equally among 3"),
        ([], 3, None, "20 images.*divided equally among 3; give a multiple of 3"),
    ],
)
def test_parts_that_cannot_be_are_refused(settings, processes, begun, said):
    with pytest.raises(ValueError, match=said):
        parts_of_batch(tiny("free-3", *SETTINGS, *settings), processes, begun)


def test_parts_are_as_asked_as_begun_or_as_many_as_processes():
    recipe = tiny("free-3", *SETTINGS)
    assert parts_of_batch(recipe, 2) == 2
    assert parts_of_batch(recipe, 2, begun=10) == 10
    assert parts_of_batch(tiny("free-3", *SETTINGS, "engine.parts=4"), 2) == 4
    with pytest.raises(ValueError, match="parts=0"):
        tiny("free-3", "engine.parts=0")


def test_a_run_in_parts_resumes_bitwise(tmp_path):
    recipe = whole_recipe("engine.parts=2", "engine.checkpoint_seconds=0")
    whole = train.run(recipe, tmp_path / "whole")
    with dies():
        train.run(recipe, tmp_path / "died")
    died = train.run(recipe, tmp_path / "died", resume=True)
    assert_same(final_state(whole.path), final_state(died.path))
    budget = whole.results["budget"]
    assert budget["predicted_passes"] == budget["metered_passes"]
    (resumed,) = [r for r in Run.open(died.path).log() if r["kind"] == "resumed"]
    assert resumed["processes"] == 1
    assert 0 <= resumed["lost_updates"] < 50


# --- how processes make sure of each other


def meeting(worlds, patience=5.0, store=None):
    """What `meet` gives or raises at each rank, when rank k believes in worlds[k] processes."""
    store = torch.distributed.HashStore() if store is None else store
    found = [None] * len(worlds)

    def one(rank):
        try:
            found[rank] = meet(store, rank, worlds[rank], timedelta(seconds=patience))
        except ValueError as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(worlds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_processes_share_a_fresh_word():
    store = torch.distributed.HashStore()
    first, again = meeting([3, 3, 3], store=store), meeting([3, 3, 3], store=store)
    assert len(set(first)) == len(set(again)) == 1
    assert first[0] != again[0]


def test_what_an_earlier_start_left_is_no_answer():
    store = torch.distributed.HashStore()
    for rank in (1, 2):
        store.set(f"hello-{rank}", "0123")
    assert len(set(meeting([3, 3, 3], store=store))) == 1


def test_processes_that_count_differently_are_told():
    zero, one = meeting([2, 3])
    assert "process 0 was started as one of 2 processes and process 1 as one of 3" in str(zero)
    assert "process 1 was started as one of 3 processes and process 0 as one of 2" in str(one)


def test_a_process_that_never_comes_is_named():
    (zero,) = meeting([2], patience=0.1)
    assert "process 1 of 2 did not appear in time" in str(zero)
    assert "engine.patience_seconds" in str(zero)


def test_groups_of_auxiliary_norms_are_those_of_the_whole_batch():
    recipe = tiny("fast-advprop", "model.aux_groups=4", "model.name=resnet9")
    images = training_data(recipe).training
    for parts, groups in ((1, 4), (2, 2), (3, 1), (4, 1), (8, 1)):
        found = {norm.aux_groups for norm in branched(network(recipe, images, parts))}
        assert found == {groups}


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_whether_batches_fill_the_groups_depends_on_the_parts_alone(processes):
    """Parts of five images, of which one is attacked, have a group each, whoever learns them."""
    settings = ("model.aux_groups=2", "model.name=resnet9", "data.batch_size=20")
    recipe = tiny("fast-advprop", *settings, "data.drop_last=true")
    data = training_data(recipe)
    loaders = build_loaders(recipe, data, torch.device("cpu"))
    shares = 4 // processes
    method = recipe.build_method() if shares == 1 else InParts(recipe.build_method, shares)
    assert planned(recipe, loaders, method, processes, 4).updates > 0
    three = tiny("natural", "model.norm_groups=6", "model.name=resnet9", *settings[2:])
    with pytest.raises(ValueError, match=r"norm_groups: 5 images, .* cannot fill 6 groups"):
        planned(three, loaders, Natural(), processes, 4)


@pytest.mark.parametrize("method", ["fgsm-rs", "fast-advprop"])
def test_a_rate_test_learns_in_parts_as_training_does(tmp_path, method):
    of = (method, "data.batch_size=20", "data.limit=100", "data.holdout=20")
    whole, parts = (tiny(*of, f"engine.parts={count}", passes=2) for count in (1, 4))
    log = train.run(parts, tmp_path / "run").log()
    first = next(record["loss"] for record in log if record["kind"] == "step")
    assert lr_range(parts, updates=50).losses[0] == first != lr_range(whole, updates=50).losses[0]
    with pytest.raises(ValueError, match=r"20 images, .* cannot be divided equally among 3"):
        lr_range(tiny(*of, "engine.parts=3"))
