"""Probes: the gradient at the images alone, and a model that is left as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gratis.prober import Prober
from tests.small_net import small_net, some_batches, weights


class ConvolutionBackwards(TorchDispatchMode):
    """Notes which gradients each convolution's backward computes: (input, weight)."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(tuple(args[-1][:2]))
        return func(*args, **(kwargs or {}))


def test_probe_computes_no_weight_gradient():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    x, y = torch.rand(4, 4, 6, 6), torch.zeros(4, dtype=torch.long)
    with ConvolutionBackwards() as probe:
        Prober(model)(x, y)
    assert probe.masks == [(True, False)] * 2
    with ConvolutionBackwards() as whole:
        F.cross_entropy(model(x.requires_grad_()), y).backward()
    assert whole.masks == [(True, True)] * 2


@pytest.mark.parametrize(("norm", "moves"), [("batch", False), ("tracked", True), ("eval", False)])
def test_probe_leaves_the_model_alone(norm, moves):
    model = small_net().train()
    model[3].eval()  # somebody froze a layer
    before, (x, y) = weights(model), some_batches()[0]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    gradient = Prober(model, norm=norm)(x, y)
    assert gradient.shape == x.shape
    assert not x.requires_grad
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert model.training
    assert model[1].training
    assert not model[3].training
    moved = not torch.equal(before["1.running_mean"], model[1].running_mean)
    assert moved == moves
    assert (model[1].num_batches_tracked > before["1.num_batches_tracked"]) == moves
    # what the gradient is of: batch statistics, or in eval mode the running ones
    model[1].train(norm != "eval")
    point = x.clone().requires_grad_()
    F.cross_entropy(model(point), y, reduction="sum").backward()
    torch.testing.assert_close(gradient, point.grad)
