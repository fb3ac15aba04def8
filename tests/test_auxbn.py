"""Auxiliary norms: what they compute, and that nothing else is touched."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from gratis import add_aux, drop_aux
from gratis.nn import PreActResNet18, group_norms, set_momentum
from gratis.nn.auxbn import branched, equalise_speed, through
from gratis.nn.batchnorm import untracked_statistics
from gratis.optim.averaged import Averaged
from gratis.prober import Prober
from tests.normed_networks import NETWORKS, built, networks, norms, outputs, same, snapshot

# --- auxiliary norms: any network, unchanged until asked


@networks
@pytest.mark.parametrize("train", [True, False])
def test_adding_changes_no_output_and_no_statistics(name, train):
    model, x = built(name)
    plain = copy.deepcopy(model)
    assert add_aux(model) is model
    assert len(branched(model)) == len(set(map(id, norms(plain).values())))
    assert torch.equal(outputs(model, x, train), outputs(plain, x, train))
    assert same(drop_aux(model), plain.state_dict())
    assert torch.equal(outputs(model, x, False), outputs(plain, x, False))


@networks
def test_branches_start_alike_and_go_their_own_ways(name):
    model, x = built(name)
    add_aux(model)
    with through(model, "aux"):
        aside = outputs(model, x, False)
    assert torch.equal(aside, outputs(model, x, False))
    before = snapshot(model)
    with through(model, "aux"):
        outputs(model, x, True)
    after = snapshot(model)
    aux = {key for key in before if ".aux_norm." in key and key not in drop_aux(model)}
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {k for k in aux if k.rsplit(".")[-1] in BUFFERS}
    outputs(model, x, True)
    again = snapshot(model)
    assert {k for k in after if not torch.equal(after[k], again[k])}.isdisjoint(aux)


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@networks
def test_what_is_dropped_leaves_the_plain_network(name):
    model, x = built(name)
    plain = copy.deepcopy(model)
    add_aux(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for branch in ("main", "aux", "main"):  # both branches move, apart from each other
        with through(model, branch):
            F.cross_entropy(outputs(model, x, True), torch.arange(4)).backward()
        optimizer.step()
    before = snapshot(model)
    for trained in (model, model.state_dict()):
        plain.load_state_dict(drop_aux(trained), strict=True)
        assert torch.equal(outputs(plain, x, False), outputs(model, x, False))
    assert same(snapshot(model), before)
    with through(model, "aux"):
        assert not torch.equal(outputs(plain, x, False), outputs(model, x, False))
    assert same(drop_aux(plain), plain.state_dict())  # nothing to drop


def test_a_norm_at_two_places_stays_one():
    model, x = built("a norm shared")
    add_aux(model)
    assert model.norm is model.again
    assert len(branched(model)) == 3
    tracked = int(model.norm.num_batches_tracked)
    outputs(model, x, True)
    assert int(model.norm.num_batches_tracked) == tracked + 2


def test_gradients_reach_only_the_branch_that_was_gone_through():
    model, x = built("preact-resnet18")
    add_aux(model)
    with through(model, "aux"):
        outputs(model, x, True).sum().backward()
    for norm in branched(model):
        assert all(p.grad is None for p in norm.main_norm.parameters())
        assert all(p.grad is not None for p in norm.aux_norm.parameters())
    assert model.conv.weight.grad is not None


def test_the_network_is_asked_as_before():
    model = add_aux(torchvision.models.resnet18(num_classes=5))
    assert model.bn1.weight is model.bn1.main_norm.weight
    assert (model.bn1.num_features, model.bn1.eps) == (64, 1e-5)
    assert model.bn1.running_mean is model.bn1.main_norm.running_mean
    assert "main_groups=1" in repr(model.bn1)
    with pytest.raises(AttributeError, match="colour"):
        _ = model.bn1.colour
    timms = add_aux(timm.create_model("resnet18", num_classes=5))
    assert timms.bn1.num_features == 64


def test_settings_of_norms_reach_both_branches():
    model, x = built("preact-resnet18")
    set_momentum(add_aux(model), 0.25)
    for norm in branched(model):
        assert norm.main_norm.momentum == norm.aux_norm.momentum == 0.25
    before = snapshot(model)
    for branch in ("main", "aux"):
        with untracked_statistics(model), through(model, branch):
            outputs(model, x, True)
    assert same(snapshot(model), before)


# --- auxiliary norms: what cannot be


def test_a_network_without_batch_norms_is_refused():
    for change in (add_aux, group_norms):
        with pytest.raises(ValueError, match="Sequential has no batch norm layers"):
            change(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
        with pytest.raises(ValueError, match="batch norm itself"):
            change(nn.BatchNorm2d(3))


def test_adding_twice_is_refused_and_changes_nothing():
    model = add_aux(PreActResNet18(5, width=8))
    before = snapshot(model)
    with pytest.raises(ValueError, match="already"):
        add_aux(model)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("change", [lambda m: m, lambda m: group_norms(m, 2)])
def test_going_through_what_is_not_there_is_explained(change):
    model = change(PreActResNet18(5, width=8))
    with pytest.raises(ValueError, match=r"gratis\.add_aux"), through(model, "aux"):
        pass
    with pytest.raises(ValueError, match=r"gratis\.add_aux"):
        Prober(model)(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long), norm="aux")
    with through(model, "main"):
        model(torch.rand(4, 3, 8, 8))


def test_the_branch_comes_back_after_an_exception_and_when_nested():
    model = add_aux(PreActResNet18(5, width=8))
    with pytest.raises(KeyError), through(model, "aux"):
        raise KeyError
    assert {norm.branch for norm in branched(model)} == {"main"}
    with through(model, "aux"):
        with through(model, "main"):
            assert {norm.branch for norm in branched(model)} == {"main"}
        assert {norm.branch for norm in branched(model)} == {"aux"}


# --- auxiliary norms: copies


@networks
def test_copies_and_checkpoints_are_whole(name):
    model, x = built(name)
    add_aux(model)
    with through(model, "aux"):
        outputs(model, x, True)
    other = add_aux(NETWORKS[name][0]())
    other.load_state_dict(model.state_dict(), strict=True)
    for twin in (copy.deepcopy(model), other):
        for branch in ("main", "aux"):
            with through(twin, branch), through(model, branch):
                assert torch.equal(outputs(twin, x, False), outputs(model, x, False))
        assert {id(n) for n in branched(twin)}.isdisjoint({id(n) for n in branched(model)})
        before = snapshot(model)
        outputs(twin, x, True)
        assert same(snapshot(model), before)


def test_averaged_weights_have_both_branches():
    model, x = built("preact-resnet18")
    add_aux(model)
    averaged = Averaged(model, 0.5)
    averaged.update_parameters(model)  # the first one is a copy
    first = snapshot(model)
    with through(model, "aux"):
        outputs(model, x, True)
    averaged.update_parameters(model)
    second = snapshot(model)
    for key, value in averaged.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (first[key] + second[key]) / 2, msg=key)
    plain = PreActResNet18(5, width=8)
    plain.load_state_dict(drop_aux(averaged.module), strict=True)
    assert torch.equal(outputs(plain, x, False), outputs(averaged.module, x, False))


# --- the speed of updates


def test_gradients_of_norms_are_divided_by_their_share():
    model, x = built("preact-resnet18")
    add_aux(model)
    outputs(model, x, True).sum().backward()
    with through(model, "aux"):
        outputs(model, x, True).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    equalise_speed(model, 0.8, 0.2)
    for name, parameter in model.named_parameters():
        share = 0.8 if ".main_norm." in name or name.startswith("norm.main_norm") else 1.0
        share = 0.2 if "aux_norm." in name else share
        torch.testing.assert_close(parameter.grad, before[name] / share, msg=name)


def test_a_branch_without_a_share_or_a_gradient_is_left_alone():
    model, x = built("a norm shared")
    add_aux(model)
    outputs(model, x, True).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    equalise_speed(model, 1.0, 0.0)
    assert all(torch.equal(dict(model.named_parameters())[n].grad, g) for n, g in before.items())
    with through(model, "aux"):
        outputs(model, x, True).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert any("aux_norm." in name and bool(g.any()) for name, g in before.items())
    equalise_speed(model, 1.0, 0.0)
    assert all(torch.equal(dict(model.named_parameters())[n].grad, g) for n, g in before.items())
    plain = PreActResNet18(5, width=8)
    equalise_speed(plain, 0.5, 0.5)  # no branches, nothing to do
