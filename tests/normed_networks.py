"""Networks of several libraries with batch norms, and what is looked at in them."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gratis.nn import PreActResNet18


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
