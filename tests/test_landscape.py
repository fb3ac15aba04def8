"""Loss surfaces, large pictures and accuracies by pass, on networks whose answers are known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gratis.balls import Linf
from gratis.batch import Batch, seeded
from gratis.evaluate.branches import pass_accuracies
from gratis.evaluate.landscape import iterated_fgsm, surfaces
from gratis.methods import FastAdvProp, Natural
from gratis.nn import add_aux, group_norms, small_conv, untracked_statistics
from gratis.nn.auxbn import branched, through
from gratis.prober import Prober

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
Y = torch.tensor([0, 1, 0, 1, 1, 0])


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


def test_surfaces_of_a_linear_model():
    model = linear()
    model.train()
    found = surfaces(model, X, Y, radius=0.1, points=5)
    weight = model[1].weight.detach()
    # the gradient at x is a multiple of the rows' difference, away from the label
    towards = torch.where(Y.bool(), -1.0, 1.0)[:, None] * (weight[1] - weight[0])
    u = towards.sign().reshape(X.shape)
    here = F.cross_entropy(model(X), Y).item()
    there = F.cross_entropy(model(X + 0.1 * u), Y).item()
    losses = found["adversarial"].losses
    assert losses.shape == (5, 5)
    assert losses[2, 2].item() == pytest.approx(here, abs=1e-6)
    assert losses[4, 2].item() == pytest.approx(there, abs=1e-6)
    assert (losses.diff(dim=0) > 0).all(), "climbing all along u"
    assert found["random"].losses[2, 2].item() == pytest.approx(here, abs=1e-6)
    assert found["random"].losses.max() <= losses[4].max()
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="odd"):
        surfaces(model, X, Y, radius=0.1, points=4)


def test_iterated_fgsm_ends_in_the_corner_of_a_linear_model():
    model = linear()
    weight = model[1].weight.detach()
    found = iterated_fgsm(model, X, Y, eps=0.1)
    towards = torch.where(Y.bool(), -1.0, 1.0)[:, None] * (weight[1] - weight[0])
    torch.testing.assert_close(found, X + 0.1 * towards.sign().reshape(X.shape))
    assert iterated_fgsm(model, X, Y, eps=0.9).aminmax() == (0, 1)


def test_iterated_fgsm_towards_a_class_ends_in_the_other_corner():
    model = linear()
    weight = model[1].weight.detach()
    towards = torch.zeros_like(Y)
    found = iterated_fgsm(model, X, Y, eps=0.1, towards=towards)
    away = (weight[0] - weight[1]).sign().reshape(1, *X.shape[1:])
    torch.testing.assert_close(found, X + 0.1 * away)


def test_pass_accuracies_look_and_do_not_touch():
    model = group_norms(add_aux(small_conv(2, 1, 4, width=2)), 1, 2)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, y = X.repeat(4, 1, 1, 1), Y.repeat(4)
    method = FastAdvProp(Linf(0.1), adversarial=0.5)
    for norm in branched(model):  # so that it matters which of them a pass goes through
        nn.init.normal_(norm.aux_norm.weight)
        nn.init.normal_(norm.aux_norm.bias)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = pass_accuracies(model, method, [(x, y), (x, y)])
    assert not model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())

    model.train()
    right = torch.zeros(3)
    for number in range(2):
        batch = Batch(x, y, seeded(0, number, x.device))
        for place, p in enumerate(method.passes(batch, Prober(model))):
            with untracked_statistics(model), through(model, p.norm):
                logits = model(p.x)
            if p.x.requires_grad:
                (p.x.grad,) = torch.autograd.grad(F.cross_entropy(logits, p.y), p.x)
            right[place] += (logits.argmax(1) == p.y).double().mean() / 2
    assert found == pytest.approx(right.tolist())
    assert len({*found}) > 1
    expected = (model(x).argmax(1) == y).double().mean().item()
    assert pass_accuracies(model, Natural(), [(x, y)]) == (pytest.approx(expected),)
