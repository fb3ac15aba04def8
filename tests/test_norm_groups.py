"""Norm groups: each part of a batch is normalised as a device of its own would."""

import copy

import pytest
import torch
from torch import nn

from gratis import add_aux, drop_aux
from gratis.nn import PreActResNet18, group_norms
from gratis.nn.auxbn import BranchedNorm, branched, through
from gratis.nn.batchnorm import untracked_statistics
from tests.normed_networks import built, networks, outputs, same, snapshot


def one_norm(groups, **options):
    """A norm in `groups` groups inside a network, and its plain twin."""
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3, **options)
    if plain.affine:
        nn.init.uniform_(plain.weight)
        nn.init.uniform_(plain.bias)
    model = nn.Sequential(copy.deepcopy(plain))
    return group_norms(model, groups), plain


@pytest.mark.parametrize(("images", "groups"), [(8, 2), (8, 4), (7, 3), (5, 5), (6, 1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}],
    ids=str,
)
def test_each_part_is_normalised_by_itself(images, groups, options):
    model, plain = one_norm(groups, **options)
    x = torch.rand(images, 3, 2, 2) * torch.arange(1, images + 1).view(-1, 1, 1, 1)
    expected, seen = [], []
    for part in x.tensor_split(groups):  # 7 in 3 parts: 3, 2, 2
        device = copy.deepcopy(plain)
        expected.append(device(part))
        seen.append(device.state_dict())
    torch.testing.assert_close(model(x), torch.cat(expected))
    for key, value in drop_aux(model).items():
        name = key.removeprefix("0.")
        mean = torch.stack([state[name] for state in seen]).double().mean(0)
        torch.testing.assert_close(value, mean.to(value.dtype), msg=name)
    if plain.track_running_stats:
        assert int(model[0].num_batches_tracked) == 1


def test_running_statistics_over_updates_are_the_mean_of_the_devices():
    model, plain = one_norm(2)
    first, second = copy.deepcopy(plain), copy.deepcopy(plain)
    for _ in range(3):
        x = torch.rand(6, 3, 2, 2)
        model(x)
        first(x[:3])
        second(x[3:])
    # each update starts from the mean, which is linear in what it starts from
    mean = (first.running_mean + second.running_mean) / 2
    torch.testing.assert_close(model[0].running_mean, mean)
    mean = (first.running_var + second.running_var) / 2
    torch.testing.assert_close(model[0].running_var, mean)


def test_gradients_are_each_parts_own():
    model, plain = one_norm(2)
    x = torch.rand(6, 3, 2, 2)
    out_weights = torch.rand(6, 3, 2, 2)
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    (model(mine) * out_weights).sum().backward()
    parts = [copy.deepcopy(plain) for _ in range(2)]
    both = torch.cat([parts[0](theirs[:3]), parts[1](theirs[3:])])
    (both * out_weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(model[0].weight.grad, parts[0].weight.grad + parts[1].weight.grad)


def test_two_forwards_may_come_before_one_backward():
    model, x = built("preact-resnet18")
    group_norms(add_aux(model), 2, 4)
    total = outputs(model, x, True).sum() + outputs(model, x, True).square().sum()
    with through(model, "aux"):
        total = total + outputs(model, x, True).square().sum()
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@networks
def test_groups_of_any_network_are_so_many_devices(name):
    model, x = built(name, batch=6)
    plain = copy.deepcopy(model)
    group_norms(model, 2)
    assert torch.equal(outputs(model, x, False), outputs(plain, x, False))
    expected = torch.cat([copy.deepcopy(plain).train()(part) for part in x.split(3)])
    torch.testing.assert_close(model.train()(x), expected, rtol=1e-4, atol=1e-4)


def test_branches_have_their_own_numbers_of_groups():
    model = group_norms(add_aux(PreActResNet18(5, width=8)), 1, 2)
    assert {(n.main_groups, n.aux_groups) for n in branched(model)} == {(1, 2)}
    x = torch.rand(4, 3, 8, 8)
    swapped = x[[2, 3, 0, 1]]
    across = x[[0, 2, 1, 3]]
    back = torch.tensor([0, 2, 1, 3])
    with through(model, "aux"):
        torch.testing.assert_close(
            outputs(model, swapped, True)[[2, 3, 0, 1]], outputs(model, x, True)
        )
        assert not torch.allclose(outputs(model, across, True)[back], outputs(model, x, True))
    torch.testing.assert_close(outputs(model, across, True)[back], outputs(model, x, True))
    # whichever comes first
    other = add_aux(group_norms(PreActResNet18(5, width=8), 1, 2))
    assert {(n.main_groups, n.aux_groups) for n in branched(other)} == {(1, 2)}
    group_norms(other, 3)
    assert {(n.main_groups, n.aux_groups) for n in branched(other)} == {(3, 3)}
    assert not any(isinstance(n.main_norm, BranchedNorm) for n in branched(other))


def test_too_few_images_for_the_groups_are_refused():
    model, _ = one_norm(4)
    before = snapshot(model)
    with pytest.raises(ValueError, match="3 images cannot fill 4 norm groups"):
        model(torch.rand(3, 3, 2, 2))
    assert same(snapshot(model), before)
    model.eval()(torch.rand(3, 3, 2, 2))


@pytest.mark.parametrize("wrong", [(0, None), (2, 0), (-1, 1)])
def test_less_than_one_group_is_refused(wrong):
    with pytest.raises(ValueError, match="give 1 or more"):
        group_norms(PreActResNet18(5, width=8), *wrong)


def test_statistics_survive_a_part_that_cannot_be_normalised():
    model, _ = one_norm(2)
    before, mean = snapshot(model), model[0].main_norm.running_mean
    with pytest.raises(ValueError, match="more than 1 value"):
        model(torch.rand(3, 3, 1, 1))  # the second part is one value a channel
    assert same(snapshot(model), before)
    assert model[0].main_norm.running_mean is mean


def test_untracked_groups_remember_nothing():
    model, plain = one_norm(2)
    x = torch.rand(4, 3, 2, 2)
    before = snapshot(model)
    with untracked_statistics(model):
        got = model(x)
    assert same(snapshot(model), before)
    torch.testing.assert_close(got, torch.cat([plain(x[:2]), plain(x[2:])]))
