"""A user's own loop: mistakes explained, scaled losses, autocast, batches broken off."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from gratis import L2, FastAdvProp, Free, Learner, Linf, add_aux, fgsm_rs
from gratis.passes import Batch
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


def test_a_batch_that_was_broken_off_leaves_nothing_for_the_next():
    """As when a device's memory did not suffice, and the caller goes on with a smaller batch."""
    x, y = some_batches((20,))[0]
    method = FastAdvProp(Linf(0.1))

    def learner():
        model = add_aux(small_net())
        return Learner(model, sgd(model), seed=0)

    broken, fresh = learner(), learner()
    backward, calls = broken.backward, itertools.count()

    def failing(p):
        if next(calls) == 1:
            raise MemoryError
        return backward(p)

    broken.backward = failing
    with pytest.raises(MemoryError):
        broken.fit(method, Batch(x, y))
    for each in (broken, fresh):
        each.fit(method, Batch(x[:10], y[:10]))
    ours, theirs = (dict(each.model.named_parameters()) for each in (broken, fresh))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_epochs_of_a_seed_go_on_from_each_other():
    """Two calls of two batches draw what one call of four draws; so does one taken up later."""
    x, y = torch.full_like(some_batches()[0][0][:3], 0.5), torch.zeros(3).long()

    def drawn(method, count, **options):
        return [
            p.detach().clone() for p, _ in method.batches([(x, y)] * count, small_net(), **options)
        ]

    whole = drawn(fgsm_rs(Linf(EPS)), 4, seed=1)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(whole, 2))
    method = fgsm_rs(Linf(EPS))
    halves = drawn(method, 2, seed=1) + drawn(method, 2, seed=1)
    later = drawn(fgsm_rs(Linf(EPS)), 2, seed=1, updates=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], later, strict=True))


def test_two_loops_at_once_do_not_disturb_each_other():
    x, y = torch.full_like(some_batches()[0][0][:3], 0.5), torch.zeros(3).long()
    method = fgsm_rs(Linf(EPS))
    loops = [method.batches([(x, y)] * 3, small_net(), seed=1, updates=0) for _ in range(2)]
    for (one, _), (other, _) in zip(*loops, strict=True):
        assert torch.equal(one, other)
