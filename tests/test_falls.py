"""Where images fall, on a linear network whose margins say it."""

import pytest
import torch
from torch import nn

from gratis.balls import L2, Linf
from gratis.budget import Meter
from gratis.evaluate.falls import falls

X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
RADII = [0.004, 0.008, 0.016, 0.024]


@pytest.fixture
def model():
    """Its boundary runs through the middle of the images, so that some lie near and some far."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].bias[1] -= (model(X)[:, 1] - model(X)[:, 0]).median() + 1e-3
    return model


def distances(model, y, order):
    """How far each image may be moved before it is wrong; negative where it is so already."""
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    towards = (weight[1] - weight[0]) * (2 * y[:, None] - 1)
    logits = X.flatten(1) @ (weight[1] - weight[0]) + bias[1] - bias[0]
    return logits * (2 * y - 1) / torch.linalg.vector_norm(towards[0], order)


@pytest.mark.parametrize(("ball", "dual", "wider"), [(Linf(0.1), 1, 1), (L2(0.1), 2, 4)])
def test_images_fall_where_the_margin_says(model, ball, dual, wider):
    y = model(X).argmax(1)
    y[:2] = 1 - y[:2]
    radii = [radius * wider for radius in RADII]
    found = falls(model, X, y, ball=ball, radii=radii[::-1])
    far = distances(model, y, dual).tolist()
    expected = [0.0 if d < 0 else min((r for r in radii if r > d), default=torch.inf) for d in far]
    assert found.eps.tolist() == expected
    assert len(set(expected)) > 3, "images of all kinds are among them"


def test_what_comes_with_a_fall(model):
    y = model(X).argmax(1)
    y[0] = 1 - y[0]
    meter = Meter()
    model.train()
    found = falls(model, X, y, ball=Linf(0.1), radii=RADII, meter=meter)
    fallen = found.eps.isfinite() & (found.eps > 0)
    assert fallen.any()
    with torch.no_grad():
        before, after = model(X).softmax(1), model(found.points).softmax(1)
    rows = torch.arange(len(X))
    torch.testing.assert_close(found.before, before[rows, y])
    torch.testing.assert_close(found.after, after[rows, y])
    assert torch.equal(found.prediction, after.argmax(1))
    assert (found.prediction[fallen] != y[fallen]).all()
    moved = (found.points - X).flatten(1).abs().amax(1)
    assert torch.equal(found.points[0], X[0]), "wrong as it is: left alone"
    # climbed on to the corner of the ball it fell in, which is as far as the loss goes
    torch.testing.assert_close(moved[fallen], found.eps[fallen].float())
    assert meter.probes > 0
    assert meter.forwards >= 2 * len(X)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_nothing_is_right_and_nothing_stands(model):
    y = 1 - model(X).argmax(1)
    found = falls(model, X, y, ball=Linf(0.1), radii=RADII)
    assert found.eps.tolist() == [0.0] * len(X)
    assert torch.equal(found.points, X)
    assert torch.equal(found.before, found.after)
