"""Narrow networks are learned channels first where PyTorch would write beyond its memory."""

import pytest
import torch
from torch import nn

from gratis import Learner, Linf, fgsm_rs
from gratis.nn import build_model
from gratis.nn.layout import layout
from gratis.passes import Batch


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(8, 16, 1, 2), torch.contiguous_format),
        (nn.Conv2d(16, 32, 1, 2), torch.channels_last),
        (nn.Conv2d(8, 16, 1), torch.channels_last),
        (nn.Conv2d(8, 16, 3, 2), torch.channels_last),
    ],
    ids=str,
)
def test_narrow_shortcuts_are_not_learned_channels_last(
    layer: nn.Module, expected: torch.memory_format
) -> None:
    model = nn.Sequential(layer, nn.ReLU())
    assert layout(model, channels_last=True) == expected
    assert layout(model, channels_last=False) == torch.contiguous_format


def test_a_narrow_net_learns_from_an_odd_batch() -> None:
    """On CPUs with AVX-512 this ended in "double free or corruption" with PyTorch 2.15.0."""
    torch.manual_seed(0)
    model = build_model("preact-resnet18", classes=10, channels=3, image_size=32, width=8)
    learner = Learner(model, torch.optim.SGD(model.parameters(), 0.1), channels_last=True, seed=0)
    x, y = torch.rand(13, 3, 32, 32), torch.arange(13) % 10
    for _ in range(3):
        metrics = learner.fit(fgsm_rs(Linf(8 / 255)), Batch(x, y))
    assert metrics.losses[0].isfinite()
