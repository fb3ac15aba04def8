"""Auxiliary norms and norm groups: what they compute, and that nothing else is touched."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gratis import add_aux, drop_aux
from gratis.nn import PreActResNet18, group_norms, set_momentum
from gratis.nn.auxbn import BranchedNorm, branched, equalise_speed, through
from gratis.nn.batchnorm import untracked_statistics
from gratis.prober import Prober


class Shared(nn.Module):
    """One norm at two places, beside norms whose names a careless rule would confuse."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.again = self.norm
        self.aux_norm = nn.BatchNorm2d(4, affine=False)
        self.main_norm = nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.ReLU())
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = self.main_norm(F.relu(self.aux_norm(self.again(x * 2))))
        return self.linear(x.mean((2, 3)))


NETWORKS = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 32),
    "torchvision densenet": (
        lambda: torchvision.models.DenseNet(
            growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=5
        ),
        32,
    ),
    "torchvision mobilenet_v3": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=5, dropout=0.0),
        32,
    ),
    # timm's norms have their activation inside
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=5), 32),
    "timm regnetx_002": (lambda: timm.create_model("regnetx_002", num_classes=5), 64),
    "timm efficientnet_b0": (lambda: timm.create_model("efficientnet_b0", num_classes=5), 64),
    "preact-resnet18": (lambda: PreActResNet18(5, width=8), 16),
    "a norm shared": (Shared, 8),
}

LARGE = ("timm regnetx_002", "timm efficientnet_b0")
networks = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in NETWORKS]
)


def built(name, batch=4):
    """A network whose statistics are no longer those it was born with, and images for it."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    x = torch.rand(batch, 3, size, size)
    with torch.no_grad():
        model.train()(2 * x - 0.5)
    return model, x


def norms(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def outputs(model, x, train):
    """Logits, with the same drop-outs whatever the model."""
    torch.manual_seed(1)
    return model.train(train)(x)


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
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
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


# --- groups


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
    plain = PreActResNet18(5, width=8)
    equalise_speed(plain, 0.5, 0.5)  # no branches, nothing to do
