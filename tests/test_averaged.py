"""Averaged weights: what PyTorch's own are, bit by bit."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gratis.optim.averaged import Averaged
from tests.dying import assert_same
from tests.small_net import sgd, small_net, some_batches


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_averages_are_pytorchs(decay: float) -> None:
    model = small_net()
    ours = Averaged(model, decay)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    optimizer = sgd(model)
    for x, y in some_batches():
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert_same(ours.state_dict(), theirs.state_dict())
    assert not torch.equal(ours.module[0].weight, model[0].weight) or decay == 0


def test_a_decay_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.5; give a number from 0 to 1"):
        Averaged(small_net(), 1.5)
