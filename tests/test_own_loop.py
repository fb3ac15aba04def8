"""A user's own loop: mistakes explained, scaled losses, autocast."""

import pytest
import torch
import torch.nn.functional as F

from gratis import L2, Free, Linf, fgsm_rs
from tests.small_net import EPS, sgd, small_net, some_batches


def test_missing_backward_is_explained():
    with pytest.raises(RuntimeError, match=r"x\.grad is still empty.*loss\.backward\(\)"):
        for _ in Free(Linf(EPS)).batches(some_batches()):
            pass


def test_missing_model_is_explained():
    with pytest.raises(ValueError, match=r"batches\(loader, model\)"):
        next(fgsm_rs(Linf(EPS)).batches(some_batches()))


def test_normalised_input_is_explained():
    x, y = some_batches()[0]
    with pytest.raises(ValueError, match="move normalisation into the model"):
        next(Free(Linf(EPS)).batches([((x - 0.5) / 0.25, y)]))


@pytest.mark.parametrize("ball", [Linf(EPS), L2(0.5)], ids=["linf", "l2"])
def test_scaled_loss_changes_nothing(ball):
    """A gradient scaler multiplies the loss: only the direction of x.grad may count."""
    deltas = []
    for scale in (1.0, 65536.0):
        method, model = Free(ball, replays=3), small_net().double()
        batches = [(x.double(), y) for x, y in some_batches()]
        for x, y in method.batches(batches):
            (scale * F.cross_entropy(model(x), y)).backward()
        deltas.append(method.state()["delta"])
    torch.testing.assert_close(deltas[0], deltas[1])


def test_own_loop_under_autocast():
    method, model = Free(Linf(EPS), replays=2), small_net()
    optimizer = sgd(model)
    for x, y in method.batches(some_batches()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert x.dtype == torch.float32
        assert x.grad.dtype == torch.float32
    assert method.state()["delta"].dtype == torch.float32
