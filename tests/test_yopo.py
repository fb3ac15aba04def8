"""YOPO on a network of two layers: its passes, and the first layer that it finds."""

import pytest
import torch
from torch import nn

from gratis import Yopo
from gratis.passes import Batch
from tests.uphill import BALL, EPS, GREY, LABELS, UphillProbe, shape


class TwoLayers(nn.Module):
    """A stand-in network for YOPO's hooks: layer one a known linear map."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1, bias=False)
        self.last = nn.Linear(16, 3)
        nn.init.constant_(self.first.weight, 2.0)

    def forward(self, x):
        return self.last(self.first(x).flatten(1))


def test_yopo():
    method, model = Yopo(BALL, rounds=2, steps=3, step_size=0.02), TwoLayers()
    method.bind(model, GREY)
    # multiply-adds: 16 in the first layer, 48 in the last
    assert method.share == pytest.approx(16 / 64)
    assert method.cost == pytest.approx(2 * (1 + 4 / 4))
    assert method.update_thirds(10) == (2 * (30 + 30),)
    found = []
    generator = torch.Generator().manual_seed(0)
    for p in method.passes(Batch(GREY, LABELS, generator), UphillProbe()):
        found.append(p)
        if p.loss is None:
            model(p.x).sum().backward()  # what the learner does: fills the layer's gradient
    assert shape(found) == [
        (10, 1, "main", False),
        (10, 1, "main", False),
        (10, 1, "main", False),
        (10, 1, "main", True),
    ]
    assert [p.extra + 30 for p in found] == [30, 30, 30, 30]
    # three steps of 0.02 along the sign of 2 * costate, the costate being the last layer's column
    slope = model.last.weight.sum(0).view(1, 1, 4, 4).sign()
    start = found[0].x - 0.5
    torch.testing.assert_close(found[1].x - 0.5, (start + 0.06 * slope).clamp(-EPS, EPS))
    torch.testing.assert_close(found[2].x, found[1].x)
    # and layer one alone is learned from there: <layer one (x), costate>
    loss, logits = found[1].loss(model, found[1].x, LABELS)
    assert logits is None
    expected = (model.first(found[1].x) * model.last.weight.sum(0).view(1, 1, 4, 4)).sum()
    torch.testing.assert_close(loss, expected)


def test_yopo_refuses_what_it_cannot_use():
    norm_first = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1), nn.Flatten())
    with pytest.raises(ValueError, match="not each image's own"):
        Yopo(BALL).bind(norm_first, GREY)
    with pytest.raises(ValueError, match="no module 'conv9'"):
        Yopo(BALL, first_layer="conv9").bind(TwoLayers(), GREY)
    with pytest.raises(ValueError, match="runs no such"):
        Yopo(BALL, first_layer=nn.Conv2d(1, 1, 1)).bind(TwoLayers(), GREY)
    with pytest.raises(ValueError, match="runs no such"):
        Yopo(BALL).bind(nn.Flatten(), GREY)


def test_yopo_takes_a_named_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1))
    method = Yopo(BALL, first_layer="2")
    method.bind(model, GREY)
    assert method.share == pytest.approx(1)  # all that runs up to there
    assert Yopo(BALL, first_layer=model[2]).first_layer is model[2]
